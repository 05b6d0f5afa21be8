"""FusedLSTMCell: torch.nn.LSTMCell on the fused cell operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.rnn import LSTMCell as TorchLSTMCell  # as in lstm.py

from fused_lstm import legacy_onnx, ops
from fused_lstm.init import GateInitialization
from fused_lstm.leaf import is_traced, leaf_call


class FusedLSTMCell(GateInitialization, nn.RNNCellBase):
    """Drop-in for `torch.nn.LSTMCell`: one time step, for loops that must see every state.

    Parameters, their names, order and initial values are those of `nn.LSTMCell`; a state_dict
    goes both ways.

    Args:
        input_size: D, features of the input.
        hidden_size: H, features of the hidden and of the cell state.
        bias: False leaves out bias_ih and bias_hh.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

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
            RuntimeError: a shape, dtype or device that does not fit; the message names it.
        """
        if not torch.compiler.is_compiling():
            plain = ops.plain_cell(
                input, hx, self._parameters, self.bias, self.input_size, self.hidden_size
            )
            if plain is not None:
                return plain
        if isinstance(input, fx.Proxy) or (hx is not None and is_traced(hx)):
            states: tuple[Tensor, Tensor] = leaf_call(self, FusedLSTMCell.forward, input, hx)
            return states
        if legacy_onnx.is_exporting():
            return TorchLSTMCell.forward(self, input, hx)  # type: ignore[arg-type]
        x, h, c = checked_call(self, input, hx)
        weights = [self.weight_ih, self.weight_hh]
        if self.bias:
            weights += [self.bias_ih, self.bias_hh]
        for weight in weights:
            if weight is None:
                weights = given(weights)
                break
        if input.dtype != weights[0].dtype and not (
            input.is_floating_point() and torch.is_autocast_enabled(input.device.type)
        ):
            raise RuntimeError(
                f"input has dtype {input.dtype}, must have the weights' dtype {weights[0].dtype}"
            )
        h, c = ops.cell(x, h, c, weights)
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))

    def __prepare_scriptable__(self) -> TorchLSTMCell:
        """torch.jit.script compiles the same cell as nn.LSTMCell, on the same parameters."""
        twin = TorchLSTMCell(self.input_size, self.hidden_size, self.bias, device="meta")
        twin._parameters.update(self._parameters)
        return twin.train(self.training)


def checked_call(
    module: nn.Module, input: Tensor, hx: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `module.forward` as [B, D], [B, H], [B, H], or what is wrong with them."""
    if input.dim() not in (1, 2):
        raise ValueError(
            f"{module._get_name()}: Expected input to be 1D or 2D, got {input.dim()}D instead"
        )
    batched = input.dim() == 2
    if hx is None:
        shape = (*input.shape[:-1], module.hidden_size)
        zeros = torch.zeros(shape, dtype=input.dtype, device=input.device)
        hx = (zeros, zeros)
    h, c = _two_states(hx)
    for index, state in enumerate((h, c)):
        if state.dim() not in (1, 2):
            raise ValueError(
                f"{module._get_name()}: Expected hx[{index}] to be 1D or 2D, "
                f"got {state.dim()}D instead"
            )
        if state.dim() != input.dim():
            raise RuntimeError(
                f"hx[{index}] is {state.dim()}D, must be {input.dim()}D as the input is"
            )
    # In the words of nn.LSTMCell.
    if input.size(-1) != module.input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(-1)} expected {module.input_size}"
        )
    for index, state in enumerate((h, c)):
        if state.size(-1) != module.hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {state.size(-1)}, "
                f"expected {module.hidden_size}"
            )
        if batched and state.size(0) != input.size(0):
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match hidden{index} batch size "
                f"{state.size(0)}"
            )
    if not batched:
        input, h, c = input.unsqueeze(0), h.unsqueeze(0), c.unsqueeze(0)
    return input, h, c


def given(weights: list[Tensor | None]) -> list[Tensor]:
    """Without biases that are None; a single one counts as zeros, as in nn.LSTMCell."""
    for name, weight in zip(("weight_ih", "weight_hh"), weights, strict=False):
        if weight is None:
            raise TypeError(f"{name} is None, must be a tensor")
    biases = [bias for bias in weights[2:] if bias is not None]
    if len(biases) == 1:
        biases.append(torch.zeros_like(biases[0]))
    return [weight for weight in weights[:2] if weight is not None] + biases


def _two_states(hx: Any) -> tuple[Tensor, Tensor]:
    if isinstance(hx, Tensor):
        raise TypeError("hx is a tensor, must be a tuple of the hidden and the cell state")
    if len(hx) != 2:
        raise RuntimeError(f"lstm_cell expects two hidden states, got {len(hx)} in hx")
    return hx[0], hx[1]
