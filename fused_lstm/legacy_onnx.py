"""torch.onnx.export(dynamo=False), a tracer: it sees nn.LSTM and nn.LSTMCell.

They run on the same parameters; the exporter knows both.
"""

from __future__ import annotations

import torch


def is_exporting() -> bool:
    """Inside the legacy exporter."""
    return bool(torch.jit.is_tracing() and torch.onnx.is_in_onnx_export())  # type: ignore[no-untyped-call, attr-defined]


def refuse(**given: bool) -> None:
    """Raises NotImplementedError for the first option that is given: nn.LSTM has none of them."""
    for name, is_given in given.items():
        if is_given:
            raise NotImplementedError(
                f"torch.onnx.export(dynamo=False) exports nn.LSTM, which has no {name}: use "
                "dynamo=True"
            )
