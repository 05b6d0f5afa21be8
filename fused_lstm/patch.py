"""patch: torch.nn.LSTM and torch.nn.LSTMCell name the fused modules, until undone."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from torch import nn

from fused_lstm.cell import FusedLSTMCell
from fused_lstm.lstm import FusedLSTM

_FUSED = {"LSTM": FusedLSTM, "LSTMCell": FusedLSTMCell}
_NAMESPACES = (nn, nn.modules, nn.modules.rnn)  # each of them binds both names

_lock = threading.Lock()
_active: set[patch] = set()
_originals: list[tuple[Any, str, Any]] = []  # namespace, name, what it named before


class patch:
    """Makes torch.nn.LSTM and torch.nn.LSTMCell name the fused modules.

    For packages that build their own LSTMs, before they are imported: what they build, and what
    they derive from these classes, is fused. `patch()` holds until its `undo()`;
    `with patch(): ...` until the end of the block. The names are the process's: other threads see
    the change. Of several patches at once the last to be undone puts the original names back.

    What exists already, and a package that has taken `from torch.nn import LSTM` before, stays as
    it is: see `replace_lstm`. While the patch holds, `isinstance(m, nn.LSTM)` is true of a
    FusedLSTM, and so torch.compile breaks the graph at it, as at nn.LSTM: undo the patch before
    compiling. The modules built meanwhile stay fused.
    """

    def __init__(self) -> None:
        with _lock:
            if not _active:
                for namespace in _NAMESPACES:
                    for name, fused in _FUSED.items():
                        _originals.append((namespace, name, getattr(namespace, name)))
                        setattr(namespace, name, fused)
            _active.add(self)

    def undo(self) -> None:
        """Ends this patch; a second time does nothing."""
        with _lock:
            if self not in _active:
                return
            _active.remove(self)
            if not _active:
                for namespace, name, original in _originals:
                    setattr(namespace, name, original)
                _originals.clear()

    def __enter__(self) -> patch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.undo()
