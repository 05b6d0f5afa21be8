"""replace_lstm and restore_lstm: the LSTMs of a model that exists already change their class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from fused_lstm.cell import FusedLSTMCell
from fused_lstm.lstm import FusedLSTM

Classes = Mapping[type[nn.Module], type[nn.Module]]
_FUSED: Classes = {nn.LSTM: FusedLSTM, nn.LSTMCell: FusedLSTMCell}
_PLAIN: Classes = {fused: plain for plain, fused in _FUSED.items()}


class SwapReport(list[str]):
    """The names of the modules swapped; printed, a line for each LSTM.

    Attributes:
        swapped: what became of each module swapped, by name.
        left: why each other LSTM was left as it was, by name.
    """

    def __init__(self, swapped: Mapping[str, str], left: Mapping[str, str]) -> None:
        super().__init__(swapped)
        self.swapped = dict(swapped)
        self.left = dict(left)

    def __str__(self) -> str:
        left = {name: f"left: {reason}" for name, reason in self.left.items()}
        lines = (f"{name or 'the model'}: {text}" for name, text in (self.swapped | left).items())
        return "\n".join(lines) or "no LSTM to swap"


def replace_lstm(model: nn.Module, verbose: bool = True) -> SwapReport:
    """Makes every nn.LSTM and nn.LSTMCell of `model` its fused twin, in place.

    The modules stay the same objects with another class, and so do their parameters: optimizers,
    ties, hooks, state_dicts, parametrisations (`weight_norm`) and references from elsewhere keep
    working. `restore_lstm` is the way back.

    A subclass, whose forward may differ, is left alone; `fused_lstm.patch` before it is defined
    gives it a fused base. So is a module whose forward was set on the module itself, and one that
    TorchScript has compiled.

    Args:
        model: any module that contains LSTMs, or is one.
        verbose: print the report.

    Returns:
        The names of the modules swapped, as `model.named_modules()` gives them ("" for `model`
        itself): a list, whose `left` says by name why other LSTMs were not.

    Raises:
        TypeError: `model` is not a module.
    """
    return _swap(model, _FUSED, verbose)


def restore_lstm(model: nn.Module, verbose: bool = True) -> SwapReport:
    """Makes every FusedLSTM and FusedLSTMCell of `model` an nn.LSTM or nn.LSTMCell, in place.

    The reverse of `replace_lstm`, for tools that go by a module's exact type: quantisers, Opacus,
    pruners, counters of operations. `recompute=True`, which nn.LSTM does not have, is dropped, and
    the report says so.

    Args:
        model: any module that contains fused LSTMs, or is one.
        verbose: print the report.

    Returns:
        The names of the modules swapped, as `replace_lstm` does.

    Raises:
        TypeError: `model` is not a module.
    """
    return _swap(model, _PLAIN, verbose)


def _swap(model: nn.Module, classes: Classes, verbose: bool) -> SwapReport:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, must be a torch.nn.Module")
    swapped: dict[str, str] = {}
    left: dict[str, str] = {}
    done: dict[nn.Module, str] = {}  # a module that stands in two places has two names
    for name, module in model.named_modules(remove_duplicate=False):
        if module in done:
            swapped[name] = done[module]
        elif reason := obstacle(module, classes):
            left[name] = reason
        elif type_before_parametrizations(module) in classes:
            swapped[name] = done[module] = _change_class(module, classes)
    report = SwapReport(swapped, left)
    if verbose:
        print(report)
    return report


def obstacle(module: nn.Module, classes: Classes) -> str | None:
    """Why an LSTM is left as it is; None if it is not, or if `module` is no LSTM."""
    kind = type_before_parametrizations(module)
    if isinstance(module, torch.jit.ScriptModule):
        compiled = module.original_name in {plain.__name__ for plain in classes}
        return "compiled by TorchScript; swap before that" if compiled else None
    if kind in classes:
        return "its forward was set on the module itself" if "forward" in vars(module) else None
    for base in classes:
        if issubclass(kind, base):
            return f"{kind.__name__} is a subclass of {base.__name__}, whose forward may differ"
    return None


def _change_class(module: nn.Module, classes: Classes) -> str:
    """Swaps `module`, and says from what to what."""
    before = f"{type(module).__name__}({module.extra_repr()})"
    new = classes[type_before_parametrizations(module)]
    dropped = ""
    if not hasattr(new, "recompute") and vars(module).pop("recompute", False):
        dropped = ", without recompute"
    if is_parametrized(module):
        # register_parametrization derives a class of the module's own, with a property for each
        # parametrised weight; its like is derived from the new class.
        new = type(f"Parametrized{new.__name__}", (new,), dict(vars(type(module))))
    module.__class__ = new
    if isinstance(module, nn.RNNBase):
        module.flatten_parameters()  # cuDNN's layout of the weights, for nn.LSTM on a GPU
    return f"{before} -> {type(module).__name__}{dropped}"
