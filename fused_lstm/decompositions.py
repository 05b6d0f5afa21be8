"""The operators in ATen operations, for compilers that know no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_lstm import ops, reference


def decompositions() -> dict[Callable[..., Any], Callable[..., Any]]:
    """torch.export's own table of decompositions, and those of the fused operators.

    For CoreML, TensorRT, ExecuTorch, LiteRT and others that take ATen operations only. Each layer
    becomes `reference.layer`, its loop over the T steps unrolled: T must be fixed, the batch need
    not be. `torch.compile` and AOTInductor go on with the fused operators.

    Returns:
        What `torch.export.ExportedProgram.run_decompositions` takes.

    Example:
        >>> program = torch.export.export(model, (x,))
        >>> program = program.run_decompositions(fused_lstm.decompositions())
    """
    return {**torch.export.default_decompositions(), **_TABLE}


def _layer(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    keep_states: bool = False,
    **options: Any,
) -> ops.Result:
    if batch_sizes is None and not isinstance(input.size(0), int):
        raise RuntimeError(
            f"input has {input.size(0)} time steps, must have a fixed number of them to be "
            "decomposed: the loop over them is unrolled"
        )
    output, h_n, c_n, cells, gates = reference.layer(
        input, h_0, c_0, weights, batch_sizes=batch_sizes, **options
    )
    if not keep_states:
        cells, gates = cells.new_empty(0), gates.new_empty(0)
    return output, h_n, c_n, cells, gates


def _stack(*arguments: Any, **options: Any) -> ops.StackResult:
    return reference.stack(*arguments, layer=_layer, **options)


def _cell(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: Sequence[Tensor],
    *,
    keep_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one = (input[None], h_0[None], c_0[None])
    _, h_n, c_n, cells, gates = _layer(*one, weights, keep_states=keep_states)
    if keep_states:
        cells, gates = cells[0, 0], gates[0, 0]
    return h_n[0], c_n[0], cells, gates


# Not in torch's global table: torch.compile would take them from there for dynamic sizes.
_TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.fused_lstm.layer.default: _layer,
    torch.ops.fused_lstm.stack.default: _stack,
    torch.ops.fused_lstm.cell.default: _cell,
}
