"""A case as functions to time, on equal weights: a call forward, or a step that keeps its state."""

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fused_lstm
from benchmarks import onnx_lstm
from benchmarks.cases import Case
from benchmarks.serving.records import FORMATS, TITLES
from fused_lstm import FusedLSTM, FusedLSTMCell

# The largest absolute error of an output, which lies between -1 and 1, that a format may have
MOST_ERROR = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 2e-2, "int8": 1e-1}
CHECKED_STEPS = 20  # of a case of one step

Call = Callable[[], Any]  # gives the output, or with it the states


def implementations(case: Case) -> tuple[dict[str, Call], dict[str, float]]:
    """The functions to time by the names of TITLES, and the error of each.

    In a case of one step a call advances a state of its own, by the same input each time. An error
    is the largest absolute difference of an output from that of nn.LSTM in float64; over MOST_ERROR
    it raises AssertionError. To be called, as the functions are, under ``torch.no_grad()``.
    """
    torch.manual_seed(0)
    lstm = nn.LSTM(
        case.input_size, case.hidden_size, case.num_layers, bidirectional=case.bidirectional
    ).eval()
    checked = CHECKED_STEPS if case.steps == 1 else case.steps
    inputs = torch.randn(checked, case.batch, case.input_size)  # [T, B, D]
    right = copy.deepcopy(lstm).double()(inputs.double())[0]
    if case.steps > 1:
        calls = _calls(case, lstm, inputs)
        found = {name: _tensor(call()) for name, call in calls.items()}
    else:
        x = torch.empty(1, case.batch, case.input_size)
        calls = _steps(case, lstm, x)
        found = {name: _outputs_of_steps(call, x, inputs) for name, call in calls.items()}
    return calls, errors(case, found, right)


def errors(case: Case, found: Mapping[str, Tensor], right: Tensor) -> dict[str, float]:
    """The error of each output [T, B, features] beside the right one; see ``implementations``."""
    kept = {}
    for name, output in found.items():
        kept[name] = float((output.double() - right).abs().max())
        most = MOST_ERROR[arithmetic(name)]
        what = f"{case.name}: the output of {name} is off by {kept[name]:.2e}"
        assert kept[name] <= most, f"{what}, must be at most {most:.0e}"  # NaN fails, too
    return kept


def arithmetic(name: str) -> str:
    """The format of an implementation's weights."""
    return next((found for found in MOST_ERROR if name.endswith(f"-{found}")), "float32")


def _calls(case: Case, lstm: nn.LSTM, x: Tensor) -> dict[str, Call]:
    """Of whole sequences x [T, B, D], from a state of zeros."""
    calls = {name: partial(layer, x) for name, layer in _layers(lstm, FusedLSTM).items()}
    if onnx_lstm.onnxruntime:
        calls["onnxruntime"] = onnx_lstm.runner(lstm, x, case.threads)
        calls["onnxruntime-int8"] = onnx_lstm.runner(lstm, x, case.threads, quantized=True)
    return _in_order(calls)


def _steps(case: Case, lstm: nn.LSTM, x: Tensor) -> dict[str, Call]:
    """Of steps by x [1, B, D], whose data each call reads anew."""
    calls: dict[str, Call] = {}
    layers = _layers(lstm, FusedLSTM)
    if case.model == "cell":
        cell = nn.LSTMCell(case.input_size, case.hidden_size).eval()
        names = {name: f"{name}_l0" for name in cell.state_dict()}
        cell.load_state_dict({name: lstm.state_dict()[names[name]] for name in names})
        for name, one in _layers(cell, FusedLSTMCell).items():
            calls[name] = _cell_stepper(one, x[0])
    else:
        calls |= {name: _stepper(layer, x) for name, layer in layers.items()}
    for weights in FORMATS:
        calls[f"stream-{weights}"] = partial(layers[f"frozen-{weights}"].stream(case.batch), x[0])
    if onnx_lstm.onnxruntime:
        calls["onnxruntime"] = onnx_lstm.stepper(lstm, x, case.threads)
        calls["onnxruntime-bound"] = onnx_lstm.bound_stepper(lstm, x, case.threads)
        calls["onnxruntime-int8"] = onnx_lstm.stepper(lstm, x, case.threads, quantized=True)
    return _in_order(calls)


def _layers(reference: nn.Module, fused_class: type[nn.Module]) -> dict[str, nn.Module]:
    """The modules that are called as the reference is: itself, quantised by torch, ours."""
    if isinstance(reference, nn.LSTM):
        sizes = (reference.input_size, reference.hidden_size, reference.num_layers)
        fused = fused_class(*sizes, bidirectional=reference.bidirectional)
    else:
        fused = fused_class(reference.input_size, reference.hidden_size)
    fused.load_state_dict(reference.state_dict())
    return {
        "nn": reference,
        "dynamic-float16": _quantized(reference, torch.float16),
        "dynamic-int8": _quantized(reference, torch.qint8),
        "fused": fused.eval(),
        **{f"frozen-{weights}": fused_lstm.freeze(fused, weights=weights) for weights in FORMATS},
    }


def _quantized(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        # It exchanges the children of what it is given
        parent = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(module), {type(module)}, dtype=dtype
        )
    return parent[0]


def _stepper(layer: nn.Module, x: Tensor) -> Call:
    state = None

    def step() -> Tensor:
        nonlocal state
        output, state = layer(x, state)
        return output

    return step


def _cell_stepper(cell: nn.Module, x: Tensor) -> Call:
    state = None

    def step() -> Tensor:
        nonlocal state
        state = cell(x, state)
        return state[0]

    return step


def _outputs_of_steps(step: Call, x: Tensor, inputs: Tensor) -> Tensor:
    """The outputs [T, B, H] of a step by each of the inputs [T, B, D] in turn; x is left random."""
    outputs = []
    for of_step in inputs:
        x.copy_(of_step)
        outputs.append(_tensor(step()).clone().reshape(inputs.size(1), -1))
    return torch.stack(outputs)


def _tensor(result: Any) -> Tensor:
    """The output of a call: torch gives it with the states, onnxruntime in a tuple or alone."""
    return torch.as_tensor(result[0] if isinstance(result, tuple) else result)


def _in_order(calls: dict[str, Call]) -> dict[str, Call]:
    return {name: calls[name] for name in TITLES if name in calls}
