"""`help()` is enough: every public name explains its arguments, and the shapes of tensors."""

from __future__ import annotations

import inspect
import re
from importlib import resources

import pytest

import fused_lstm
from fused_lstm import models, ops, reference


def public(*modules):
    """The package's own functions, classes and methods that have no underscore, by full name."""
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("_") or not written_here(value):
                continue
            found[f"{module.__name__}.{name}"] = value
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                if not method.startswith("_") and written_here(function):
                    found[f"{module.__name__}.{name}.{method}"] = function
    return found


def written_here(value):
    kinds = inspect.isfunction(value) or inspect.isclass(value)
    return kinds and value.__module__.startswith("fused_lstm")


NAMES = public(fused_lstm, models, ops, reference)
# Those whose text says that their arguments are another's
AS_THERE = {
    "fused_lstm.reference.layer": "fused_lstm.ops.layer",
    "fused_lstm.reference.cell": "fused_lstm.ops.cell",
    "fused_lstm.reference.stack": "fused_lstm.ops.stack",
    "fused_lstm.models.Seq2Seq.generate": "fused_lstm.models.Seq2Seq.forward",
}


def test_all_are_found():
    assert {"fused_lstm.FusedLSTM.forward", "fused_lstm.ops.layer"} <= NAMES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_shapes(name):
    value = NAMES[name]
    text = inspect.getdoc(value) or ""
    assert text
    text += inspect.getdoc(NAMES[AS_THERE[name]]) if name in AS_THERE else ""
    function = value.__init__ if inspect.isclass(value) else value
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self" or value is fused_lstm.LSTMStates:
            continue
        assert re.search(rf"\b{parameter.name}\b", text), f"{parameter.name} is not explained"
        if "Tensor" in str(parameter.annotation):
            shape = rf"\b{parameter.name}\b[^.]*?[\[(]"
            assert re.search(shape, text), f"{parameter.name} has no shape"


def test_the_states_are_explained():
    text = inspect.getdoc(fused_lstm.LSTMStates)
    for field in fused_lstm.LSTMStates._fields:
        assert re.search(rf"\b{field}: [^.]*\[", text)


def test_errors_are_named():
    functions = ("replace_lstm", "ops.layer", "ops.stack")
    for name in ("FusedLSTM.forward", "FusedLSTMCell.forward", *functions):
        assert "Raises:" in inspect.getdoc(NAMES[f"fused_lstm.{name}"])


def test_type_hints_come_with_the_package():
    folder = resources.files("fused_lstm")
    assert (folder / "py.typed").is_file()
    assert (folder / "_C.pyi").is_file()
