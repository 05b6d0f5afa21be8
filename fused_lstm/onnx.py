"""ONNX: the operators as the standard operator LSTM, for `torch.onnx.export(dynamo=True)`.

Registered with the exporter when it is first used, in packages that call it themselves too. Should
a release of torch have moved its registry:

    torch.onnx.export(
        model, args, dynamo=True, custom_translation_table=fused_lstm.onnx.TRANSLATIONS
    )

Needs the package onnxscript (`pip install fused_lstm[onnx]`), as torch.onnx.export itself does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18

from fused_lstm import _torch

# A tensor of the graph that is being built; onnxscript has no annotations for them.
Value = Any
op: Any = opset18  # its annotations refuse the constants that it takes
INT32 = 6  # onnx.TensorProto.INT32


def _layer(
    input: Value,
    h_0: Value | None,
    c_0: Value | None,
    weights: Sequence[Value],
    *,
    batch_sizes: Value | None = None,
    lengths: Value | None = None,
    reset: Value | None = None,
    reset_to_initial: bool = False,
    keep_states: bool = False,
    recompute: bool = False,
) -> tuple[Value, ...]:
    """`ops.layer`: ONNX has neither its resets nor its inner states."""
    several = len(weights) > 5 or (len(weights) == 4 and len(weights[2].shape) == 2)
    directions = 2 if several else 1
    for name, asked, instead in (
        ("reset", reset is not None, "run each episode on its own"),
        ("return_states", keep_states, "export the model without them"),
        ("a PackedSequence", batch_sizes is not None, "pass padded input with lengths="),
        (
            "proj_size",
            len(weights) // directions % 2 == 1,
            "export nn.Linear behind a layer without it",
        ),
    ):
        if asked:
            raise NotImplementedError(
                f"ONNX's operator LSTM has no counterpart of {name}: {instead}"
            )
    hidden_size = weights[0].shape[0] // 4
    results = _lstm(input, h_0, c_0, weights, lengths, directions, hidden_size)
    return *results, _nothing(), _nothing()


def _stack(
    input: Value,
    h_0: Value | None,
    c_0: Value | None,
    weights: Sequence[Value],
    num_layers: int,
    **options: Any,
) -> tuple[Value, ...]:
    """`ops.stack`: layer after layer."""
    each = len(weights) // num_layers
    outputs, h_n, c_n = [input], [], []
    for k in range(num_layers):
        h, c = (None if s is None else op.Gather(s, [k], axis=0) for s in (h_0, c_0))
        of_layer = weights[k * each : (k + 1) * each]
        output, h, c, _, _ = _layer(outputs[-1], h, c, of_layer, **options)
        outputs.append(output)
        h_n.append(h)
        c_n.append(c)
    lower = [op.Unsqueeze(output, [0]) for output in outputs[1:-1]]
    lower_outputs = _joined(lower, axis=0) if lower else _nothing()
    final = (_joined(h_n, axis=0), _joined(c_n, axis=0))
    return outputs[-1], *final, lower_outputs, _nothing(), _nothing()


def _cell(
    input: Value, h_0: Value, c_0: Value, weights: Sequence[Value], *, keep_states: bool = False
) -> tuple[Value, ...]:
    """`ops.cell`: a layer of one step."""
    if keep_states:
        raise NotImplementedError("ONNX's operator LSTM keeps neither cell states nor gates")
    one = [op.Unsqueeze(tensor, [0]) for tensor in (input, h_0, c_0)]
    _, h_n, c_n = _lstm(one[0], one[1], one[2], weights, None, 1, c_0.shape[1])
    return op.Squeeze(h_n, [0]), op.Squeeze(c_n, [0]), _nothing(), _nothing()


def _lstm(
    input: Value,  # [T, B, D]
    h_0: Value | None,  # [directions, B, H]; both: zero if None
    c_0: Value | None,  # [directions, B, H]
    weights: Sequence[Value],
    lengths: Value | None,  # [B]
    directions: int,
    hidden_size: int,
) -> tuple[Value, Value, Value]:
    """output [T, B, directions * H], h_n and c_n [directions, B, H]."""
    each = len(weights) // directions
    w_ih, w_hh, *biases = (
        _joined([op.Unsqueeze(_in_order(w, hidden_size), [0]) for w in weights[k::each]], axis=0)
        for k in range(each)
    )
    steps, h_n, c_n = op.LSTM(
        input,
        w_ih,  # [directions, 4H, D]
        w_hh,  # [directions, 4H, H]
        _joined(biases, axis=1) if biases else None,  # [directions, 8H]
        None if lengths is None else op.Cast(lengths, to=INT32),
        h_0,
        c_0,
        hidden_size=hidden_size,
        direction="bidirectional" if directions == 2 else "forward",
    )
    # [T, directions, B, H] to [T, B, directions * H]
    output = op.Reshape(op.Transpose(steps, perm=[0, 2, 1, 3]), [0, 0, -1])
    return output, h_n, c_n


def _in_order(weight: Value, hidden_size: int) -> Value:
    """The rows i f g o of PyTorch in ONNX's order i o f g."""
    rows = torch.arange(4 * hidden_size).view(4, hidden_size)[[0, 3, 1, 2]]
    return op.Gather(weight, rows.flatten().tolist(), axis=0)


def _nothing() -> Value:
    """In place of cells and of gates, which are empty where they are not kept."""
    return op.Constant(value_float=0.0)


def _joined(values: Sequence[Value], axis: int) -> Value:
    return values[0] if len(values) == 1 else op.Concat(*values, axis=axis)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.fused_lstm.layer.default: _layer,
    torch.ops.fused_lstm.stack.default: _stack,
    torch.ops.fused_lstm.cell.default: _cell,
}
"""What torch.onnx.export takes as `custom_translation_table`."""


def register() -> None:
    """Makes TRANSLATIONS known to the exporter; `import fused_lstm` sees to it."""
    for operator, translation in TRANSLATIONS.items():
        _torch.register_onnx(operator, translation)
