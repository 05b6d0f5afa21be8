"""Fixtures that every test file shares."""

from __future__ import annotations

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


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _float32_is_float32(monkeypatch):
    """TF32 has tests of its own; with it, float32 errors would hide behind its rounding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
