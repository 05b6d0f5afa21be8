"""What the machine does at most at a case's sizes: plain GEMMs, and reading as many bytes.

The torch calls use torch's threads, numpy's a Python thread each; both as many as the case has.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.cases import Case
from benchmarks.timing import Contest

BUDGET = 0.2  # seconds of rounds for one limit
READ_AT_ONCE = 2**28  # bytes that one call reads at least, again and again the same
# OpenBLAS, numpy's BLAS, takes threads of its own for a dot product of more than 10,000 numbers.
DOT_LENGTH = 8192
LINE = 16  # float32 numbers in a cache line


class Limits:
    """The limits of one run, each measured once, when the first case asks for it."""

    def __init__(self) -> None:
        self._measured: dict[tuple[object, ...], float] = {}

    def of(self, case: Case) -> float | None:
        """The limit of the kind ``case.limit``: GFLOP/s or GB/s. None where there is none.

        torch must be set to the case's threads.
        """
        if case.limit == "GEMM":
            sizes = (case.batch, case.rows, case.input_size, case.hidden_size)
            return self._once((case.threads, case.dtype, *sizes), lambda: gemm_rate(case))
        if case.limit == "reading":
            size, threads = case.resident_bytes, case.threads or 1
            return self._once((threads, size), lambda: read_rate(size, threads))
        return None

    def _once(self, key: tuple[object, ...], measure: Callable[[], float]) -> float:
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]


def gemm_rate(case: Case) -> float:
    """GFLOP/s of the faster of two plain products, in the faster of two ways.

    One step's recurrent product [B, H] x [H, 4H], and the input's of all steps [rows, D] x
    [D, 4H]; with the weight as nn.LSTM holds it, or transposed beforehand.
    """
    step, whole = (case.batch, case.hidden_size), (case.rows, case.input_size)
    return max(_product_rate(case, *sizes) for sizes in {step, whole})


def _product_rate(case: Case, rows: int, features: int) -> float:
    dtype = getattr(torch, case.dtype)
    x = torch.randn(rows, features).to(dtype)  # [rows, features]
    weight = torch.randn(4 * case.hidden_size, features).to(dtype)  # [4H, features]
    turned = weight.t().contiguous()  # [features, 4H]
    ways = {"linear": lambda: F.linear(x, weight), "mm": lambda: torch.mm(x, turned)}
    return 2 * rows * weight.numel() / _fastest(ways) / 1e9


def read_rate(size: int, threads: int) -> float:
    """GB/s at which a buffer of about ``size`` bytes is read again and again: the faster reader.

    Both readers are dot products of the buffer's halves. Each of numpy's threads reads its own
    part over and over in one call, without waiting for the others.
    """
    half = size // 4 // threads // 2  # numbers in half a thread's part
    rows = -(-half // DOT_LENGTH)
    length = half // rows // LINE * LINE
    again = -(-READ_AT_ONCE // size)
    whole = torch.ones(2, size // 8)
    # From torch, whose memory begins at a cache line; numpy's need not, and is read slower then.
    parts = [torch.ones(2, rows, length).numpy() for _ in range(threads)]

    def read(part: np.ndarray) -> None:
        left = np.broadcast_to(part[0, :, None, :], (again, rows, 1, length))
        right = np.broadcast_to(part[1, :, :, None], (again, rows, length, 1))
        np.matmul(left, right)  # ``again`` times ``rows`` dot products, without Python's lock

    with ThreadPoolExecutor(threads) as pool:
        seconds = _fastest({"numpy": lambda: list(pool.map(read, parts))})
    by_numpy = 4 * 2 * rows * length * threads * again / seconds
    by_torch = 4 * whole.numel() / _fastest({"torch": lambda: torch.dot(whole[0], whole[1])})
    return max(by_numpy, by_torch) / 1e9


def _fastest(ways: dict[str, Callable[[], object]]) -> float:
    """The smallest median, in seconds a call."""
    contest = Contest(ways, "cpu", BUDGET)
    contest.run()
    return min(spread.median for spread in contest.spreads.values()) / 1e6
