"""What torch.ao.quantization makes of the fused modules: what it makes of nn.LSTM and nn.LSTMCell.

It looks modules up by their exact type. Registered here, a fused module is converted wherever
`qconfig_spec` names it, as FusedLSTM or by its name in the model; where the specification names
nn.LSTM instead, a warning says that it was passed over.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.ao.nn.quantized.dynamic as dynamic
from torch import nn
from torch.ao.quantization.quantization_mappings import DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS

from fused_lstm.cell import FusedLSTMCell
from fused_lstm.lstm import FusedLSTM


class DynamicLSTM(dynamic.LSTM):
    """The quantised nn.LSTM, from a FusedLSTM."""

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Any:
        return dynamic.LSTM.from_float(_as_torch(mod, "LSTM"), use_precomputed_fake_quant)


class DynamicLSTMCell(dynamic.LSTMCell):
    """The quantised nn.LSTMCell, from a FusedLSTMCell."""

    @classmethod
    def from_float(cls, mod: nn.Module, use_precomputed_fake_quant: bool = False) -> Any:
        return dynamic.LSTMCell.from_float(_as_torch(mod, "LSTMCell"), use_precomputed_fake_quant)


def _as_torch(module: nn.Module, name: str) -> nn.Module:
    """A module of the type with which torch compares, looked up as torch does: see `patch`."""
    kind = getattr(torch.nn, name)
    twin: nn.Module = kind.__new__(kind)
    twin.__dict__ = module.__dict__
    return twin


class QConfig:
    """The attribute `qconfig`, which torch.ao.quantization sets on each module it comes to."""

    def __get__(self, module: nn.Module | None, owner: type[nn.Module]) -> Any:
        if module is None:
            return self
        try:
            return module.__dict__["qconfig"]
        except KeyError:
            raise AttributeError("qconfig") from None

    def __set__(self, module: nn.Module, value: Any) -> None:
        if value is None:
            kind = type(module).__name__
            warnings.warn(
                f"torch.ao.quantization leaves {kind} in float: it goes by the exact type. Name "
                f"fused_lstm.{kind} in qconfig_spec, or call fused_lstm.restore_lstm(model) first",
                stacklevel=2,
            )
        module.__dict__["qconfig"] = value

    def __delete__(self, module: nn.Module) -> None:
        del module.__dict__["qconfig"]


for _fused, _quantised in ((FusedLSTM, DynamicLSTM), (FusedLSTMCell, DynamicLSTMCell)):
    DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS[_fused] = _quantised
    _fused.qconfig = QConfig()  # type: ignore[union-attr]
