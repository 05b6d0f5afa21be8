"""torch.utils.flop_counter: the multiplications and additions of the operators' matrix products.

As FlopCounterMode counts the products of nn.LSTMCell, and of nn.LSTM where it sees them: on a CPU
with `torch.backends.mkldnn` disabled, but for one thing. A sequence's first step has no gradient to
pass on to a state that needs none, in either direction, packed or not. Steps past the end in
`lengths` count; elementwise operations never do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from fused_lstm.reference import directions_of


def _gates(rows: int, weights: Sequence[Tensor]) -> int:
    """weight_ih [4H, D] and weight_hh [4H, P] times the input and the hidden state of each row."""
    return sum(2 * rows * weight.numel() for weight in weights[:2])


def _projection(rows: int, weights: Sequence[Tensor]) -> int:
    """weight_hr [P, H], last of an odd number of weights."""
    return 2 * rows * weights[-1].numel() if len(weights) % 2 else 0


def _forward(input: Tensor, parts: Sequence[Sequence[Tensor]]) -> int:
    """input [..., D]; `parts` are the weights of each direction or layer."""
    rows = input.shape[:-1].numel()
    return sum(_gates(rows, each) + _projection(rows, each) for each in parts)


def _backward(
    input: Tensor,
    h_0: Tensor | None,
    parts: Sequence[Sequence[Tensor]],
    batch_sizes: Tensor | None,
    recomputed: bool,
    inputs_needed: Sequence[bool],
    weights_needed: bool,
) -> int:
    rows, total = input.shape[:-1].numel(), 0
    back = rows  # to a hidden state before
    if h_0 is None:
        back -= input.size(-2) if batch_sizes is None else int(batch_sizes[0])
    elif not h_0.requires_grad:
        back -= h_0.size(-2)
    for each, input_needed in zip(parts, inputs_needed, strict=True):
        w_ih, w_hh = each[:2]
        total += 2 * back * w_hh.numel() + _projection(rows, each)
        total += 2 * rows * w_ih.numel() if input_needed else 0
        total += _gates(rows, each) + _projection(rows, each) if weights_needed else 0
        total += _gates(rows, each) if recomputed else 0
    return total


def _by_direction(h_0: Tensor | None, weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """h_0 is [directions, B, P], [B, P] of a cell, or None."""
    is_cell = h_0 is not None and h_0.dim() == 2
    return _divided(weights, 1 if is_cell else directions_of(h_0, weights))


def _divided(weights: Sequence[Tensor], parts: int) -> list[Sequence[Tensor]]:
    each = len(weights) // parts
    return [weights[k : k + each] for k in range(0, len(weights), each)]


@register_flop_formula([torch.ops.fused_lstm.layer, torch.ops.fused_lstm.cell], get_raw=True)
def _forward_flops(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    **options: Any,
) -> int:
    return _forward(input, _by_direction(h_0, weights))


@register_flop_formula(torch.ops.fused_lstm.layer_backward, get_raw=True)
def _layer_backward_flops(
    *arguments: Any,
    batch_sizes: Tensor | None = None,
    input_needed: bool = True,
    weights_needed: bool = True,
    **options: Any,
) -> int:
    input, h_0, _, weights, _, _, gates = arguments[5:]
    parts = _by_direction(h_0, weights)
    needed = [input_needed] * len(parts)
    return _backward(input, h_0, parts, batch_sizes, gates is None, needed, weights_needed)


@register_flop_formula(torch.ops.fused_lstm.stack, get_raw=True)
def _stack_flops(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    **options: Any,
) -> int:
    return _forward(input, _divided(weights, num_layers))


@register_flop_formula(torch.ops.fused_lstm.stack_backward, get_raw=True)
def _stack_backward_flops(
    *arguments: Any,
    batch_sizes: Tensor | None = None,
    input_needed: bool = True,
    weights_needed: bool = True,
    **options: Any,
) -> int:
    input, h_0, _, weights, num_layers, _, _, _, gates = arguments[3:]
    parts = _divided(weights, num_layers)
    needed = [input_needed] + [True] * (num_layers - 1)
    return _backward(input, h_0, parts, batch_sizes, gates is None, needed, weights_needed)


@register_flop_formula(torch.ops.fused_lstm.frozen_lstm, get_raw=True)
def _frozen_lstm_flops(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    packed: Sequence[Tensor],
    hidden_size: int,
    proj_size: int,
    bidirectional: bool,
    **options: Any,
) -> int:
    rows, features = input.shape[:-1].numel(), input.size(-1)
    P, directions, total = proj_size or hidden_size, 2 if bidirectional else 1, 0
    for _ in packed:
        weights = 4 * hidden_size * (features + P) + proj_size * hidden_size
        total += 2 * rows * directions * weights
        features = directions * P
    return total
