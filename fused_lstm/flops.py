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


def _forward(input: Tensor, h_0: Tensor | None, weights: Sequence[Tensor]) -> int:
    """input [..., D]; h_0 [directions, B, P] or [B, P] of a cell, None: zero."""
    rows = input.shape[:-1].numel()
    return sum(_gates(rows, each) + _projection(rows, each) for each in _by_direction(h_0, weights))


def _backward(
    input: Tensor,
    h_0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    recomputed: bool,
    input_needed: bool,
    weights_needed: bool,
) -> int:
    rows, total = input.shape[:-1].numel(), 0
    back = rows  # to a hidden state before
    if h_0 is None:
        back -= input.size(-2) if batch_sizes is None else int(batch_sizes[0])
    elif not h_0.requires_grad:
        back -= h_0.size(-2)
    for each in _by_direction(h_0, weights):
        w_ih, w_hh = each[:2]
        total += 2 * back * w_hh.numel() + _projection(rows, each)
        total += 2 * rows * w_ih.numel() if input_needed else 0
        total += _gates(rows, each) + _projection(rows, each) if weights_needed else 0
        total += _gates(rows, each) if recomputed else 0
    return total


def _by_direction(h_0: Tensor | None, weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    is_cell = h_0 is not None and h_0.dim() == 2
    each = len(weights) // (1 if is_cell else directions_of(h_0, weights))
    return [weights[k : k + each] for k in range(0, len(weights), each)]


@register_flop_formula([torch.ops.fused_lstm.layer, torch.ops.fused_lstm.cell], get_raw=True)
def _forward_flops(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    **options: Any,
) -> int:
    return _forward(input, h_0, weights)


@register_flop_formula(torch.ops.fused_lstm.layer_backward, get_raw=True)
def _layer_backward_flops(
    *arguments: Any,
    batch_sizes: Tensor | None = None,
    input_needed: bool = True,
    weights_needed: bool = True,
    **options: Any,
) -> int:
    input, h_0, _, weights, _, _, gates = arguments[5:]
    return _backward(input, h_0, weights, batch_sizes, gates is None, input_needed, weights_needed)


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
