"""Loads `fused_lstm._C`, the compiled half, or says in one line what to install instead.

A binary fits one minor release of torch, and one major release of CUDA if it has CUDA kernels. It
may load into another and crash later, so that is compared before.
"""

from __future__ import annotations

import torch

_BUILD = "type `pip install --force-reinstall --no-deps .` in the source folder"

try:
    from fused_lstm import _build
except ImportError as error:
    raise ImportError(f"fused_lstm is not built: {_BUILD}") from error


def _obstacle(torch_version: str, cuda: str | None) -> str | None:
    """Why `_C` does not fit a torch, or None."""
    minor = ".".join(torch_version.split(".")[:2])
    cuda_fits = _build.CUDA is None or (cuda or "").split(".")[0] == _build.CUDA.split(".")[0]
    if minor == _build.TORCH and cuda_fits:
        return None
    built_for = f"torch {_build.TORCH}" + (f" with CUDA {_build.CUDA}" if _build.CUDA else "")
    wheel = f"+torch{minor}.{'cu' + cuda.replace('.', '') if cuda else 'cpu'}"
    return (
        f"fused_lstm is built for {built_for}, but torch is {torch_version}: install the wheel "
        f"whose version ends in {wheel}, or {_BUILD}"
    )


if (_found := _obstacle(torch.__version__, torch.version.cuda)) is not None:
    raise ImportError(_found)
try:
    import fused_lstm._C  # noqa: F401
except ImportError as error:
    raise ImportError(f"fused_lstm._C cannot be loaded ({error}): {_BUILD}") from error
