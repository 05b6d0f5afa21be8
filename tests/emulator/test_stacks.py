"""Layers of a stack at once: each kernel that takes them, what it awaits, and what a call costs."""

from __future__ import annotations

import itertools
from pathlib import Path

import emulated
import pytest
import torch
from oracle import assert_accurate, evaluate, rand, rand_state, truth_of
from rounding import TF32
from test_counts import launches_and_allocations
from test_persistent import EMULATOR
from torch.nn.utils.rnn import pack_padded_sequence

import fused_lstm

TESTS = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not emulated.EMULATED, reason="needs the emulator: make emulate")

KINDS = ("plain", "lengths", "packed", "zero", "initial")
# Precision, kernel; T, B, D, H, layers; how many of them go at once, from the first one on.
SMALL = [
    ("bfloat16", "block", 6, 11, 10, 28, 3, [3]),
    ("tf32", "block", 6, 9, 6, 30, 3, [3]),
    ("bfloat16", "cluster", 6, 11, 9, 72, 2, [2]),  # an input whose rows are no words of 8 bytes
    ("tf32", "cluster", 6, 10, 72, 98, 2, [2]),
]
# Each tiling that those do not have, and other numbers of layers
LARGE = [
    ("float16", "block", 5, 8, 64, 64, 4, [4]),
    ("bfloat16", "block", 1, 3, 4, 4, 4, [4]),
    ("tf32", "block", 4, 17, 100, 64, 2, [2]),  # an input that does not fit beside h
    ("float16", "cluster", 3, 12, 96, 132, 3, [3]),
    ("bfloat16", "cluster", 3, 5, 64, 260, 2, [2]),
    ("tf32", "cluster", 3, 9, 20, 130, 2, [2]),
    ("bfloat16", "cluster", 3, 3, 8, 36, 5, [4, 1]),
]
SIZES = [
    *itertools.product(SMALL, KINDS),
    *zip(LARGE, itertools.cycle(("packed", "plain", "zero", "lengths")), strict=False),
]


def stack_of(precision: str, D: int, H: int, layers: int) -> fused_lstm.FusedLSTM:
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    dtype = torch.float32 if precision in ("tf32", "float32") else getattr(torch, precision)
    return fused_lstm.FusedLSTM(D, H, layers, dtype=dtype)


def at_once(plans: list[fused_lstm.explain.PassPlan]) -> list[int]:
    """How many layers each launch has, from the first layer on."""
    counts, layer = [], 0
    while layer < len(plans):
        stack = plans[layer].stack
        counts.append(len(stack.layers) if stack else 1)
        layer += counts[-1]
    return counts


@pytest.fixture(autouse=True)
def keep_tf32():
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(("size", "kind"), SIZES, ids=str)
def test_results(size, kind):
    precision, kernel, T, B, D, H, layers, expected = size
    module = stack_of(precision, D, H, layers)
    x, state, options = rand(T, B, D, dtype=module.weight_ih_l0.dtype), None, {}
    if kind != "plain":
        state = rand_state(module, B)
    if kind == "packed":
        x = pack_padded_sequence(x, T - torch.arange(B) * T // B)
    elif kind == "lengths":
        options = {"lengths": torch.randint(0, T + 1, (B,))}
    elif kind != "plain":
        options = {"reset": torch.rand(T, B) < 0.4, "reset_to": kind}
    with fused_lstm.use_kernel(kernel):
        plans = fused_lstm.explain(module, B, T, device=EMULATOR)
        assert at_once([plan.forward for plan in plans]) == expected
        assert at_once([plan.backward for plan in plans]) == expected[::-1]
        before = emulated.counts()
        found = evaluate(module, x, state, **options)
        launches = emulated.counts().launches - before.launches
    if kind == "plain":  # of kernels, and fills before those that await something
        assert launches == sum(2 + 2 * (count > 1) for count in expected)
    factors = TF32 if precision == "tf32" else None
    assert_accurate(found, truth_of(module, x, state, factors=factors, **options))


@pytest.mark.parametrize(("H", "words"), [(30, 32), (257, 260)])
def test_sizes_that_are_no_words_go_layer_by_layer(H, words):
    plans = fused_lstm.explain(stack_of("bfloat16", 8, words, 2), 5, 100, device=EMULATOR)
    assert all(plan.forward.stack and plan.backward.stack for plan in plans)
    module = stack_of("bfloat16", 8, H, 2)
    plans = fused_lstm.explain(module, 5, 100, device=EMULATOR)
    assert not any(plan.forward.stack or plan.backward.stack for plan in plans)
    x = rand(3, 5, 8, dtype=torch.bfloat16)
    assert_accurate(evaluate(module, x), truth_of(module, x))


def test_a_nan_is_no_absent_value():
    """All of its bits are not set, so that nothing waits for another in its place."""
    module = stack_of("bfloat16", 8, 64, 4)
    x = rand(5, 9, 8, dtype=torch.bfloat16)
    x[2, 3] = float("nan")
    with fused_lstm.use_kernel("block"):
        plans = fused_lstm.explain(module, 9, 5, device=EMULATOR)
        assert all(plan.forward.stack and plan.backward.stack for plan in plans)
        output, _ = module(x)
        output.float().sum().backward()
    assert output[2:, 3].isnan().all()
    assert not output[:, :3].isnan().any()
    assert not output[:2].isnan().any()


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_a_small_call(dtype):
    """B 32 T 20 D 10 H 64, two layers: one launch, and the fill before it.

    In bfloat16 a row of the input is no words of 8 bytes, and its GEMM is made ahead. Forward and
    backward: two of both; beside it two GEMMs for each layer, and none between layers.
    """
    ahead = dtype == "bfloat16"
    module = stack_of(dtype, 10, 64, 2)
    x, grad = (torch.zeros(20, 32, n, dtype=module.weight_ih_l0.dtype) for n in (10, 64))

    def infer():
        with torch.no_grad():
            module(x)

    def train():
        output, _ = module(x)
        torch.autograd.grad(output, list(module.parameters()), grad)

    assert launches_and_allocations(infer) == (2 + ahead, 4 + ahead)
    before = emulated.counts()
    train()
    after = emulated.counts()
    assert after.launches - before.launches == 4
    assert after.gemms - before.gemms == 2 * 2 + ahead


REFUSED = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
from oracle import assert_accurate, evaluate, rand, truth_of

import fused_lstm
from fused_lstm import _C
from fused_lstm.explain import Gpu

torch.manual_seed(0)
module = fused_lstm.FusedLSTM(8, 28, 2, dtype=torch.bfloat16)
x = rand(20, 20, 8, dtype=torch.bfloat16)  # three slices of each layer
plans = fused_lstm.explain(module, 20, 20, device=Gpu(*_C.gpu(0)))
assert plans[0].forward.stack and plans[0].backward.stack, plans
assert_accurate(evaluate(module, x), truth_of(module, x))
plans = fused_lstm.explain(module, 20, 20, device=Gpu(*_C.gpu(0)))
assert not (plans[0].forward.stack or plans[0].backward.stack), plans
assert plans[0].forward.kernel == "block", plans
"""


def test_a_refused_launch_goes_layer_by_layer():
    """On a GPU that has fewer multiprocessors than it says."""
    emulated.run_on("fewer-sms", "-c", REFUSED, str(TESTS))
