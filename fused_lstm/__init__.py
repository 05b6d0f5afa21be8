"""A fused LSTM for PyTorch: `FusedLSTM` drops in for `torch.nn.LSTM`."""

from contextlib import suppress as _suppress
from importlib import import_module as _import_module

from torch.serialization import add_safe_globals as _add_safe_globals

from fused_lstm import _torch
from fused_lstm import ops as _ops  # noqa: F401  (loads the operators, or says what to rebuild)
from fused_lstm.autotune import autotune
from fused_lstm.cell import FusedLSTMCell
from fused_lstm.decompositions import decompositions
from fused_lstm.explain import explain, use_kernel
from fused_lstm.frozen import FrozenLSTM, FrozenLSTMCell, freeze
from fused_lstm.hooks import after_import as _after_import
from fused_lstm.lstm import FusedLSTM, LSTMStates
from fused_lstm.memory import cached_bytes, empty_cache
from fused_lstm.patch import patch
from fused_lstm.replace import replace_lstm, restore_lstm

with _suppress(ModuleNotFoundError):  # torch announces the end of torch.ao.quantization
    from fused_lstm import quantization as _quantization  # noqa: F401  (registers the modules)

__version__ = "0.1.0"

# For torch.load(weights_only=True) of a whole pickled model, as torch has it for its own classes.
_add_safe_globals([FusedLSTM, FusedLSTMCell, FrozenLSTM, FrozenLSTMCell])
_after_import("torch.utils.flop_counter", lambda: _import_module("fused_lstm.flops"))
_after_import("opacus.validators", lambda: _import_module("fused_lstm.opacus"))
_after_import(_torch.ONNX_OPERATORS, lambda: _import_module("fused_lstm.onnx").register())

__all__ = [
    "FrozenLSTM",
    "FrozenLSTMCell",
    "FusedLSTM",
    "FusedLSTMCell",
    "LSTMStates",
    "__version__",
    "autotune",
    "cached_bytes",
    "decompositions",
    "empty_cache",
    "explain",
    "freeze",
    "patch",
    "replace_lstm",
    "restore_lstm",
    "use_kernel",
]
