"""Clusters that take two tiles of 8 sequences: GPUs on which one cluster runs at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulated import EMULATED, run_on

TESTS = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not EMULATED, reason="needs the emulator: make emulate")

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
T, B, H, *placements = map(int, sys.argv[4:])
torch.manual_seed(0)
torch.backends.cudnn.allow_tf32 = precision == "tf32"
dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
bidirectional = kind == "packed"
module = fused_lstm.FusedLSTM(3, H, dtype=dtype, bidirectional=bidirectional)
x, state, options = rand(T, B, 3, dtype=dtype), rand_state(module, B), {}
if kind == "packed":
    x = pack_padded_sequence(x, T - torch.arange(B) * T // B)
elif kind == "lengths":
    options = {"lengths": torch.randint(0, T + 1, (B,))}
elif kind != "plain":
    options = {"reset": torch.rand(T, B) < 0.4, "reset_to": kind}
with fused_lstm.use_kernel("cluster"):
    for plan in fused_lstm.explain(module, B, T, device=Gpu(*_C.gpu(0))):
        for its, placement in (plan.forward, placements[:2]), (plan.backward, placements[2:]):
            assert its.kernel == "cluster", plan
            found = its.candidates["cluster"]
            assert [found.blocks, found.sequences] == placement, plan
    found = evaluate(module, x, state, **options)
factors = TF32 if precision == "tf32" else None
assert_accurate(found, truth_of(module, x, state, factors=factors, **options))
"""

# GPU, precision, T, B, H; then the placements, forward and backward: blocks, sequences of a slice.
# The second tile is partly full; full; absent in the last of two slices.
SIZES = [
    ("one-cluster-of-8", "bfloat16", "packed", 5, 13, 133, 4, 13, 8, 13),
    ("one-cluster-of-8", "float16", "zero", 3, 32, 200, 4, 16, 8, 16),
    ("one-cluster-of-8", "bfloat16", "initial", 4, 17, 256, 4, 9, 8, 9),
    ("one-cluster-of-4", "bfloat16", "plain", 1, 9, 101, 2, 5, 4, 9),
    ("one-cluster-of-4", "tf32", "initial", 4, 9, 97, 4, 9, 4, 9),
    ("one-cluster-of-4", "tf32", "packed", 5, 13, 81, 4, 13, 4, 13),
    ("one-cluster-of-8", "tf32", "lengths", 3, 17, 161, 8, 9, 8, 9),
    ("one-cluster-of-4", "tf32", "plain", 3, 16, 128, 4, 16, 4, 16),
    ("one-cluster-of-16", "bfloat16", "lengths", 2, 9, 509, 16, 9, 16, 9),
    ("one-cluster-of-16", "tf32", "plain", 2, 13, 261, 16, 13, 16, 7),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_results(size):
    gpu, *rest = map(str, size)
    run_on(gpu, "-c", PROGRAM, str(TESTS), *rest)


def test_counts():
    counts = str(TESTS / "emulator/test_counts.py")
    run_on("one-cluster-of-4", "-m", "pytest", "-q", counts, "-k", "test_step")
