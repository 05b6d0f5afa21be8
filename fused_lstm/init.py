"""Initialisations that go by gate, which the layer and the cell share."""

from __future__ import annotations

import torch
from torch import nn


class GateInitialization(nn.Module):
    """`init_forget_bias` and `init_orthogonal` for a module with nn.LSTM's or LSTMCell's names."""

    @torch.no_grad()
    def init_forget_bias(self, value: float = 1.0) -> None:
        """Sets the bias of the forget gate, in each layer and direction, and no other.

        With 1, a new layer remembers from the start (Gers et al. 2000, Jozefowicz et al. 2015). The
        gate sees the sum bias_ih + bias_hh: each of the two gets half of the value.

        Args:
            value: what the two add up to.

        Raises:
            ValueError: the module has no biases.
            RuntimeError: a bias is no parameter of its own, as under a parametrisation.
        """
        if not self.bias:
            raise ValueError("bias is False, must be True for a bias of the forget gate")
        for bias in self._parameters_named("bias"):
            bias.chunk(4)[1].fill_(value / 2)  # i, f, g, o

    @torch.no_grad()
    def init_orthogonal(self, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
        """Draws the recurrent weights anew, those of each gate as an orthogonal matrix [H, P].

        Each is as `nn.init.orthogonal_` draws it: with P < H, of a projection, its columns are
        orthonormal. weight_ih, the biases and weight_hr stay.

        Args:
            gain: factor of each matrix.
            generator: of random numbers; default: torch's own.

        Raises:
            RuntimeError: a weight is no parameter of its own, as under a parametrisation.
        """
        for weight in self._parameters_named("weight_hh"):  # [4H, P]
            accum = torch.promote_types(weight.dtype, torch.float32)  # QR has no 16-bit kernel
            for gate in weight.chunk(4):
                drawn = torch.empty_like(gate, dtype=accum)
                gate.copy_(nn.init.orthogonal_(drawn, gain, generator))

    def _parameters_named(self, prefix: str) -> list[nn.Parameter]:
        found = []
        cell = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for name in getattr(self, "_flat_weights_names", cell):
            if name.startswith(prefix):
                parameter = self._parameters.get(name)
                if parameter is None:
                    raise RuntimeError(
                        f"{name} is no parameter of its own, must be one: initialise it before a "
                        "parametrisation or pruning"
                    )
                found.append(parameter)
        return found
