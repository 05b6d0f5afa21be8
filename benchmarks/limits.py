"""What the machine reaches at most at a case's sizes, by plain GEMMs and by plain reading.

torch's calls use torch's threads, which must be set to the case's, numpy's a Python thread each.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.cases import Case
from benchmarks.timing import Call, alternate

BUDGET = 0.2  # seconds of rounds for one limit
MIN_BYTES_READ = 2**28  # by one call, the same bytes repeatedly
# OpenBLAS, numpy's BLAS, takes threads of its own for a dot product of more than 10,000 elements.
DOT_LENGTH = 8192


def limit_of(case: Case) -> float | None:
    """The limit of the kind ``case.limit``, measured once: GFLOP/s or GB/s. None without one."""
    if case.limit == "GEMM":
        # The recurrent GEMM of a step [B, H] x [H, 4H]; the input's [all steps, D] x [D, 4H]
        sizes = {(case.batch, case.hidden_size), (sum(case.lengths), case.input_size)}
        return max(gemm_rate(case.threads, case.dtype, *s, 4 * case.hidden_size) for s in sizes)
    return read_rate(case.threads, case.resident_bytes) if case.limit == "reading" else None


@cache
def gemm_rate(threads: int, dtype: str, rows: int, features: int, gates: int) -> float:
    """GFLOP/s of a GEMM with the weight as nn.LSTM holds it, or transposed: the faster of them."""
    x = torch.randn(rows, features).to(getattr(torch, dtype))  # [rows, features]
    weight = torch.randn(gates, features).to(x)  # [4H, features]
    transposed = weight.t().contiguous()  # [features, 4H]
    seconds = _fastest(lambda: F.linear(x, weight), lambda: torch.mm(x, transposed))
    return 2 * rows * weight.numel() / seconds / 1e9


@cache
def read_rate(threads: int, size: int) -> float:
    """GB/s of reading about ``size`` bytes repeatedly, by dot products of their halves.

    The faster of torch, and of numpy, whose threads read their parts without waiting for others.
    """
    half = size // 4 // threads // 2  # elements of half a thread's part
    rows = -(-half // DOT_LENGTH)
    length = half // rows // 16 * 16  # whole cache lines of float32
    repeats = -(-MIN_BYTES_READ // size)
    # From torch, whose memory begins at a cache line; numpy's need not, and is read slower then.
    parts = [torch.ones(2, rows, length).numpy() for _ in range(threads)]

    def read(part: np.ndarray) -> None:
        left = np.broadcast_to(part[0, :, None, :], (repeats, rows, 1, length))
        right = np.broadcast_to(part[1, :, :, None], (repeats, rows, length, 1))
        np.matmul(left, right)  # repeats x rows dot products, without Python's lock

    with ThreadPoolExecutor(threads) as pool:
        seconds = _fastest(lambda: list(pool.map(read, parts)))
    by_numpy = 4 * 2 * rows * length * threads * repeats / seconds
    whole = torch.ones(2, size // 8)
    by_torch = 4 * whole.numel() / _fastest(lambda: torch.dot(whole[0], whole[1]))
    return max(by_numpy, by_torch) / 1e9


def _fastest(*calls: Call) -> float:
    """The smallest median, in seconds a call."""
    measured = alternate({str(i): call for i, call in enumerate(calls)}, "cpu", BUDGET)
    return min(measurement.median for measurement in measured.values())
