"""A fused LSTM for PyTorch: `FusedLSTM` drops in for `torch.nn.LSTM`."""

from importlib import import_module as _import_module

import torch as _torch

from fused_lstm import ops as _ops  # noqa: F401  (loads the operators, or says what to rebuild)
from fused_lstm.cell import FusedLSTMCell
from fused_lstm.explain import explain, use_kernel
from fused_lstm.hooks import after_import as _after_import
from fused_lstm.lstm import FusedLSTM, LSTMStates
from fused_lstm.replace import replace_lstm

__version__ = "0.1.0"

# For torch.load(weights_only=True) of a whole pickled model, as torch has it for its own classes.
_torch.serialization.add_safe_globals([FusedLSTM, FusedLSTMCell])
_after_import("torch.utils.flop_counter", lambda: _import_module("fused_lstm.flops"))

__all__ = [
    "FusedLSTM",
    "FusedLSTMCell",
    "LSTMStates",
    "__version__",
    "explain",
    "replace_lstm",
    "use_kernel",
]
