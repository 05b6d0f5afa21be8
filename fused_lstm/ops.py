"""The operators: public functions, then what torch.compile needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_lstm import _extension, _torch, reference  # noqa: F401  (before _C: it may not fit)
from fused_lstm._C import (  # csrc/operators/frozen_fragments.h
    frozen_keeps_fragments as frozen_keeps_fragments,
)
from fused_lstm._C import frozen_pack as frozen_pack  # csrc/operators/frozen.h
from fused_lstm._C import frozen_pack_fragments as frozen_pack_fragments
from fused_lstm._C import frozen_step as frozen_step
from fused_lstm._C import frozen_unpack as frozen_unpack
from fused_lstm._C import largest_stacked
from fused_lstm._C import make_stream as make_stream  # csrc/operators/stream_type.h
from fused_lstm._C import plain_cell as plain_cell  # csrc/operators/module_calls.h
from fused_lstm._C import plain_frozen as plain_frozen
from fused_lstm._C import plain_lstm as plain_lstm

Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
StackResult = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

# By type of device and bytes of an element, the largest hidden size of a stack whose layers may be
# computed at once: asked here, so that to torch.compile it is a constant
LARGEST_STACKED = {
    device: {size: H for size in (2, 4) if (H := largest_stacked(device, size))}
    for device in ("cpu", "cuda")
}


def _use_reference(
    input: Tensor, h_0: Tensor | None, c_0: Tensor | None, weights: Sequence[Tensor]
) -> bool:
    """The one place that decides between the fused operators and the reference.

    C++ autograd knows neither torch.func's transforms nor forward-mode derivatives, the kernels no
    complex numbers.
    """
    return (
        input.is_complex()
        or _torch.transforms_active(input, h_0, c_0, weights)
        or _torch.forward_mode(input, h_0, c_0, weights)
    )


def _under_autocast(tensor: Tensor) -> bool:
    device = tensor.device.type
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def largest_stacked_for(input: Tensor) -> int:
    """The largest hidden size of a stack that may be computed at once; 0: of none.

    Args:
        input: [T, B, D] or [N, D], the stack's.
    """
    device = input.device.type
    dtype = torch.get_autocast_dtype(device) if _under_autocast(input) else input.dtype
    return LARGEST_STACKED.get(device, {}).get(dtype.itemsize, 0)


def _by_reference(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    *,
    adds_to_state: bool,
    **options: Any,
) -> Result:
    """`reference.layer`; under autocast with the casts that csrc/operators/autocast.cpp has."""
    if not _under_autocast(input):
        return reference.layer(input, h_0, c_0, weights, **options)
    device = input.device.type
    lower = torch.get_autocast_dtype(device)
    if h_0 is None or c_0 is None:
        projected = len(weights) // reference.directions_of(None, weights) % 2 == 1
    else:
        projected = h_0.size(-1) != c_0.size(-1)
    promotes = device == "cpu" and (adds_to_state or projected)
    state = input.dtype if c_0 is None else c_0.dtype
    dtype = torch.promote_types(lower, state) if promotes else lower

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    with torch.autocast(device, enabled=False):
        output, h_n, c_n, cells, gates = reference.layer(
            cast(input),
            None if h_0 is None else cast(h_0),
            None if c_0 is None else cast(c_0),
            [cast(w) for w in weights],
            **options,
        )
        if projected and output.dtype != torch.float64:  # the hidden state is a product
            output, h_n = output.to(lower), h_n.to(lower)
    return output, h_n, c_n, cells, gates


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
    keep_states: bool = False,
    recompute: bool = False,
) -> Result:
    """One LSTM layer, one or two directions, over all time steps. Differentiable.

    T steps, B sequences, D input features, H hidden units, P features of the hidden state
    (proj_size, or H), N rows of a packed batch.

    Args:
        input: [T, B, D], or [N, D] with `batch_sizes`.
        h_0: [directions, B, P], the initial hidden state; None: zero.
        c_0: [directions, B, H], the initial cell state; in float32 too beside 16-bit input, and
            the final one is then in float32. None: zero.
        weights: for each direction weight_ih [4H, D], weight_hh [4H, P], then bias_ih and bias_hh
            [4H] if there are biases (in float32 too), then weight_hr [P, H] if there is a
            projection.
        batch_sizes: [T] int64 on the CPU, as a PackedSequence has it.
        lengths: [B] int64, on the input's device: steps of each sequence, 0 to T. Outputs past the
            end are zero; the final states are those of each sequence's own last step.
        reset: [T, B] bool: a new episode starts before this step. The reverse direction, which
            crosses the boundary from the other side, starts a new episode at the step before it.
        reset_to_initial: an episode starts from `h_0` and `c_0`, rather than from zero.
        keep_states: fill `cells` and `gates` even where no gradient needs them.
        recompute: keep neither `cells` nor `gates` for the backward, which computes them again.

    Returns:
        output [T, B, directions * P] or [N, directions * P]; the final hidden state
        [directions, B, P] and cell state [directions, B, H]; the cell state after each step,
        [directions, T, B, H] or [directions, N, H], in float32 or wider; and the activated gates
        i f g o, [directions, T, B, 4H] or [directions, N, 4H]. The last two are empty unless kept.

    Raises:
        RuntimeError: a shape, dtype or device that does not fit; the message names the argument.

    Equivalent to: `reference.layer`.
    """
    options = _given(batch_sizes, lengths, reset, reset_to_initial, keep_states, recompute)
    if _use_reference(input, h_0, c_0, weights):
        packed = batch_sizes is not None
        return _by_reference(input, h_0, c_0, weights, adds_to_state=packed, **options)
    result: Result = torch.ops.fused_lstm.layer.default(input, h_0, c_0, weights, **options)
    return result


def _given(
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_to_initial: bool,
    keep_states: bool,
    recompute: bool,
) -> dict[str, Any]:
    """The options that are given: the dispatcher takes its time for each."""
    options: dict[str, Any] = {}
    if batch_sizes is not None:
        options["batch_sizes"] = batch_sizes
    if lengths is not None:
        options["lengths"] = lengths
    if reset is not None:
        options["reset"] = reset
    if reset_to_initial:
        options["reset_to_initial"] = True
    if keep_states:
        options["keep_states"] = True
    if recompute:
        options["recompute"] = True
    return options


def stack(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: Sequence[Tensor],
    num_layers: int,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to_initial: bool = False,
    keep_states: bool = False,
    recompute: bool = False,
) -> StackResult:
    """Layers of one direction without projections, each the input of the next. Differentiable.

    What `layer` computes in as many calls; a device may take the layers at once, where
    `LARGEST_STACKED` says so. L layers; other letters as in `layer`.

    Args:
        input: [T, B, D], or [N, D] with `batch_sizes`.
        h_0: [L, B, H], the initial hidden states; None: zero.
        c_0: [L, B, H], the initial cell states; in float32 too beside 16-bit input, and the final
            ones are then in float32. None: zero.
        weights: for each layer weight_ih [4H, D], or [4H, H] of an upper one, weight_hh [4H, H],
            then bias_ih and bias_hh [4H] if there are biases (in float32 too).
        num_layers: L.
        batch_sizes [T], lengths [B], reset [T, B], reset_to_initial: as in `layer`.
        keep_states: fill `cells` and `gates` even where no gradient needs them.
        recompute: keep neither `cells` nor `gates` for the backward, which computes those of all
            layers again.

    Returns:
        output [T, B, H] or [N, H] of the last layer; the final hidden and cell states [L, B, H];
        the outputs of the other layers, [L - 1, T, B, H] or [L - 1, N, H]; the cell state after
        each step, [L, T, B, H] or [L, N, H], in float32 or wider; and the activated gates i f g o,
        [L, T, B, 4H] or [L, N, 4H]. The last two are empty unless kept. The first three alone are
        differentiable.

    Raises:
        RuntimeError: a shape, dtype or device that does not fit; the message names the argument.

    Equivalent to: L calls of `reference.layer`.
    """
    options = _given(batch_sizes, lengths, reset, reset_to_initial, keep_states, recompute)
    if _use_reference(input, h_0, c_0, weights):
        packed = batch_sizes is not None
        one = partial(_by_reference, adds_to_state=packed)
        return reference.stack(input, h_0, c_0, weights, num_layers, layer=one, **options)
    result: StackResult = torch.ops.fused_lstm.stack.default(
        input, h_0, c_0, weights, num_layers, **options
    )
    return result


def cell(
    input: Tensor, h_0: Tensor, c_0: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM: input [B, D], h_0 [B, H], c_0 [B, H] to the next two.

    `weights` are weight_ih [4H, D], weight_hh [4H, H] and, if there are biases, bias_ih and
    bias_hh [4H]. Differentiable. Raises RuntimeError as `layer` does. A cell state wider than the
    rest makes both results as wide, as in nn.LSTMCell.

    Equivalent to: `reference.cell`.
    """
    if c_0.dtype != input.dtype and not _under_autocast(input):
        dtype = torch.promote_types(input.dtype, c_0.dtype)
        others = [h_0, *weights]
        if dtype != input.dtype and all(other.dtype == input.dtype for other in others):
            input, h_0, *weights = (tensor.to(dtype) for tensor in (input, *others))
    if _use_reference(input, h_0, c_0, weights):
        one = (input[None], h_0[None], c_0[None])
        _, h_n, c_n, _, _ = _by_reference(*one, weights, adds_to_state=True)
        return h_n[0], c_n[0]
    h_n, c_n, _, _ = torch.ops.fused_lstm.cell.default(input, h_0, c_0, weights)
    return h_n, c_n


def frozen_lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    packed: Sequence[Tensor],
    hidden_size: int,
    proj_size: int,
    bidirectional: bool,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to_initial: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """A stack of frozen layers over all time steps, for inference.

    T steps, B sequences, P = proj_size or hidden_size, L layers, n = 2 if bidirectional else 1.

    Args:
        input: [T, B, D], or [N, D] with `batch_sizes`; float32, bfloat16 or float16.
        hx: the initial states [n L, B, P] and [n L, B, H], each in one of these dtypes; or None.
        packed: the bytes of each layer, [bytes] uint8, as `frozen_pack` makes them; or, on a GPU,
            each layer's tensors, as `frozen_pack_fragments` makes them.
        hidden_size, proj_size, bidirectional: as in FusedLSTM.
        batch_sizes [T], lengths [B], reset [T, B], reset_to_initial: as in `layer`.

    Returns:
        output [T, B, n P] or [N, n P], h_n [n L, B, P], c_n [n L, B, H], in the input's dtype;
        c_n in c_0's if that is wider.

    Raises:
        RuntimeError: an argument that does not fit, or one that requires grad where grad is
            enabled; the message names it.
    """
    h_0, c_0 = hx if hx is not None else (None, None)
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.fused_lstm.frozen_lstm.default(
        input,
        h_0,
        c_0,
        packed,
        hidden_size,
        proj_size,
        bidirectional,
        batch_sizes=batch_sizes,
        lengths=lengths,
        reset=reset,
        reset_to_initial=reset_to_initial,
    )
    return result


_library = torch.library.Library("fused_lstm", "IMPL")
_library.impl("layer_reference", reference.layer, "CompositeImplicitAutograd")


def _accum(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_devices(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    name_of_weights: str = "weights",
) -> None:
    """A meta tensor among others would bring all of them here, where nothing is computed."""
    named = [
        ("h_0", h_0),
        ("c_0", c_0),
        *((f"{name_of_weights}[{k}]", w) for k, w in enumerate(weights)),
    ]
    for name, tensor in named:
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(
                f"{name} is on {tensor.device}, must be on the input's device {input.device}"
            )


@torch.library.register_fake("fused_lstm::layer")
def _layer_fake(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to_initial: bool = False,
    keep_states: bool = False,
    recompute: bool = False,
) -> Result:
    _check_devices(input, h_0, c_0, weights)
    state = h_0 if c_0 is None else c_0
    directions = reference.directions_of(state, weights)
    H = weights[0].size(0) // 4 if c_0 is None else c_0.size(2)
    P = weights[1].size(1) if h_0 is None else h_0.size(2)
    rows = input.shape[:-1]  # [T, B] or [N]
    B: int | torch.SymInt
    if state is not None:
        B = state.size(1)
    elif batch_sizes is None:
        B = input.size(1)
    else:
        B = torch.library.get_ctx().new_dynamic_size()  # batch_sizes[0]
    c_type = input.dtype if c_0 is None else torch.promote_types(input.dtype, c_0.dtype)
    kept = [(directions, *rows, H), (directions, *rows, 4 * H)] if keep_states else [(0,), (0,)]
    return (
        input.new_empty((*rows, directions * P)),
        input.new_empty((directions, B, P)),
        input.new_empty((directions, B, H), dtype=c_type),
        input.new_empty(kept[0], dtype=_accum(input.dtype)),
        input.new_empty(kept[1]),
    )


@torch.library.register_fake("fused_lstm::layer_backward")
def _layer_backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    grad_gates: Tensor | None,
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    output: Tensor | None,
    cells: Tensor | None,
    gates: Tensor | None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to_initial: bool = False,
    input_needed: bool = True,
    weights_needed: bool = True,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    return (
        input.new_empty(input.shape if input_needed else (0,)),
        input.new_empty((0,)) if h_0 is None else h_0.new_empty(h_0.shape),
        input.new_empty((0,)) if c_0 is None else c_0.new_empty(c_0.shape),
        [w.new_empty(w.shape) for w in weights] if weights_needed else [],
    )


@torch.library.register_fake("fused_lstm::stack")
def _stack_fake(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    num_layers: int,
    *,
    keep_states: bool = False,
    **options: Any,
) -> StackResult:
    each = len(weights) // num_layers
    _check_devices(input, h_0, c_0, weights)
    first = [None if state is None else state[:1] for state in (h_0, c_0)]
    output, h_n, c_n, cells, gates = _layer_fake(
        input, *first, weights[:each], keep_states=keep_states, **options
    )

    def of_all(tensor: Tensor) -> Tensor:
        return tensor.new_empty((num_layers, *tensor.shape[1:]))

    return (
        output,
        of_all(h_n),
        of_all(c_n),
        input.new_empty((num_layers - 1, *output.shape)),
        of_all(cells) if keep_states else cells,
        of_all(gates) if keep_states else gates,
    )


@torch.library.register_fake("fused_lstm::stack_backward")
def _stack_backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    weights: list[Tensor],
    num_layers: int,
    output: Tensor | None,
    lower_outputs: Tensor | None,
    cells: Tensor | None,
    gates: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    result: tuple[Tensor, Tensor, Tensor, list[Tensor]] = _layer_backward_fake(
        *(grad_output, grad_h_n, grad_c_n, None, None),
        *(input, h_0, c_0, weights, output, cells, gates),
        **options,
    )
    return result


@torch.library.register_fake("fused_lstm::cell")
def _cell_fake(
    input: Tensor,
    h_0: Tensor,
    c_0: Tensor,
    weights: list[Tensor],
    *,
    keep_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_devices(input, h_0, c_0, weights)
    B, H = c_0.shape
    kept = [(B, H), (B, 4 * H)] if keep_states else [(0,), (0,)]
    return (
        h_0.new_empty(h_0.shape),
        c_0.new_empty(c_0.shape, dtype=torch.promote_types(input.dtype, c_0.dtype)),
        input.new_empty(kept[0], dtype=_accum(input.dtype)),
        input.new_empty(kept[1]),
    )


@torch.library.register_fake("fused_lstm::frozen_lstm")
def _frozen_lstm_fake(
    input: Tensor,
    h_0: Tensor | None,
    c_0: Tensor | None,
    packed: list[Tensor],
    hidden_size: int,
    proj_size: int,
    bidirectional: bool,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to_initial: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_devices(input, h_0, c_0, packed, "packed")
    directions, P = 2 if bidirectional else 1, proj_size or hidden_size
    # Of each layer bytes, or weights and then fragments in as many tensors for each
    is_bytes = [tensor.dtype == torch.uint8 for tensor in packed]
    starts = [not one and before for one, before in zip(is_bytes, [True, *is_bytes], strict=False)]
    states = directions * (sum(starts) or len(packed))
    B: Any
    if h_0 is not None:
        B = h_0.size(1)
    elif c_0 is not None:
        B = c_0.size(1)
    elif batch_sizes is None:
        B = input.size(1)
    else:  # the contents of a tensor
        B = torch.library.get_ctx().new_dynamic_size()
    cells = input.dtype if c_0 is None else torch.promote_types(input.dtype, c_0.dtype)
    return (
        input.new_empty((*input.shape[:-1], directions * P)),
        input.new_empty((states, B, P)),
        input.new_empty((states, B, hidden_size), dtype=cells),
    )
