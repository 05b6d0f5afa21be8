"""A case as functions to time: the same model on nn.LSTM, FusedLSTM and onnxruntime."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks import onnx_lstm
from benchmarks.cases import Case
from fused_lstm import FusedLSTM, FusedLSTMCell
from fused_lstm.models import LSTMClassifier, LSTMSequencePredictor, Seq2Seq

# The relative norm of the difference from which two results do not agree. Gradients of hundreds
# of 16-bit steps differ by about 1e-2, those in TF32 by 1e-3; a wrong gradient by about 1.
TOLERANCE = {"float32": 5e-3, "bfloat16": 5e-2, "float16": 2e-2}

Call = Callable[[], tuple[Any, ...]]  # gives outputs in inference, gradients in training


def implementations(case: Case) -> dict[str, Call]:
    """The functions to time by name, on equal weights and inputs: "nn" first and "fused" last.

    Between them "onnxruntime", if installed; "kept", which is "fused" without recompute; "padded",
    which is "fused" on a batch without padding that has as many rows as the packed one.
    """
    torch.manual_seed(0)
    inputs = _inputs(case)
    reference = _model(case, nn.LSTM, nn.LSTMCell)
    fused = _model(case, FusedLSTM, FusedLSTMCell)
    fused.load_state_dict(reference.state_dict())
    run = _gradients if case.training else _forward
    found = {"nn": run(case, inputs, reference)}
    if case.in_onnx and onnx_lstm.onnxruntime:
        found["onnxruntime"] = onnx_lstm.runner(reference, inputs[0], case.threads)
    if case.recompute:
        found["kept"] = run(case, inputs, copy.deepcopy(fused))
        fused.recompute = True
    if case.packed:
        full = replace(case, packed=False, steps=round(sum(case.lengths) / case.batch))
        found["padded"] = run(full, _inputs(full), fused)
    return {**found, "fused": run(case, inputs, fused)}


def check_agreement(case: Case, calls: Mapping[str, Call]) -> None:
    """Raise AssertionError unless all but "padded", of other inputs, give nn.LSTM's result."""
    right, limit = calls["nn"](), TOLERANCE[case.dtype]
    for name in (name for name in calls if name not in ("nn", "padded")):
        for index, (expected, actual) in enumerate(zip(right, calls[name](), strict=True)):
            difference = torch.as_tensor(actual).float() - expected.float()
            error = float(difference.norm() / expected.float().norm().clamp_min(1e-30))
            what = f"{case.name}: result {index} of {name} is {error:.2e} away from nn.LSTM's"
            assert error <= limit, f"{what}, over {limit:.0e}"  # NaN fails, too


def peak_bytes(run: Call) -> int:
    """Bytes of GPU memory that one call needs beyond what is allocated before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _model(case: Case, layer: type[nn.Module], cell: type[nn.Module]) -> nn.Module:
    layers = {"num_layers": case.num_layers, "bidirectional": case.bidirectional}
    kind, *arguments = {
        "layer": (partial(layer, **layers),),
        "cell": (cell,),
        "classifier": (partial(LSTMClassifier, lstm=layer), 10),
        "predictor": (partial(LSTMSequencePredictor, lstm=layer), 1),
        "seq2seq": (partial(Seq2Seq, lstm=layer), case.input_size),
    }[case.model]
    model = kind(case.input_size, case.hidden_size, *arguments)
    return model.to(case.device, getattr(torch, case.dtype)).train(case.training)


def _inputs(case: Case) -> tuple[Any, ...]:
    """Of a layer x [T, B, D]; of a cell x [B, D], h and c [B, H]; of a model [B, T, D] each."""
    random = partial(torch.randn, device=case.device, dtype=getattr(torch, case.dtype))
    b, t, d, h = case.batch, case.steps, case.input_size, case.hidden_size
    if case.model == "cell":
        h_0, c_0 = random(b, h), random(b, h)
        return random(b, d).requires_grad_(case.training), h_0, c_0
    if case.model != "layer":  # seq2seq has a source and a target
        return tuple(random(b, t, d) for _ in range(1 + (case.model == "seq2seq")))
    x = random(t, b, d)
    if not case.packed:
        return (x.requires_grad_(case.training),)
    packed = pack_padded_sequence(x, torch.tensor(case.lengths))
    return (PackedSequence(packed.data.requires_grad_(case.training), packed.batch_sizes),)


def _output(case: Case, inputs: tuple[Any, ...], model: nn.Module) -> Tensor:
    """The tensor that the task behind would use: the logits, the output, the cell's new h."""
    result = model(inputs[0], inputs[1:]) if case.model == "cell" else model(*inputs)
    output = result[0] if isinstance(result, tuple) else result
    return output.data if case.packed else output


def _forward(case: Case, inputs: tuple[Any, ...], model: nn.Module) -> Call:
    def step() -> tuple[Tensor, ...]:
        nonlocal inputs
        inputs = (inputs[0], *model(inputs[0], inputs[1:]))  # from the last state
        return inputs[1:]

    call = step if case.model == "cell" else lambda: (_output(case, inputs, model),)
    return torch.no_grad()(call)


def _gradients(case: Case, inputs: tuple[Any, ...], model: nn.Module) -> Call:
    wrt = list(model.parameters())
    if case.model in ("layer", "cell"):  # inside a network, so its input has a gradient too
        wrt.append(inputs[0].data if case.packed else inputs[0])
    torch.manual_seed(1)  # the same gradient of the output for each implementation
    grad_output = torch.randn_like(_output(case, inputs, model))
    return lambda: torch.autograd.grad(_output(case, inputs, model), wrt, grad_output)
