"""CPU memory that is kept from one call to the next (csrc/device/pool.h)."""

from __future__ import annotations

from fused_lstm import _C


def cached_bytes() -> int:
    """Bytes that are kept for the next call, FUSED_LSTM_CACHE_MB megabytes at most.

    Without that environment variable, read once, at most a quarter of the machine's memory. The
    system may take the pages back whenever it is short of memory.
    """
    return _C.cached_bytes()


def empty_cache() -> None:
    """Gives the memory that is kept for the next call on a CPU back to the system."""
    _C.empty_cache()
