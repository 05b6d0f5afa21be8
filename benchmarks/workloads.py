"""Turns a case into functions to time: the same model on nn.LSTM, FusedLSTM, onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks import onnx_lstm
from benchmarks.cases import Case
from fused_lstm import FusedLSTM, FusedLSTMCell
from fused_lstm.models import LSTMClassifier, LSTMSequencePredictor, Seq2Seq

# The relative norm of the difference over which two results are not the same function's.
# Gradients of hundreds of 16-bit steps lie near 1e-2 apart, TF32 near 1e-3; a wrong one near 1.
TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2, "float16": 2e-2}

Call = Callable[[], tuple[Any, ...]]  # of tensors, or of onnxruntime's arrays
Inputs = tuple[Tensor | PackedSequence, ...]


class Implementation(NamedTuple):
    """The two classes that a model is built on."""

    layer: type[nn.Module]
    cell: type[nn.Module]


REFERENCE = Implementation(nn.LSTM, nn.LSTMCell)
FUSED = Implementation(FusedLSTM, FusedLSTMCell)


def contestants(case: Case) -> dict[str, Call]:
    """The functions of a case by name, on equal weights and the same inputs.

    "nn" is first and "fused" last. Between them stand "onnxruntime" where it can do the case and
    is installed, and "kept" where "fused" recomputes: the same without. Each call returns what it
    computed: outputs in inference, gradients in training.
    """
    torch.manual_seed(0)
    inputs = _inputs(case)
    reference = _model(case, REFERENCE)
    fused = _model(case, FUSED)
    fused.load_state_dict(reference.state_dict())
    if case.training:
        incoming = torch.randn_like(_outputs(reference, inputs))
        backward = partial(_forward_backward, case, inputs, incoming)
        found = {"nn": backward(reference)}
        if case.recompute:
            found["kept"] = backward(copy.deepcopy(fused))
            fused.recompute = True
        return {**found, "fused": backward(fused)}
    run = _streaming_cell if case.model == "cell" else _forward
    found = {"nn": run(inputs, reference)}
    if case.in_onnx and onnx_lstm.version() is not None:
        found["onnxruntime"] = onnx_lstm.runner(reference, inputs[0], case.threads)
    return {**found, "fused": run(inputs, fused)}


def check_agreement(case: Case, calls: Mapping[str, Call]) -> None:
    """Raise AssertionError unless all give the same result: speed alone is nothing."""
    limit = TOLERANCE[case.dtype]
    reference, *others = calls
    right = calls[reference]()
    for name in others:
        for index, (expected, actual) in enumerate(zip(right, calls[name](), strict=True)):
            expected, actual = expected.float(), torch.as_tensor(actual).float()
            scale = expected.norm().clamp_min(torch.finfo(torch.float32).tiny)
            error = float((actual - expected).norm() / scale)
            if not error <= limit:  # not "error > limit", which lets NaN pass
                raise AssertionError(
                    f"{case.name}: result {index} of {name} is {error:.2e} away from "
                    f"nn.LSTM's, over {limit:.0e}"
                )


def peak_bytes(run: Call) -> int:
    """Bytes of GPU memory that one call needs beyond what is allocated before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _model(case: Case, on: Implementation) -> nn.Module:
    sizes = (case.input_size, case.hidden_size)
    model: nn.Module
    if case.model == "layer":
        model = on.layer(*sizes, num_layers=case.num_layers, bidirectional=case.bidirectional)
    elif case.model == "cell":
        model = on.cell(*sizes)
    elif case.model == "classifier":
        model = LSTMClassifier(*sizes, 10, lstm=on.layer)
    elif case.model == "predictor":
        model = LSTMSequencePredictor(*sizes, 1, lstm=on.layer)
    else:
        model = Seq2Seq(*sizes, case.input_size, lstm=on.layer)
    model = model.to(case.device, getattr(torch, case.dtype))
    return model.train(case.training)


def _inputs(case: Case) -> Inputs:
    def random(*shape: int) -> Tensor:
        values = torch.randn(shape)
        return values.to(case.device, getattr(torch, case.dtype))

    if case.model == "cell":
        state = (random(case.batch, case.hidden_size), random(case.batch, case.hidden_size))
        return (random(case.batch, case.input_size).requires_grad_(case.training), *state)
    if case.model == "seq2seq":  # [B, T, D] each: source and target
        return tuple(random(case.batch, case.steps, case.input_size) for _ in range(2))
    if case.model != "layer":  # [B, T, D]
        return (random(case.batch, case.steps, case.input_size),)
    dense = random(case.steps, case.batch, case.input_size)  # [T, B, D]
    if not case.packed:
        return (dense.requires_grad_(case.training),)
    packed = pack_padded_sequence(dense, torch.tensor(case.lengths))
    return (PackedSequence(packed.data.requires_grad_(case.training), packed.batch_sizes),)


def _outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    """The tensor that the task behind would use: the logits, the output, the cell's new h."""
    if isinstance(model, (nn.LSTMCell, FusedLSTMCell)):
        x, h, c = inputs
        new_h: Tensor = model(x, (h, c))[0]
        return new_h
    result = model(*inputs)
    if isinstance(result, tuple):  # a layer: output, (h_n, c_n)
        result = result[0]
    values: Tensor = result.data if isinstance(result, PackedSequence) else result
    return values


def _forward(inputs: Inputs, model: nn.Module) -> Call:
    @torch.no_grad()
    def run() -> tuple[Tensor, ...]:
        return (_outputs(model, inputs),)

    return run


def _streaming_cell(inputs: Inputs, cell: nn.Module) -> Call:
    x, *state = inputs

    @torch.no_grad()
    def run() -> tuple[Tensor, ...]:
        nonlocal state
        state = cell(x, tuple(state))
        return tuple(state)

    return run


def _forward_backward(case: Case, inputs: Inputs, incoming: Tensor, model: nn.Module) -> Call:
    wanted: list[Tensor] = list(model.parameters())
    if case.model in ("layer", "cell"):  # inside a network, so its input has a gradient too
        first = inputs[0]
        wanted.append(first.data if isinstance(first, PackedSequence) else first)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_outputs(model, inputs), wanted, incoming)

    return run
