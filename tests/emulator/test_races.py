"""The emulator's race detector and its delayed stores: quiet where memory is handed over rightly,
and not where it is not; then the kernels under both."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from instrument import HERE, build, build_patterns

import fused_lstm

EMULATED = Path(fused_lstm.__file__).parents[1]

pytestmark = pytest.mark.skipif(
    os.environ.get("FUSED_LSTM_EMULATED") != "1", reason="needs the emulator: make emulate"
)

RACES, DELAY = {"EMULATOR_RACES": "1"}, {"EMULATOR_DELAY": "1"}
PATTERNS = re.findall(r'\{"(\w+)", \{\w+_kernel, ', (HERE / "patterns.cu").read_text())

PRECISIONS = ("bfloat16", "tf32", "float32")

# Of each pattern, a fault, and what sees it
FAULTS = [
    ("block", "no barrier", RACES, "a race in byte"),
    ("block", "rewritten early", RACES, "a race in byte"),
    ("warp", "a shuffle", RACES, "a race in byte"),
    ("counter", "counted before all have stored", RACES, "a race in global memory: a write by"),
    ("counter", "a relaxed counter", RACES, "a race in global memory: a write by"),
    ("counter", "a relaxed counter", DELAY, "has"),
    ("counter", "released to the block", RACES, "a race in global memory: a write by"),
    ("counter", "released to the block", DELAY, "has"),
    ("counter", "acquired by the block", RACES, "a race in global memory: a write by"),
    ("counter", "no wait", RACES, "a race in global memory: a write by"),
    ("counter", "one thread alone waits", RACES, "a race in global memory: a write by"),
    ("cluster", "no barrier", RACES, "a race in byte"),
    ("cluster", "no wait", RACES, "a race in byte"),
    ("async", "no fence", {}, "mbarrier, which no fence has followed"),
    ("async", "barriers that not all know of", {}, "has no mbarrier at byte"),
    ("async", "one buffer", RACES, "an asynchronous write by st.async to mbarrier"),
    ("async", "no wait", RACES, "an asynchronous write by st.async to mbarrier"),
    ("async", "a wait of the block", RACES, "an asynchronous write by st.async to mbarrier"),
    ("async", "cleared early", RACES, "an asynchronous write by"),
    ("async", "no last wait", {}, "a store of its cluster is still on its way"),
    ("words", "a plain store", RACES, "a race in global memory"),
    ("words", "a plain load", RACES, "a race in global memory: a relaxed write by"),
    ("words", "no barrier", {}, "threads that wait for a word in global memory"),
    ("words", "cleared early", {}, "threads that wait for a word in global memory"),
    ("flag", "a relaxed flag", DELAY, "has 0, not"),
]


@pytest.fixture(scope="module")
def patterns(tmp_path_factory) -> Path:
    return build_patterns(tmp_path_factory.mktemp("patterns"))


def run_pattern(program: Path, arguments: list[str], options: dict[str, str], seed: int):
    environment = os.environ | options | {"EMULATOR_SEED": str(seed)}
    return subprocess.run(
        [program, *arguments], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("options", [{}, RACES, DELAY, RACES | DELAY], ids=str)
@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(patterns, name, options):
    for seed in range(5):
        done = run_pattern(patterns, [name], options, seed)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "fault", "options", "message"), FAULTS, ids=str)
def test_fault_of_a_pattern(patterns, name, fault, options, message):
    done = run_pattern(patterns, [name, fault], options, seed=1)
    assert done.returncode != 0
    assert message in done.stderr


# Each kernel by itself, on several blocks and warps of a slice, forward and backward; and layers of
# a stack at once.
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

kernel, precision, in_groups = sys.argv[2], sys.argv[3], sys.argv[4] == "hopper"
layers = int(sys.argv[5])
torch.backends.cudnn.allow_tf32 = precision == "tf32"
dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
factors = TF32 if precision == "tf32" and kernel != "stepwise" else None
T, B, H = 6, 45 if in_groups else 11, 28 if kernel == "block" else 72
if (kernel, sys.argv[4]) == ("grid", "hopper-132"):
    T, B, H = 4, 3, 300  # in clusters backward
if in_groups and precision == "float32":
    H = 44  # both directions' blocks of 8 units at once
lengths = [6, 6, 6, 5, 5, 4, 4, 2, 2, 1, 1]
if in_groups:
    lengths = [6] * 10 + [5] * 10 + [3] * 15 + [2] * 10
for kind in ("ragged", "resets"):
    torch.manual_seed(0)
    two = kind == "ragged" and layers == 1
    module = fused_lstm.FusedLSTM(3, H, layers, dtype=dtype, bidirectional=two)
    x, state, options = rand(T, B, 3, dtype=dtype), rand_state(module, B), {}
    with fused_lstm.use_kernel(kernel):
        for plan in fused_lstm.explain(module, B, T, device=Gpu(*_C.gpu(0))):
            assert plan.forward.kernel == kernel, plan
            assert plan.backward.kernel == kernel, plan
            if layers > 1:
                assert len(plan.forward.stack.layers) == len(plan.backward.stack.layers) == layers
        if kind == "ragged":
            x = pack_padded_sequence(x, torch.tensor(lengths[:B]).clamp(max=T))
        else:
            options["lengths"] = torch.randint(0, T + 1, (B,))
            options["reset"] = torch.rand(T, B) < 0.3
        truth = truth_of(module, x, state, factors=factors, **options)
        assert_accurate(evaluate(module, x, state, **options), truth)
print("right")
"""


@pytest.fixture(scope="module")
def instrumented(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("instrumented")
    build(EMULATED, folder)
    return folder


@pytest.mark.parametrize(
    ("kernel", "gpu", "precision", "layers"),
    [
        *itertools.product(
            ("stepwise", "block", "cluster", "grid"), ["hopper-132"], PRECISIONS, [1]
        ),
        *itertools.product(["grid"], ["a100", "hopper"], PRECISIONS, [1]),
        *itertools.product(
            ["cluster"], ["one-cluster-of-4"], PRECISIONS[:2], [1]
        ),  # sequence tiles
        *itertools.product(("block", "cluster"), ["hopper-132"], PRECISIONS[:2], [3]),
    ],
)
def test_kernel(instrumented, kernel, gpu, precision, layers):
    environment = os.environ | RACES | DELAY | {"PYTHONPATH": str(instrumented)}
    environment["EMULATED_GPU"] = gpu
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(HERE.parent), kernel, precision, gpu, str(layers)],
        env=environment,
        cwd=instrumented,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "right\n", done.stderr
