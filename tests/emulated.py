"""What the emulated CUDA runtime (tests/emulator/cuda_runtime.cpp) has seen."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from fused_lstm import _C

EMULATED = os.environ.get("FUSED_LSTM_EMULATED") == "1"
Hook = ctypes.CFUNCTYPE(None)


class Counts(NamedTuple):
    """Since the process began."""

    launches: int
    """Of kernels, the refused ones included; not of the libraries' kernels."""
    gemms: int
    """Of cuBLAS."""
    refused: int
    allocations: int
    """Of tensors that have elements, in any code."""
    attributes_set: int
    """Calls of cudaFuncSetAttribute."""
    mma: int
    """Of a warp, in all launches; so are those below."""
    block_barriers: int
    """Of a block."""
    loaded_bytes: int
    """By relaxed loads of global memory."""
    stored_bytes: int
    """By relaxed stores to global memory."""
    sent_bytes: int
    """To blocks of a cluster, by st.async."""


def _call(name: str, result: type) -> Callable[[], int | bytes]:
    function = getattr(ctypes.CDLL(_C.__file__), f"emulated_{name}")
    function.restype = result
    return function


def counts() -> Counts:
    return Counts(*(_call(name, ctypes.c_int64)() for name in Counts._fields))


def last_error() -> str:
    """What cudaPeekAtLastError says."""
    return _call("last_error", ctypes.c_char_p)().decode()


@contextmanager
def on_allocation(function: Callable[[], None]) -> Iterator[None]:
    """Calls `function` before each allocation of a tensor."""
    hook = Hook(function)
    setter = ctypes.CDLL(_C.__file__).emulated_on_allocation
    setter(hook)
    try:
        yield
    finally:
        setter(None)


def run_on(gpu: str, *arguments: str) -> None:
    """Runs Python with these arguments, on another emulated GPU; it must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"EMULATED_GPU": gpu},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
