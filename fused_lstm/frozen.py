"""freeze: LSTMs for inference, whose weights are packed once, in float32, bfloat16, int8 (on a CPU)
or float16 (on a GPU)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.rnn import PackedSequence
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fused_lstm import _C, cell, lstm, ops
from fused_lstm.cell import FusedLSTMCell
from fused_lstm.graph_stream import GraphStream
from fused_lstm.leaf import is_traced, leaf_call
from fused_lstm.lstm import FusedLSTM, State
from fused_lstm.replace import obstacle

if TYPE_CHECKING:
    from fused_lstm._C import Stream

Format = Literal["float32", "bfloat16", "float16", "int8"]
CPU_FORMATS: tuple[Format, ...] = ("float32", "bfloat16", "int8")
GPU_FORMATS: tuple[Format, ...] = ("float32", "bfloat16", "float16")
Module = TypeVar("Module", bound=nn.Module)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_AGAIN = "change the layer that it was frozen from and freeze again"
_MAKERS = (WeightNorm, SpectralNorm, BasePruningMethod)  # hooks that set a weight before a call


class _Layer(NamedTuple):
    """The weights of a packed layer, by the names that nn.LSTM has for them."""

    matrices: tuple[str, ...]  # of all directions
    biases: tuple[str, ...]
    names: tuple[str, ...]  # all of them, in the order in which they are packed
    shapes: Mapping[str, tuple[int, ...]]
    directions: int


class _Frozen(nn.Module):
    """What FrozenLSTM and FrozenLSTMCell share: packed weights, that are stored as plain ones.

    On a CPU each layer's weights are packed bytes, a uint8 buffer whose contents depend on the
    processor. On a GPU its buffers are the weights in the format's dtype, and once more as the
    fragments that kernels load. Whatever leaves the process (state_dict, pickle) has the weights
    unpacked.
    """

    input_size: int
    hidden_size: int
    bias: bool
    num_layers: int = 1

    def __init__(self, layer: Any, weights: Format) -> None:
        super().__init__()
        if weights not in get_args(Format):
            raise ValueError(
                f"weights is {weights!r}, must be 'float32', 'bfloat16' or, on a CPU, 'int8', on a "
                "GPU 'float16'"
            )
        self.input_size = layer.input_size
        self.hidden_size = layer.hidden_size
        self.bias = layer.bias
        self.format = weights
        self.training = False
        self._names: list[str] = []  # of the buffers that the operator takes
        self._keeps_fragments = False

    def _layers(self) -> Sequence[_Layer]:
        raise NotImplementedError

    def _layer(self, names: Sequence[str], input_size: int, P: int, directions: int) -> _Layer:
        H = self.hidden_size
        sizes = {"weight_ih": (4 * H, input_size), "weight_hh": (4 * H, P), "weight_hr": (P, H)}
        shapes = {name: sizes.get(name[:9], (4 * H,)) for name in names}
        matrices = tuple(name for name in names if name.startswith("weight"))
        biases = tuple(name for name in names if name.startswith("bias"))
        return _Layer(matrices, biases, tuple(names), shapes, directions)

    def _packed(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._names]

    def _keep(self, buffers: Mapping[str, Tensor]) -> None:
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def _pack(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the weights, in a floating dtype or, with their scales, in int8."""
        device = next(iter(tensors.values())).device
        self._keeps_fragments = ops.frozen_keeps_fragments(device)
        formats = GPU_FORMATS if self._keeps_fragments else CPU_FORMATS
        if self.format not in formats:
            raise ValueError(
                f"weights is {self.format!r}, must be {formats[0]!r}, {formats[1]!r} or "
                f"{formats[2]!r} for a layer on {device}"
            )
        if self._keeps_fragments:
            packed = self._pack_fragments(tensors)
        else:
            packed = self._pack_bytes(tensors)
        self._names = list(packed)
        self._keep(packed)

    def _pack_fragments(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype: torch.dtype = getattr(torch, self.format)
        packed: dict[str, Tensor] = {}
        for k, layer in enumerate(self._layers()):
            weights = []
            for name in layer.names:
                to = torch.float32 if name in layer.biases else dtype
                weights.append(tensors[name].detach().to(to))
                if to != dtype:  # the operator's have that of the matrices
                    self._keep({f"stored_{name}": weights[-1].clone()})
            made = ops.frozen_pack_fragments(weights, layer.directions)
            count = len(layer.names)
            packed |= {f"packed_{name}": t for name, t in zip(layer.names, made, strict=False)}
            packed |= {f"packed_l{k}_{i}": tensor for i, tensor in enumerate(made[count:])}
        return packed

    def _pack_bytes(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        packed = []
        for layer in self._layers():
            weights, scales = [], []
            for name in layer.names:
                tensor = tensors[name].detach()
                stored = tensor.dtype == torch.int8 or (
                    tensor.dtype == torch.bfloat16 and self.format == "bfloat16"
                )
                if name in layer.biases or not stored:
                    tensor = tensor.to(torch.float32)
                    if self.format == "int8" and not tensor.isfinite().all():
                        raise ValueError(f"{name} has infinite or NaN elements: int8 has none")
                elif self.format == "int8":
                    scales.append(tensors[f"{name}_scale"].detach().contiguous())
                weights.append(tensor.contiguous())
            packed.append(ops.frozen_pack(weights, scales, self.format, layer.directions))
        return {f"packed_l{k}": tensor for k, tensor in enumerate(packed)}

    def _unpacked(self) -> dict[str, Tensor]:
        """The weights in the format; of int8 each with its scales, [rows] float32."""
        if self._keeps_fragments:
            names = [name for layer in self._layers() for name in layer.names]
            buffers = self._buffers
            kept = {
                name: buffers.get(f"stored_{name}", buffers[f"packed_{name}"]) for name in names
            }
            return {name: tensor.clone() for name, tensor in kept.items() if tensor is not None}
        tensors: dict[str, Tensor] = {}
        for layer, packed in zip(self._layers(), self._packed(), strict=True):
            weights, scales = ops.frozen_unpack(packed)
            tensors.update(zip(layer.names, weights, strict=True))
            if scales:
                tensors.update(
                    zip((f"{name}_scale" for name in layer.matrices), scales, strict=True)
                )
        return tensors

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: t for name, t in self._unpacked().items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """A weight in a floating dtype is rounded to the format, as `freeze` does."""
        for hook in self._load_state_dict_pre_hooks.values():
            hook(
                state_dict,
                prefix,
                local_metadata,
                strict,
                missing_keys,
                unexpected_keys,
                error_msgs,
            )
        device = self._packed()[0].device
        tensors: dict[str, Tensor] = {}
        known: set[str] = set()
        wrong: list[str] = []

        def take(name: str, shape: tuple[int, ...], dtypes: Sequence[torch.dtype]) -> Tensor | None:
            known.add(name)
            found: Tensor | None = state_dict.get(prefix + name)
            if found is None:
                missing_keys.append(prefix + name)
            elif tuple(found.shape) != shape:
                wrong.append(f"{prefix}{name} has shape {tuple(found.shape)}, must be {shape}")
            elif found.dtype not in dtypes:
                names = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
                wrong.append(f"{prefix}{name} has dtype {found.dtype}, must be one of {names}")
            else:
                tensors[name] = found.to(device)
                return found
            return None

        for layer in self._layers():
            for name in layer.biases:
                take(name, layer.shapes[name], _DTYPES)
            for name in layer.matrices:
                stored = (torch.int8,) if self.format == "int8" else ()
                found = take(name, layer.shapes[name], (*stored, *_DTYPES))
                if found is not None and found.dtype == torch.int8:
                    take(f"{name}_scale", layer.shapes[name][:1], (torch.float32,))
        if strict:
            unexpected_keys.extend(
                key
                for key in state_dict
                if key.startswith(prefix) and key.removeprefix(prefix) not in known
            )
        error_msgs.extend(wrong)
        if known == tensors.keys():
            try:
                self._pack(tensors)
            except ValueError as error:
                error_msgs.append(f"{prefix}{error}")

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = {}
        state["unpacked"] = self._unpacked()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        unpacked = state.pop("unpacked")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._pack(unpacked)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith(("weight_", "bias_")):
            raise AttributeError(f"{name} of a {type(self).__name__} is packed: {_AGAIN}")
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """For `.to`, `.half` and the like; inputs may be float32, bfloat16 or float16 as it is."""
        own = self._packed()[0].device
        device = fn(torch.empty(0, dtype=torch.uint8, device=own)).device
        if device != own:
            raise RuntimeError(
                f"a {type(self).__name__} is moved to {device}, must stay on "
                f"{'the CPU' if own.type == 'cpu' else own}: move the layer that it was frozen from"
            )
        dtype = fn(torch.empty(0)).dtype
        if dtype not in _DTYPES:
            raise RuntimeError(
                f"a {type(self).__name__} is converted to {dtype}, but it computes in float32: "
                "convert the layer that it was frozen from"
            )

        def keep_dtype(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor

        return super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Any:
        """Stays in eval mode.

        Raises:
            RuntimeError: `mode` is True.
        """
        if mode:
            raise RuntimeError(
                f"a {type(self).__name__} cannot be trained: train the layer that it was frozen "
                "from and freeze again"
            )
        return super().train(False)

    def extra_repr(self) -> str:
        bias = "" if self.bias else ", bias=False"
        return f"{self.input_size}, {self.hidden_size}{bias}, weights={self.format!r}"


class FrozenLSTM(_Frozen):
    """An nn.LSTM or FusedLSTM for inference, with packed weights of its own.

    Called as FusedLSTM is. Input and states are float32, bfloat16 or float16, the results have the
    input's dtype; sums, gates and states are in float32 inside. There are no gradients. Threads may
    call one layer at once. `state_dict`, pickle and copies have nn.LSTM's names, with the weights
    as the format has them: float32; bfloat16; float16; int8, beside a `weight_ih_l0_scale` [rows]
    float32 of each matrix, whose rows are the elements times the scale.

    On a GPU the products are FusedLSTM's of a layer in the format's dtype: the output and the
    hidden state are rounded to it, the cell state is not; float32 is multiplied as
    `torch.backends.cudnn` says.

    Args:
        layer: the layer, in float32, bfloat16 or float16, on the device where it will run. It is
            only read.
        weights: the format; int8 is for a CPU, float16 for a GPU.

    Raises:
        TypeError: `layer` is no LSTM.
        ValueError: `weights`, or a weight's dtype or device.
    """

    batch_first: bool
    bidirectional: bool
    proj_size: int

    def __init__(self, layer: nn.LSTM | FusedLSTM, weights: Format = "float32") -> None:
        if not isinstance(layer, (nn.LSTM, FusedLSTM)):
            raise TypeError(f"layer is a {type(layer).__name__}, must be an nn.LSTM or a FusedLSTM")
        super().__init__(layer, weights)
        self.num_layers = layer.num_layers
        self.batch_first = layer.batch_first
        self.bidirectional = layer.bidirectional
        self.proj_size = layer.proj_size
        self._pack(_present(layer, layer._flat_weights_names))

    def _layers(self) -> Sequence[_Layer]:
        P, directions = self.proj_size or self.hidden_size, 2 if self.bidirectional else 1
        kinds = ["weight_ih", "weight_hh"]
        kinds += ["bias_ih", "bias_hh"] if self.bias else []
        kinds += ["weight_hr"] if self.proj_size else []
        layers = []
        for k in range(self.num_layers):
            names = [f"{kind}_l{k}{end}" for end in ("", "_reverse")[:directions] for kind in kinds]
            D = self.input_size if k == 0 else directions * P
            layers.append(self._layer(names, D, P, directions))
        return layers

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Raises for an input [T, B, D] or, with batch_sizes [T], [N, D] that does not fit.

        In the words of nn.RNNBase: ValueError for its dtype, RuntimeError for its dimensions and
        features.
        """
        if input.dtype not in _DTYPES:
            raise ValueError(
                f"input has dtype {input.dtype}, must be float32, bfloat16 or float16: a frozen "
                "layer computes in float32"
            )
        dim = 2 if batch_sizes is not None else 3
        if input.dim() != dim:
            raise RuntimeError(f"input must have {dim} dimensions, got {input.dim()}")
        if input.size(-1) != self.input_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.size(-1)}"
            )

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_to: str = "zero",
        return_states: bool = False,
    ) -> Any:
        """Runs the sequence through all layers, in one operator.

        T steps, B sequences, P = proj_size or H, L = num_layers, n = 2 if bidirectional else 1.

        Args:
            input: [T, B, D]; [B, T, D] with batch_first; [T, D] without a batch; or a
                PackedSequence.
            hx: the initial hidden [n L, B, P] and cell state [n L, B, H]; zeros if None.
            lengths [B], reset [T, B] laid out as the input, reset_to: as in FusedLSTM.forward.
            return_states: must be False.

        Returns:
            output, (h_n, c_n): [T, B, n P], laid out as the input, and [n L, B, P], [n L, B, H].

        Raises:
            ValueError: return_states; else as FusedLSTM.forward.
            RuntimeError: a size, dtype or device that does not fit; an input or a state that
                requires grad, where grad is enabled.
        """
        if (
            not torch.compiler.is_compiling()
            and lengths is None
            and reset is None
            and return_states is False
            and not self._keeps_fragments
        ):
            plain = ops.plain_frozen(
                input,
                hx,
                reset_to,
                self._packed(),
                self.input_size,
                self.hidden_size,
                self.proj_size,
                self.bidirectional,
                self.batch_first,
            )
            if plain is not None:
                return plain
        options = (lengths, reset, reset_to, return_states)
        if isinstance(input, fx.Proxy) or (hx is not None and is_traced(hx)):
            return leaf_call(self, FrozenLSTM.forward, input, hx, *options)
        if return_states:
            raise ValueError(
                "return_states is True, must be False: a frozen layer keeps no gates and cell "
                "states; call the layer that it was frozen from"
            )
        x, hx, given = lstm.checked_call(self, input, hx, lengths, reset, reset_to)
        output, h_n, c_n = ops.frozen_lstm(
            x,
            hx,
            self._packed(),
            self.hidden_size,
            self.proj_size,
            self.bidirectional,
            **given,
        )
        return lstm.laid_out(self, input, output), lstm.laid_out_state(input, (h_n, c_n))

    def stream(self, batch_size: int = 1) -> Stream | GraphStream:
        """A stream: sequences that go on from call to call, whose state it owns.

            stream = frozen.stream()
            y = stream(x)

        `x` [B, D] is the next step of each of B sequences, y [B, P] the last layer's output in
        float32, a view of the stream's own buffer that the next call writes; x [B, T, D] are the
        next T steps, y [B, T, P]. A step of a contiguous float32 `x` allocates nothing and goes
        straight to the kernels, past the dispatcher. `stream.state` is (h [L, B, P],
        c [L, B, H]), read as copies and set; `stream.reset(mask=None)` sets the sequences where
        the bool `mask` [B] is True, or all, to zero; `stream.fork()` goes on from the same state
        on its own. Streams share the layer's weights, as they were when the stream was made. One
        stream is not for two threads at once.

        On a GPU a step is a captured CUDA graph, which runs on the caller's current stream, and
        its result is what the next calls write.

        Args:
            batch_size: B.

        Raises:
            ValueError: batch_size is less than 1, or the layer is bidirectional: the reverse
                direction starts at the end.
        """
        if self.bidirectional:
            raise ValueError(
                "the layer is bidirectional, must have one direction to be a stream: the reverse "
                "one starts at the end"
            )
        if self._keeps_fragments:
            sizes = (self.input_size, self.hidden_size, self.proj_size, self.num_layers)
            return GraphStream(self._packed(), sizes, batch_size)
        return ops.make_stream(self._packed(), batch_size)

    def extra_repr(self) -> str:
        options = {
            "num_layers": (self.num_layers, 1),
            "batch_first": (self.batch_first, False),
            "bidirectional": (self.bidirectional, False),
            "proj_size": (self.proj_size, 0),
        }
        changed = (f", {name}={is_}" for name, (is_, default) in options.items() if is_ != default)
        return super().extra_repr() + "".join(changed)


class FrozenLSTMCell(_Frozen):
    """An nn.LSTMCell or FusedLSTMCell for inference: FrozenLSTM's packed weights.

    Args:
        layer: the cell, in float32, bfloat16 or float16, on the device where it will run. It is
            only read.
        weights: the format; int8 is for a CPU, float16 for a GPU.

    Raises:
        TypeError: `layer` is no cell.
        ValueError: `weights`, or a weight's dtype or device.
    """

    def __init__(self, layer: nn.LSTMCell | FusedLSTMCell, weights: Format = "float32") -> None:
        if not isinstance(layer, (nn.LSTMCell, FusedLSTMCell)):
            raise TypeError(
                f"layer is a {type(layer).__name__}, must be an nn.LSTMCell or a FusedLSTMCell"
            )
        super().__init__(layer, weights)
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: 4 if self.bias else 2]
        found = _present(layer, names)
        self.bias = len(found) == 4
        self._pack(found)

    def _layers(self) -> Sequence[_Layer]:
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: 4 if self.bias else 2]
        return [self._layer(names, self.input_size, self.hidden_size, 1)]

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next hidden and cell state.

        Args:
            input: [B, D], or [D] for one sequence without a batch.
            hx: the hidden and the cell state, [B, H] each ([H] without a batch); zeros if None.

        Returns:
            The next hidden and cell state, shaped as hx.

        Raises:
            ValueError: input or a state has neither one nor two dimensions.
            RuntimeError: a shape, dtype or device that does not fit, or a gradient; the message
                names it.
        """
        if isinstance(input, fx.Proxy) or (hx is not None and is_traced(hx)):
            states: tuple[Tensor, Tensor] = leaf_call(self, FrozenLSTMCell.forward, input, hx)
            return states
        x, h, c = cell.checked_call(self, input, hx)
        state = (h[None], c[None])
        _, h, c = ops.frozen_lstm(x[None], state, self._packed(), self.hidden_size, 0, False)
        h, c = h[0], c[0]
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


_FROZEN: Mapping[type[nn.Module], type[_Frozen]] = {
    nn.LSTM: FrozenLSTM,
    FusedLSTM: FrozenLSTM,
    nn.LSTMCell: FrozenLSTMCell,
    FusedLSTMCell: FrozenLSTMCell,
}


def freeze(model: Module, weights: Format = "float32") -> Module:
    """A copy of `model` for inference, whose LSTMs have their weights packed once.

    Every FusedLSTM, FusedLSTMCell, nn.LSTM and nn.LSTMCell of the copy is a FrozenLSTM or
    FrozenLSTMCell, with the weights as they are now, those under a parametrisation or a pruning at
    their present values; an LSTM in two places is one frozen layer in both. The copy is in eval
    mode and its parameters require no grad. `model` stays as it is, and nothing is shared with it.

    float32 computes FusedLSTM's numbers to rounding. The other formats round weights and
    activations (the input of each step and the hidden state), and accumulate in float32 or, for
    int8, exactly. With K terms of a row w and activations x, the error of a product is at most
    about K max|w| max|x| / 128 for int8, whose scales are max|w| / 127 of each row of a weight and
    max|x| / 127 of each row of each step; for bfloat16 at most 2^-8 sum |w x|. Typical errors are
    smaller by sqrt(K) and more: fused_lstm/README.md has those of tasks.

    An LSTM that `replace_lstm` would leave is left in the copy, and a warning says why.

    On a GPU a frozen layer keeps its recurrent weights once more, as the fragments that the kernels
    of small batches load when they are launched; other calls gather them from the weights, with
    the same results. Frozen layers stay on the device where they were frozen.

    Args:
        model: any module that contains LSTMs, or is one; in float32, bfloat16 or float16, on the
            device where the copy will run.
        weights: "float32", "bfloat16" or, on a CPU, "int8", on a GPU, "float16".

    Returns:
        The copy; for a bare layer a FrozenLSTM or FrozenLSTMCell.

    Raises:
        TypeError: `model` is not a module.
        ValueError: `weights` is none of these; no LSTM is in `model` that can be frozen; one is in
            float64, on a device without kernels, or, for int8, has infinite or NaN weights.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}, must be a torch.nn.Module")
    # Copies of a module that deepcopy takes for made already, by its id
    made: dict[int, Any] = {}
    left: dict[str, str] = {}
    for name, module in model.named_modules():
        if reason := obstacle(module, _FROZEN):
            left[name] = reason
        elif type_before_parametrizations(module) in _FROZEN:
            try:
                made[id(module)] = _frozen(module, weights)
            except ValueError as error:
                raise ValueError(f"{name}: {error}" if name else str(error)) from None
    if not made:
        reasons = "".join(f"; {name or 'the model'}: {reason}" for name, reason in left.items())
        raise ValueError(f"model has no LSTM to freeze{reasons}")
    if left:
        reasons = ", ".join(f"{name} ({reason})" for name, reason in left.items())
        warnings.warn(f"freeze leaves {reasons}", stacklevel=2)
    frozen: Module = copy.deepcopy(model, made).eval()
    return frozen.requires_grad_(False)


def _frozen(module: nn.Module, weights: Format) -> _Frozen:
    """`module` frozen, with its hooks but for those that make its weights."""
    frozen = _FROZEN[type_before_parametrizations(module)](module, weights)
    for kind in (
        "_forward_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks",
        "_forward_pre_hooks_with_kwargs",
    ):
        for handle, hook in getattr(module, kind).items():
            if not isinstance(hook, _MAKERS):
                getattr(frozen, kind)[handle] = hook
    return frozen


@torch.no_grad()
def _present(layer: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """The weights of a layer; without biases if they are None, a single one beside zeros."""
    if is_parametrized(layer):  # which may change buffers when it computes them in training
        layer = copy.deepcopy(layer).eval()
    made: dict[str, Tensor] = {}
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            made[hook.name] = hook.compute_weight(layer)
        elif isinstance(hook, SpectralNorm):
            made[hook.name] = hook.compute_weight(layer, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod):
            made[hook._tensor_name] = hook.apply_mask(layer)
    present = [made[name] if name in made else getattr(layer, name) for name in names]
    found = dict(zip(names, cell.given(present), strict=False))
    for name, tensor in found.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{name} has dtype {tensor.dtype}, must be float32, bfloat16 or float16: a frozen "
                "layer computes in float32"
            )
        with_cuda = _C.build_info()["cuda"]
        if tensor.device.type not in ("cpu", "cuda" if with_cuda else "cpu"):
            also = " or a CUDA device" if with_cuda else ": fused_lstm was built without CUDA"
            raise ValueError(f"{name} is on {tensor.device}, must be on the CPU{also}")
    return found
