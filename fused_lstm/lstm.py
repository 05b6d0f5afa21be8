"""FusedLSTM: torch.nn.LSTM on the fused layer operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, overload

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.rnn import LSTM as TorchLSTM  # torch.nn.LSTM may come to be FusedLSTM
from torch.nn.utils.rnn import PackedSequence

from fused_lstm import legacy_onnx, ops
from fused_lstm.init import GateInitialization
from fused_lstm.leaf import is_traced, leaf_call

State = tuple[Tensor, Tensor]


class LayerLike(Protocol):
    """What the checks of a call read of a module."""

    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    bidirectional: bool
    proj_size: int

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None: ...
    def _get_name(self) -> str: ...


class LSTMStates(NamedTuple):
    """What an LSTM computed inside, for each layer and direction.

    All are indexed by layer * num_directions + direction, as h_n is, and laid out as the output:
    [T, B, ...], [B, T, ...] with batch_first, [T, ...] without a batch, or a PackedSequence.

    Attributes:
        cells: the cell state after each step, [T, B, H], in float32 or wider. Past the end of a
            sequence it stays what it was.
        gates: the activations of the gates i, f, g, o, [T, B, 4, H]. Zero past the end.
        hidden: the hidden state after each step, [T, B, P], before the dropout between layers.
            Zero past the end. Of the last layer it is a part of the output, in the same memory.
    """

    cells: tuple[Tensor | PackedSequence, ...]
    gates: tuple[Tensor | PackedSequence, ...]
    hidden: tuple[Tensor | PackedSequence, ...]


class FusedLSTM(GateInitialization, nn.RNNBase):
    """Drop-in for `torch.nn.LSTM`: same arguments, parameters, results and state_dict.

    The one difference by type: it is an `nn.RNNBase`, not an `nn.LSTM` (torch.compile breaks the
    graph at every subclass of that one).

    Args:
        input_size: D, features of the input.
        hidden_size: H, features of the cell state.
        num_layers: layers, each reading the output of the one before.
        bias: False leaves out bias_ih and bias_hh.
        batch_first: input and output are [B, T, ...] rather than [T, B, ...].
        dropout: probability with which, in training, each output of a layer but the last is
            zeroed.
        bidirectional: a second direction from the last step to the first.
        proj_size: P > 0 projects the hidden state to P features.
        device, dtype: of the parameters. float32, float64, bfloat16 or float16; sums and the cell
            state are in float32 or wider.
        recompute: keep only the hidden state of each step for the backward, H elements in place of
            6 H. It computes the gates and cell states again. An attribute, read at each call.
    """

    recompute: bool = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device,
            dtype,
        )
        self.recompute = recompute

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")

    def flatten_parameters(self) -> None:
        """Nothing to do: the kernels read each weight as it is stored."""

    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_to: str = "zero",
        return_states: Literal[False] = False,
    ) -> tuple[Tensor, State]: ...
    @overload
    def forward(
        self,
        input: Tensor,
        hx: State | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_to: str = "zero",
        *,
        return_states: Literal[True],
    ) -> tuple[Tensor, State, LSTMStates]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: State | None = None,
        *,
        return_states: Literal[False] = False,
    ) -> tuple[PackedSequence, State]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: State | None = None, *, return_states: Literal[True]
    ) -> tuple[PackedSequence, State, LSTMStates]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_to: str = "zero",
        return_states: bool = False,
    ) -> Any:
        """Runs the sequence through all layers.

        T steps, B sequences, P = proj_size or H, L = num_layers, n = 2 if bidirectional else 1.

        Args:
            input: [T, B, D]; [B, T, D] with batch_first; [T, D] without a batch; or a
                PackedSequence.
            hx: the initial hidden [n L, B, P] and cell state [n L, B, H] (without B for input
                without a batch); zeros if None. Never batch first.
            lengths: [B] ([] without a batch) int64 on the input's device, in any order, 0 to T:
                the steps that each sequence has. No packing, no synchronisation. Outputs past the
                end are zero, h_n and c_n are each sequence's own last, the reverse direction
                starts at each sequence's own last step. On a CPU a length out of range raises; on
                a GPU, where a look at it would wait for the device, it counts as 0 or T.
            reset: bool, [T, B] ([B, T] with batch_first, [T] without a batch): a new episode
                starts before this step. The reverse direction, which crosses the episode
                boundary from the other side, starts a new episode at the step before it.
            reset_to: an episode starts from "zero" or from "initial", the state in hx.
            return_states: also return all cell states, gates and hidden states.

        Returns:
            output, (h_n, c_n), as nn.LSTM: output is [T, B, n P], laid out as the input; h_n
            [n L, B, P]; c_n [n L, B, H]. With return_states a third value, LSTMStates. All of
            them are differentiable.

        Raises:
            ValueError: wrong number of dimensions of the input, wrong input dtype, or lengths or
                reset beside a PackedSequence.
            RuntimeError: a size, dtype or device that does not fit; the message names it.
        """
        if (
            not torch.compiler.is_compiling()
            and lengths is None
            and reset is None
            and return_states is False
            and not (self.training and self.dropout)
            and (self.num_layers == 1 or not ops.LARGEST_STACKED["cpu"])
        ):
            plain = ops.plain_lstm(
                input,
                hx,
                reset_to,
                self._flat_weights,
                self._flat_weights_names,
                self._parameters,
                self.num_layers,
                self.input_size,
                self.hidden_size,
                self.proj_size,
                self.bidirectional,
                self.batch_first,
                self.recompute,
            )
            if plain is not None:
                return plain
        options = (lengths, reset, reset_to, return_states)
        if isinstance(input, fx.Proxy) or (hx is not None and is_traced(hx)):
            return leaf_call(self, FusedLSTM.forward, input, hx, *options)
        if legacy_onnx.is_exporting():
            legacy_onnx.refuse(
                lengths=lengths is not None,
                reset=reset is not None,
                return_states=bool(return_states),  # a tensor, if FusedLSTM is what is exported
            )
            return TorchLSTM.forward(self, input, hx)  # type: ignore[call-overload]
        layer = partial(ops.layer, recompute=True) if self.recompute else ops.layer
        return run(self, layer, input, hx, *options)

    # What nn.LSTM has beyond nn.RNNBase, for code that calls or overrides it.
    get_expected_cell_size = TorchLSTM.get_expected_cell_size
    check_forward_args = TorchLSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = TorchLSTM.permute_hidden  # type: ignore[assignment]

    def __prepare_scriptable__(self) -> TorchLSTM:
        """torch.jit.script compiles the same layers as nn.LSTM, on the same parameters."""
        twin = TorchLSTM(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            self.bias,
            self.batch_first,
            self.dropout,
            self.bidirectional,
            self.proj_size,
            device="meta",
        )
        for name in self._flat_weights_names:
            setattr(twin, name, getattr(self, name))
        twin._init_flat_weights()
        return twin.train(self.training)


def run(
    module: nn.RNNBase,
    layer: Callable[..., ops.Result],
    input: Tensor | PackedSequence,
    hx: State | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_to: str = "zero",
    return_states: bool = False,
) -> Any:
    """FusedLSTM.forward with `layer`, `ops.layer` or `reference.layer`, for each layer."""
    weights = _weights(module)
    x, hx, options = checked_call(module, input, hx, lengths, reset, reset_to)
    if hx is None and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # An upper layer's input may be narrower than the state of the first one, which counts
        batch_sizes = options["batch_sizes"]
        B = x.size(1) if batch_sizes is None else int(batch_sizes[0])
        hidden_shape, cell_shape = _state_shapes(module, B)
        hx = (x.new_zeros(hidden_shape), x.new_zeros(cell_shape))

    if layer is ops.layer and not return_states and _is_stack(module, x, weights):
        h_0, c_0 = (None, None) if hx is None else hx
        x, *state, _, _, _ = ops.stack(x, h_0, c_0, weights, module.num_layers, **options)
        return laid_out(module, input, x), laid_out_state(input, (state[0], state[1]))

    directions = 2 if module.bidirectional else 1
    each = len(weights) // module.num_layers
    h_n: list[Tensor] = []
    c_n: list[Tensor] = []
    cells: list[Tensor] = []
    gates: list[Tensor] = []
    hidden: list[Tensor] = []
    for k in range(module.num_layers):
        if k > 0 and module.dropout > 0:
            x = F.dropout(x, module.dropout, module.training)
        states = slice(k * directions, (k + 1) * directions)
        one = module.num_layers == 1
        h_0, c_0 = (None, None) if hx is None else hx if one else (hx[0][states], hx[1][states])
        x, h, c, cell, gate = layer(
            x,
            h_0,
            c_0,
            weights[k * each : (k + 1) * each],
            keep_states=return_states,
            **options,
        )
        h_n.append(h)
        c_n.append(c)
        if return_states:
            cells.extend(cell)
            gates.extend(g.unflatten(-1, (4, -1)) for g in gate)
            P = x.size(-1) // directions
            hidden.extend(x.narrow(-1, d * P, P) for d in range(directions))
    final = (
        h_n[0] if len(h_n) == 1 else torch.cat(h_n),
        c_n[0] if len(c_n) == 1 else torch.cat(c_n),
    )

    output, final = laid_out(module, input, x), laid_out_state(input, final)
    if not return_states:
        return output, final
    kept = (
        tuple(laid_out(module, input, rows) for rows in states) for states in (cells, gates, hidden)
    )
    return output, final, LSTMStates(*kept)


def _is_stack(module: nn.RNNBase, x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Layers that the operator stack takes, on a device that may take them at once.

    Not those that recompute, for a stack has the gates of all layers in memory at once; and not
    those of which some are trained and others are not, for it differentiates all or none.
    """
    trained = [weight.requires_grad for weight in weights]
    return (
        module.num_layers > 1
        and not module.bidirectional
        and not module.proj_size
        and not (module.training and module.dropout > 0)
        and module.hidden_size <= ops.largest_stacked_for(x)
        and (all(trained) or not any(trained))
    )


def checked_call(
    module: LayerLike,
    input: Tensor | PackedSequence,
    hx: State | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    reset_to: str,
) -> tuple[Tensor, State | None, dict[str, Any]]:
    """The arguments of `module.forward` as the operators take them, or what is wrong with them.

    The module has nn.LSTM's attributes and `check_input`. Returns the input [T, B, D], or [N, D] of
    a packed sequence; the state [n L, B, ...], in the order in which a packed batch is sorted, or
    None; and batch_sizes, lengths [B], reset [T, B] and reset_to_initial by name.
    """
    if reset_to not in ("zero", "initial"):
        raise ValueError(f"reset_to is {reset_to!r}, must be 'zero' or 'initial'")
    batch_sizes = None
    if isinstance(input, PackedSequence):
        if lengths is not None or reset is not None:
            raise ValueError("lengths and reset go with a padded input, not a PackedSequence")
        if torch.compiler.is_exporting():
            raise ValueError(
                "input is a PackedSequence, must be a padded tensor to be exported, with lengths= "
                "beside it: torch.nn.utils.rnn.pad_packed_sequence gives both"
            )
        batch_sizes = input.batch_sizes
        x, hx = _checked_packed(module, input, hx)
    else:
        x, hx, lengths, reset = _checked_padded(module, input, hx, lengths, reset)
    options = {
        "batch_sizes": batch_sizes,
        "lengths": lengths,
        "reset": reset,
        "reset_to_initial": reset_to == "initial",
    }
    return x, hx, options


def laid_out(
    module: LayerLike, input: Tensor | PackedSequence, rows: Tensor
) -> Tensor | PackedSequence:
    """rows [T, B, ...] or [N, ...] as the caller's input is."""
    if isinstance(input, PackedSequence):
        return PackedSequence(rows, input.batch_sizes, input.sorted_indices, input.unsorted_indices)
    if input.dim() == 2:
        return rows.squeeze(1)
    return rows.transpose(0, 1) if module.batch_first else rows


def laid_out_state(input: Tensor | PackedSequence, state: State) -> State:
    """A state [n L, B, ...] as the caller's is."""
    if isinstance(input, PackedSequence):
        return _permuted(state, input.unsorted_indices)
    return (state[0].squeeze(1), state[1].squeeze(1)) if input.dim() == 2 else state


def _weights(module: nn.RNNBase) -> Sequence[Tensor]:
    """The parameters as they are now: a parametrisation or a hook may have made new ones."""
    if torch.compiler.is_compiling():
        return _all_there(module, [getattr(module, name) for name in module._flat_weights_names])
    # _update_flat_weights() asks the module for every name, which is slow; the same question to its
    # dict of parameters has the same answer unless something stands in a parameter's place.
    registered = module._parameters
    for known, name in zip(module._flat_weight_refs, module._flat_weights_names, strict=True):
        parameter = registered.get(name)
        if parameter is None or known is None or parameter is not known():
            module._update_flat_weights()
            return _all_there(module, module._flat_weights)
    return module._flat_weights  # type: ignore[return-value]


def _all_there(module: nn.RNNBase, weights: Sequence[Tensor | None]) -> Sequence[Tensor]:
    for name, weight in zip(module._flat_weights_names, weights, strict=True):
        if weight is None:
            raise TypeError(f"{name} is None, must be a tensor")
    return weights  # type: ignore[return-value]


def _checked_padded(
    module: LayerLike,
    input: Tensor,
    hx: State | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, State | None, Tensor | None, Tensor | None]:
    """input as [T, B, D], hx as [n L, B, ...], lengths as [B], reset as [T, B]."""
    if input.dim() not in (2, 3):
        name = module._get_name()
        raise ValueError(f"{name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
    batched = input.dim() == 3
    if hx is not None and not hx[0].dim() == hx[1].dim() == input.dim():
        kind = "batched 3-D" if batched else "unbatched 2-D"
        raise RuntimeError(
            f"For {kind} input, hx and cx should also be {input.dim()}-D "
            f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )
    if not batched:
        input = input.unsqueeze(1)
        if hx is not None:
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
    elif module.batch_first:
        input = input.transpose(0, 1)
    module.check_input(input, None)
    T, B, _ = input.shape
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    _check_state(module, hx, B, input)
    if lengths is not None:
        _check_mask("lengths", lengths, [B] if batched else [], torch.int64, input)
        lengths = lengths.reshape(B)
    if reset is not None:
        shape = [T] if not batched else [B, T] if module.batch_first else [T, B]
        _check_mask("reset", reset, shape, torch.bool, input)
        reset = reset.unsqueeze(1) if not batched else reset
        reset = reset.transpose(0, 1) if batched and module.batch_first else reset
    return input, hx, lengths, reset


def _check_mask(
    name: str, mask: Tensor, shape: list[int], dtype: torch.dtype, input: Tensor
) -> None:
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} is a {type(mask).__name__}, must be a tensor")
    found = (list(mask.shape), mask.dtype, mask.device)
    for what, is_, must_be in zip(
        ("shape", "dtype", "device"), found, (shape, dtype, input.device), strict=True
    ):
        if is_ != must_be:
            raise RuntimeError(f"{name} has {what} {is_}, must be {must_be}")


def _checked_packed(
    module: LayerLike, packed: PackedSequence, hx: State | None
) -> tuple[Tensor, State | None]:
    """data [N, D], and hx in the order in which the batch is sorted."""
    module.check_input(packed.data, packed.batch_sizes)
    if hx is not None:
        _check_state(module, hx, int(packed.batch_sizes[0]), packed.data)
        hx = _permuted((hx[0], hx[1]), packed.sorted_indices)
    return packed.data, hx


def _state_shapes(module: LayerLike, B: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of the hidden and the cell state of all layers."""
    layers = module.num_layers * (2 if module.bidirectional else 1)
    return (
        (layers, B, module.proj_size or module.hidden_size),
        (layers, B, module.hidden_size),
    )


def _check_state(module: LayerLike, hx: State | None, B: int, input: Tensor) -> None:
    if hx is None:
        return
    if isinstance(hx, Tensor):
        raise TypeError("hx is a tensor, must be a tuple of the hidden and the cell state")
    if len(hx) != 2:
        raise RuntimeError(f"lstm expects two hidden states, got {len(hx)} in hx")
    for index, shape in enumerate(_state_shapes(module, B)):
        if not isinstance(hx[index], Tensor):
            raise TypeError(f"hx[{index}] is a {type(hx[index]).__name__}, must be a tensor")
        if hx[index].shape != shape:
            raise RuntimeError(
                f"Expected hidden[{index}] size {shape}, got {list(hx[index].shape)}"
            )
        if hx[index].device != input.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, found input tensor at "
                f"{input.device} and hidden tensor at {hx[index].device} (hx[{index}])"
            )


def _permuted(state: State, permutation: Tensor | None) -> State:
    if permutation is None:
        return state
    return state[0].index_select(1, permutation), state[1].index_select(1, permutation)
