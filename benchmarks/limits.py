"""What the machine does at most, by the figures that the extension has measured of one thread."""

import torch

from benchmarks.cases import Case
from benchmarks.timing import Call
from fused_lstm import _C

PEAKS = {"FMA peak": "fma_gflops", "bf16 peak": "bf16_gflops", "int8 peak": "int8_gops"}


def limit_of(case: Case) -> float | None:
    """GFLOP/s or GB/s that the case's threads reach at most, as ``case.limit`` says, or None.

    Reading is that of the first cache to hold the weights: of a core's L1 and L2 its thread's part.
    None for a rate that is 0 among the figures.
    """
    if case.limit is None:
        return None
    machine = _C.machine()
    if case.limit in PEAKS:
        return case.threads * machine[PEAKS[case.limit]] or None
    return case.threads * machine["read_gbps"][_level(case)]


def fits_a_cache(case: Case) -> bool:
    """Whether a cache holds the weights that are read over and over."""
    return _level(case) < 3


def _level(case: Case) -> int:
    """Index of the first cache that holds the weights, 3 for memory.

    A cache holds less than its size of them: biases, activations and states need room, too.
    """
    l1, l2, l3 = _C.machine()["cache_bytes"]
    part = case.resident_bytes / case.threads
    return (part < l1, part < l2, case.resident_bytes < l3, True).index(True)


def cache_flush() -> Call:
    """A call that leaves only its own data in every cache: it writes twice what the largest has."""
    buffer = torch.ones(2 * max(_C.machine()["cache_bytes"]) // 4)
    return lambda: buffer.add_(1)
