"""Kernels for large batches, whose blocks take groups of sequences in turn: on a GPU with few
multiprocessors, as the emulator has it."""

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
T, B, H, sequences = map(int, sys.argv[4:])
torch.manual_seed(0)
torch.backends.cudnn.allow_tf32 = precision == "tf32"
dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
bidirectional = kind in ("packed", "lengths")
module = fused_lstm.FusedLSTM(3, H, dtype=dtype, bidirectional=bidirectional)
x, state, options = rand(T, B, 3, dtype=dtype), rand_state(module, B), {}
if kind == "packed":
    x = pack_padded_sequence(x, T - torch.arange(B) * T // B)
if kind in ("lengths", "initial"):
    options["lengths"] = torch.randint(0, T + 1, (B,))
if kind in ("zero", "initial"):
    options |= {"reset": torch.rand(T, B) < 0.3, "reset_to": kind}
if kind == "absent":
    state = None
with fused_lstm.use_kernel("grid"):
    [plan] = fused_lstm.explain(module, B, T, device=Gpu(*_C.gpu(0)))
    its = plan.forward.candidates["grid"]
    assert plan.forward.kernel == "grid" and its.sequences == sequences, its
    found = evaluate(module, x, state, **options)
factors = TF32 if precision == "tf32" else None
assert_accurate(found, truth_of(module, x, state, factors=factors, **options))
"""

# Precision; T, B, H; sequences of a slice: groups of 16, in float32 outside of TF32 of 8, the last
# one and the last slice not full
SIZES = [
    ("bfloat16", "plain", 4, 33, 72, 32),
    ("bfloat16", "absent", 3, 70, 72, 48),
    ("bfloat16", "packed", 6, 45, 50, 48),
    ("bfloat16", "zero", 4, 70, 72, 48),
    ("float16", "initial", 4, 37, 90, 32),
    ("float16", "lengths", 4, 50, 50, 64),
    ("tf32", "plain", 3, 41, 72, 32),
    ("tf32", "packed", 6, 45, 50, 48),
    ("tf32", "initial", 4, 33, 81, 32),
    ("float32", "plain", 3, 20, 70, 24),
    ("float32", "packed", 5, 21, 33, 24),
    ("float32", "zero", 4, 19, 47, 16),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_forward(size):
    run_on("hopper", "-c", PROGRAM, str(TESTS), *map(str, size))
