"""Fixtures that every test file shares."""

from __future__ import annotations

import os

# Before torch loads OpenMP: threads that wait by spinning slow down whatever else runs on the
# machine, other workers of pytest-xdist first of all.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import emulated
import pytest
import torch
from oracle import NO_CUDA


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.cuda, pytest.mark.skipif(bool(NO_CUDA), reason=str(NO_CUDA))],
        ),
    ]
)
def device(request) -> str:
    return request.param


@pytest.fixture(
    params=[torch.float64, torch.float32, torch.bfloat16, torch.float16],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
def dtype(request) -> torch.dtype:
    return request.param


# FUSED_LSTM_SEEDS=100: every test with 100 random seeds
SEEDS = int(os.environ.get("FUSED_LSTM_SEEDS") or 1)


@pytest.fixture(autouse=True, params=range(SEEDS) if SEEDS > 1 else None, ids="seed {}".format)
def _same_numbers_every_time(request):
    torch.manual_seed(getattr(request, "param", 0))


@pytest.fixture(autouse=True)
def _float32_is_float32(monkeypatch):
    """TF32 has tests of its own; with it, float32 errors would hide behind its rounding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def _no_error_of_cuda_is_left_behind():
    """On the emulator; a kernel of torch would raise it."""
    yield
    if emulated.EMULATED:
        assert emulated.last_error() == "no error"
