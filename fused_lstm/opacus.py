"""Opacus, whose hooks need its own layers: its validator refuses a FusedLSTM, its fixer mends it.

Both go by the exact type. Registered when opacus.validators is imported.
"""

from __future__ import annotations

from opacus.validators import lstm, register_module_fixer, register_module_validator
from opacus.validators.errors import (
    ShouldReplaceModuleError,
    UnsupportedModuleError,
)
from torch import nn

from fused_lstm.cell import FusedLSTMCell
from fused_lstm.lstm import FusedLSTM

register_module_fixer(FusedLSTM)(lstm.fix)  # a DPLSTM with the same weights


@register_module_validator(FusedLSTM)
def _validate_layer(module: nn.Module) -> list[Exception]:
    return [
        ShouldReplaceModuleError(
            "FusedLSTM has no gradients per sample for Opacus, must be a DPLSTM: "
            "ModuleValidator.fix(model) makes it one"
        )
    ]


@register_module_validator(FusedLSTMCell)
def _validate_cell(module: nn.Module) -> list[Exception]:
    return [
        UnsupportedModuleError(
            "FusedLSTMCell has no gradients per sample for Opacus, which has no cell of its own: "
            "use a layer"
        )
    ]
