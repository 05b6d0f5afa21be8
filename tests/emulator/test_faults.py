"""The emulator sees faults: each one planted makes a wrong number, or a report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import ALL_FAULTS, FAULTS_OF, build

import fused_lstm

EMULATED = Path(fused_lstm.__file__).parents[1]

pytestmark = pytest.mark.skipif(
    os.environ.get("FUSED_LSTM_EMULATED") != "1", reason="needs the emulator: make emulate"
)

# One fault shows in one kernel, another in another: all of them run, on several slices.
PROGRAM = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
from oracle import assert_accurate, evaluate, rand, rand_state, truth_of
from torch.nn.utils.rnn import pack_padded_sequence

import fused_lstm

torch.manual_seed(0)
B = 45 if sys.argv[2] == "hopper" else 11  # there in groups
kernels = {
    "hopper-132": [("block", 28), ("cluster", 72), ("grid", 72)],
    "hopper-132 in clusters": [("grid", 260)],  # backward, from 256 on
    "hopper-132 in stacks": [("block", 28), ("cluster", 72)],
    "one-cluster-of-4": [("cluster", 72), ("cluster", 133)],  # two tiles backward; forward
}
layers = 2 if sys.argv[2].endswith("stacks") else 1
for kernel, hidden_size in kernels.get(sys.argv[2], [("grid", 72)]):
    module = fused_lstm.FusedLSTM(3, hidden_size, layers, dtype=torch.bfloat16)
    x, state, options = rand(6, B, 3, dtype=torch.bfloat16), rand_state(module, B), {}
    if layers > 1:
        options["reset"] = torch.rand(6, B) < 0.3
    with fused_lstm.use_kernel(kernel):
        truth = truth_of(module, x, state, **options)
        assert_accurate(evaluate(module, x, state, **options), truth)
if sys.argv[2] == "hopper":  # and groups that begin late
    module = fused_lstm.FusedLSTM(3, 72, dtype=torch.bfloat16, bidirectional=True)
    x = pack_padded_sequence(x, torch.tensor([6] * 10 + [4] * 10 + [2] * 25))
    state = rand_state(module, B)
    with fused_lstm.use_kernel("grid"):
        assert_accurate(evaluate(module, x, state), truth_of(module, x, state))
print("right")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    build(EMULATED, folder)
    return folder


def run(
    folder: Path, fault: int | None, seed: int, gpu: str = "hopper-132"
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "EMULATOR_SEED": str(seed)}
    environment |= {"EMULATOR_RACES": "1", "EMULATOR_DELAY": "1", "EMULATED_GPU": gpu.split()[0]}
    if fault is not None:
        environment["EMULATOR_FAULT"] = str(fault)
    tests = str(Path(__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, tests, gpu],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("gpu", FAULTS_OF)
def test_no_fault(folder, gpu):
    done = run(folder, None, seed=1, gpu=gpu)
    assert done.stdout == "right\n", done.stderr


GPUS = [gpu for gpu, faults in FAULTS_OF.items() for _ in faults]


@pytest.mark.parametrize(
    ("number", "gpu"), list(enumerate(GPUS, 1)), ids=[fault[0] for fault in ALL_FAULTS]
)
def test_fault(folder, number, gpu):
    done = run(folder, number, seed=1, gpu=gpu)
    assert done.returncode != 0, done.stdout
    reports = ALL_FAULTS[number - 1][4]
    reports = (reports,) if isinstance(reports, str) else reports
    assert any(report in done.stderr for report in reports), done.stderr


def test_a_deadlock_says_who_waits_where(folder):
    what = "a word of a phase that is not awaited"
    [number] = [n for n, fault in enumerate(ALL_FAULTS, 1) if fault[0] == what]
    printed = run(folder, number, seed=1).stderr
    assert "emulator: no thread can go on" in printed
    assert "block 0 warp 0: threads that wait for a word in global memory: " in printed
    assert "block 0 warp 0: threads that wait for vote.any: " in printed
    assert "the forward launch of the kernel grid (T 6, B 11, H 72" in printed
