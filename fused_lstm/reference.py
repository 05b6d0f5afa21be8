"""The reference: the layer in plain PyTorch.

It is the oracle of every test, the documentation of the maths, and what runs where the fused
operators cannot: under `torch.func` transforms, forward-mode derivatives and double backward.

    i = sigmoid(x W_ii' + b_ii + h W_hi' + b_hi)      f, o likewise
    g = tanh(x W_ig' + b_ig + h W_hg' + b_hg)
    c = f * c + i * g          h = o * tanh(c), times W_hr' if the layer has a projection

(torch.nn.LSTM's equations; Hochreiter and Schmidhuber 1997, Gers et al. 2000, Sak et al. 2014.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def layer(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to_initial: bool = False,
    keep_states: bool = True,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `ops.layer` computes; arguments and results as there.

    The states are always kept, and nothing is recomputed.
    """
    if lengths is not None:  # what stands in the padding, NaN even, must not reach a gradient
        ended = torch.arange(input.size(0), device=input.device).unsqueeze(1) >= lengths  # [T, B]
        input = input.masked_fill(ended.unsqueeze(2), 0.0)
    steps = input.unbind(0) if batch_sizes is None else input.split(batch_sizes.tolist())
    directions = directions_of(h_0, weights)
    each = len(weights) // directions
    h_0 = _given(h_0, input, directions, steps, weights[1].size(1))
    c_0 = _given(c_0, input, directions, steps, weights[0].size(0) // 4)
    accum = torch.promote_types(input.dtype, torch.float32)
    cell_type = torch.promote_types(input.dtype, c_0.dtype)
    c_0 = c_0.to(accum)
    join = torch.stack if batch_sizes is None else torch.cat

    results = []
    for d in range(directions):
        w_ih, w_hh, *rest = (w.to(accum) for w in weights[d * each : (d + 1) * each])
        b_ih, b_hh = rest[:2] if each >= 4 else (None, None)  # [4H]
        w_hr = rest[-1] if each % 2 else None  # [P, H]
        h, c = h_0[d], c_0[d]  # [B, P], [B, H]
        outputs, cells, gates = list(steps), list(steps), list(steps)
        for t in reversed(range(len(steps))) if d else range(len(steps)):
            n = steps[t].size(0)  # of a packed sequence, the first n are still running
            valid, starts = _masks(t, d, len(steps), lengths, reset)
            h_in, c_in = h[:n], c[:n]
            if starts is not None:
                h_in = torch.where(starts, h_0[d] if reset_to_initial else 0.0, h_in)
                c_in = torch.where(starts, c_0[d] if reset_to_initial else 0.0, c_in)
            x, h_in = steps[t].to(accum), h_in.to(accum)  # [n, D], [n, P]
            a = F.linear(x, w_ih, b_ih) + F.linear(h_in, w_hh, b_hh)  # [n, 4H]
            i, f, g, o = a.chunk(4, dim=-1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c_out = f * c_in + i * g
            h_out = (o * c_out.tanh()).to(input.dtype)
            if w_hr is not None:
                h_out = F.linear(h_out.to(accum), w_hr).to(input.dtype)
            gate = torch.cat([i, f, g, o], dim=-1).to(input.dtype)
            outputs[t], gates[t] = h_out, gate
            if valid is not None:
                outputs[t], gates[t] = (torch.where(valid, x, 0.0) for x in (h_out, gate))
                h_out, c_out = torch.where(valid, h_out, h[:n]), torch.where(valid, c_out, c[:n])
            cells[t] = c_out
            h, c = torch.cat([h_out, h[n:]]), torch.cat([c_out, c[n:]])
        results.append((join(outputs), h, c.to(cell_type), join(cells), join(gates)))
    output, h_n, c_n, all_cells, all_gates = zip(*results, strict=True)
    return (
        torch.cat(output, dim=-1),
        torch.stack(h_n),
        torch.stack(c_n),
        torch.stack(all_cells),
        torch.stack(all_gates),
    )


def stack(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    *,
    layer: Callable[..., tuple[Tensor, ...]] = layer,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `ops.stack` computes, by calls of `layer`; arguments, options and results as there."""
    each = len(weights) // num_layers
    results = []
    for k in range(num_layers):
        states = [None if state is None else state[k : k + 1] for state in (h_0, c_0)]
        results.append(layer(input, *states, weights[k * each : (k + 1) * each], **options))
        input = results[-1][0]
    *lower, output = (result[0] for result in results)
    h_n, c_n, cells, gates = (torch.cat(kind) for kind in list(zip(*results, strict=True))[1:])
    lower_outputs = torch.stack(lower) if lower else output.new_empty((0, *output.shape))
    return output, h_n, c_n, lower_outputs, cells, gates


def directions_of(h_0: Tensor | None, weights: Sequence[Tensor]) -> int:
    """1 or 2, as h_0 [directions, B, P] has; without it as `weights`, [4H, D] and so on, say."""
    if h_0 is not None:
        return h_0.size(0)
    return 2 if len(weights) > 5 or (len(weights) == 4 and weights[2].dim() == 2) else 1


def _given(
    state: Tensor | None, input: Tensor, directions: int, steps: Sequence[Tensor], features: int
) -> Tensor:
    """The state [directions, B, features], zero if it is absent."""
    if state is not None:
        return state
    return input.new_zeros(directions, steps[0].size(0), features)


def _masks(
    t: int, direction: int, length: int, lengths: Tensor | None, reset: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Which sequences have a step t, and which start an episode before it; [B, 1] each, or None.

    An episode boundary before step t of the sequence is, for the reverse direction, between its
    steps t and t - 1.
    """
    valid = None if lengths is None else (t < lengths).unsqueeze(-1)
    boundary = t + direction
    if reset is None or boundary >= length:
        return valid, None
    starts = reset[boundary].unsqueeze(-1)
    return valid, starts if lengths is None else starts & (boundary < lengths).unsqueeze(-1)


def cell(
    input: Tensor, h_0: Tensor, c_0: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What `ops.cell` computes: input [B, D], h_0 [B, H], c_0 [B, H] to the next two."""
    _, h_n, c_n, _, _ = layer(input[None], h_0[None], c_0[None], weights)
    return h_n[0], c_n[0]
