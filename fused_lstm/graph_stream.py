"""Streams of a frozen layer on a GPU: its steps as captured CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fused_lstm import ops


def captured(step: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], None], Tensor]:
    """A CUDA graph of `step`: what runs it again, and the result, which each run writes."""
    with torch.cuda.device(device):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            step()  # what a first call prepares cannot be captured
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            result = step()
    return graph.replay, result


class GraphStream:
    """A sequence, or a batch of B sequences, that goes on from call to call on a GPU.

    `stream(x)` takes the next step, x [B, D], and returns the output [B, P] of the last layer, or
    the next T steps, [B, T, D], and returns [B, T, P]; float32. The result of a step is the
    stream's own memory, which the next calls write. A step is a copy of `x` and one CUDA graph, on
    the caller's current stream: calls on several ones must wait for one another. Not for two
    threads at once; `fork()` gives each its own.

    Two graphs take turns: each reads the state that the other has written, since on a GPU some
    blocks may still read a state when others write the next one.

    Args:
        packed: the layers' weights and fragments, of one direction each.
        sizes: D, H, proj_size and the number of layers.
        batch_size: B.

    Raises:
        ValueError: batch_size is less than 1.
    """

    def __init__(
        self, packed: Sequence[Tensor], sizes: tuple[int, int, int, int], batch_size: int
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, must be 1 or more")
        self.batch_size = batch_size
        self._packed = list(packed)
        self._sizes = sizes
        D, H, proj_size, L = sizes
        P, B = proj_size or H, batch_size
        weight = packed[0]
        with torch.inference_mode(False), torch.no_grad():
            self._input = weight.new_zeros(B, D)
            self._states = [
                (weight.new_zeros(L, B, P), weight.new_zeros(L, B, H, dtype=torch.float32))
                for _ in range(2)
            ]
            self._now = 0
            self._graphs = [captured(partial(self._advanced, i), weight.device) for i in (0, 1)]
        self.reset()

    def _advanced(self, now: int) -> Tensor:
        """A step [B, P] from state `now` to the other one."""
        _, H, proj_size, _ = self._sizes
        before, after = self._states[now], self._states[1 - now]
        return ops.frozen_step(self._input, *before, *after, self._packed, H, proj_size).float()

    def __call__(self, x: Tensor) -> Tensor:
        x = self._floats("x", x).detach()
        sequence = x.dim() == 3 and x.size(1) > 0
        D = self._input.size(1)
        if not (x.dim() == 2 or sequence) or x.size(0) != self.batch_size or x.size(-1) != D:
            raise ValueError(
                f"x has shape {list(x.shape)}, must be [B, D] or [B, T, D] with "
                f"B = {self.batch_size}, D = {D} and one step or more"
            )
        with torch.no_grad():
            return self._sequence(x) if sequence else self._step(x)

    def _step(self, x: Tensor) -> Tensor:
        self._input.copy_(x)
        replay, output = self._graphs[self._now]
        replay()
        self._now = 1 - self._now
        return output

    def _sequence(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, P], without a graph: T may be any."""
        _, H, proj_size, _ = self._sizes
        h, c = state = self._states[self._now]
        steps = x.transpose(0, 1).to(h.dtype)  # [T, B, D]
        output, h_n, c_n = ops.frozen_lstm(steps, state, self._packed, H, proj_size, False)
        h.copy_(h_n)
        c.copy_(c_n)
        return output.transpose(0, 1).float()

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """Copies of h [L, B, P] and c [L, B, H], float32; may be set."""
        h, c = self._states[self._now]
        return h.to(torch.float32, copy=True), c.clone()

    @state.setter
    def state(self, value: tuple[Tensor, Tensor]) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError("state must be a tuple of the hidden and the cell state")
        given = [self._floats(f"state[{i}]", tensor) for i, tensor in enumerate(value)]
        own = self._states[self._now]
        for i, (tensor, its) in enumerate(zip(given, own, strict=True)):
            if tensor.shape != its.shape:
                raise ValueError(
                    f"state[{i}] has shape {list(tensor.shape)}, must be {list(its.shape)}"
                )
        for tensor, its in zip(given, own, strict=True):
            its.copy_(tensor.detach())

    def reset(self, mask: Tensor | None = None) -> None:
        """Zero state for the sequences where the bool mask [B] is True, or for all."""
        if mask is not None:
            mask = self._tensor("mask", mask)
            if mask.dtype != torch.bool or mask.shape != (self.batch_size,):
                raise ValueError(
                    f"mask is {mask.dtype} of shape {list(mask.shape)}, must be torch.bool of "
                    f"shape [{self.batch_size}]"
                )
        for state in self._states[self._now]:
            if mask is None:
                state.zero_()
            else:
                state.masked_fill_(mask[:, None], 0)

    def fork(self) -> GraphStream:
        """A stream of its own that goes on from the same state."""
        other = GraphStream(self._packed, self._sizes, self.batch_size)
        for to, its in zip(other._states[other._now], self._states[self._now], strict=True):
            to.copy_(its)
        return other

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, must be a tensor")
        if tensor.device != self._input.device:
            raise ValueError(f"{name} is on {tensor.device}, must be on {self._input.device}")
        return tensor

    def _floats(self, name: str, tensor: Tensor) -> Tensor:
        tensor = self._tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}, must be a floating dtype")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{name} requires grad, but a frozen layer has no gradients; train the layer it "
                "was frozen from and freeze again"
            )
        return tensor

    def __repr__(self) -> str:
        D, H, proj_size, L = self._sizes
        return f"GraphStream({D}, {proj_size or H}, layers={L}, batch_size={self.batch_size})"
