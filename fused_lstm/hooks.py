"""What registers with modules that `import torch` leaves out, when they are imported.

To import them for it would cost each user of fused_lstm triton (torch.utils.flop_counter) or
onnxscript (torch.onnx).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def after_import(name: str, action: Callable[[], object]) -> None:
    """Calls `action` once module `name` is imported: now, or at the end of its import.

    An action that fails warns: the module is somebody else's, and its import has to go on.
    """
    if name in sys.modules:
        _take(name, action)
    else:
        sys.meta_path.insert(0, _Finder(name, action))


def _take(name: str, action: Callable[[], object]) -> None:
    try:
        action()
    except Exception as error:
        warnings.warn(f"fused_lstm cannot register with {name}: {error}", stacklevel=2)


class _Finder(MetaPathFinder):
    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name, self.action = name, action
        self.searching = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec


class _Loader(Loader):
    """The module's own loader, then the action."""

    def __init__(self, loader: Loader, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
            _take(self.finder.name, self.finder.action)
