"""Kernels without clusters of blocks, on an A100 and an L4 as the emulator has them, and
those of large batches, on few multiprocessors."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated import EMULATED, run_on

TESTS = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not EMULATED, reason="needs the emulator: make emulate")


def test_the_grid():
    grid = "grid and not float16"  # whose kernels are bfloat16's
    run_on("a100", "-m", "pytest", "-q", str(TESTS / "test_persistent.py"), "-k", grid)


def test_large_batches():
    run_on("hopper", "-m", "pytest", "-q", str(TESTS / "test_persistent.py"), "-k", "large_batches")


@pytest.mark.parametrize("gpu", ["a100", "hopper"])
def test_counts(gpu):
    run_on(gpu, "-m", "pytest", "-q", str(TESTS / "emulator/test_counts.py"), "-k", "test_step")


PROGRAM = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
from oracle import assert_accurate, evaluate, rand, rand_state, truth_of
from rounding import TF32
from torch.nn.utils.rnn import pack_padded_sequence

import fused_lstm
from fused_lstm import _C
from fused_lstm.explain import Gpu

precision, kind = sys.argv[2:4]
T, B, H, blocks, sequences = map(int, sys.argv[4:])
torch.manual_seed(0)
torch.backends.cudnn.allow_tf32 = precision == "tf32"
dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
bidirectional = kind == "packed"
module = fused_lstm.FusedLSTM(3, H, dtype=dtype, bidirectional=bidirectional)
x, state, options = rand(T, B, 3, dtype=dtype), rand_state(module, B), {}
if kind == "packed":
    x = pack_padded_sequence(x, T - torch.arange(B) * T // B)
elif kind == "resets":
    options = {"lengths": torch.randint(0, T + 1, (B,)), "reset": torch.rand(T, B) < 0.4}
with fused_lstm.use_kernel("grid"):
    [plan] = fused_lstm.explain(module, B, T, device=Gpu(*_C.gpu(0)))
    its = plan.backward.candidates["grid"]
    assert plan.backward.kernel == "grid", plan
    assert (its.blocks, its.sequences) == (blocks, sequences), its
    found = evaluate(module, x, state, **options)
factors = TF32 if precision == "tf32" else None
assert_accurate(found, truth_of(module, x, state, factors=factors, **options))
"""

# GPU, precision; T, B, H; then the placement: blocks of a slice, sequences of the largest
SIZES = [
    ("a100", "bfloat16", "resets", 3, 1, 256, 8, 1),
    ("a100", "bfloat16", "packed", 3, 9, 333, 11, 5),
    ("a100", "bfloat16", "resets", 3, 20, 512, 16, 7),
    ("a100", "bfloat16", "plain", 2, 2, 640, 40, 2),
    ("a100", "bfloat16", "plain", 2, 17, 1024, 32, 6),
    ("ada", "bfloat16", "resets", 3, 33, 333, 11, 40),
    ("a100", "bfloat16", "plain", 1, 9, 1030, 65, 16),
    ("a100", "tf32", "resets", 1, 28, 520, 33, 16),
    ("a100", "tf32", "packed", 2, 9, 600, 38, 16),
    ("a100", "tf32", "packed", 3, 5, 256, 8, 5),
    ("a100", "tf32", "resets", 3, 3, 333, 21, 3),
    ("a100", "tf32", "plain", 2, 2, 1001, 63, 2),
    ("a100", "float32", "plain", 3, 5, 200, 13, 5),
    ("a100", "float32", "resets", 2, 3, 400, 50, 3),
    ("hopper", "bfloat16", "resets", 3, 20, 97, 4, 7),
    ("l4", "bfloat16", "plain", 2, 3, 1021, 43, 3),
    ("l4", "tf32", "plain", 2, 3, 640, 40, 3),
    ("l4", "float32", "packed", 3, 3, 121, 8, 3),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_backward(size):
    gpu, *rest = size
    run_on(gpu, "-c", PROGRAM, str(TESTS), *map(str, rest))
