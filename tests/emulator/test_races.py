"""The emulator's race detector and its delayed stores: quiet where memory is handed over rightly,
and not where it is not; then the kernels under both."""

from __future__ import annotations

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
    ("async", "barriers that not all know of", {}, "which has not begun"),
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


@pytest.mark.parametrize("name, fault, options, message", FAULTS, ids=lambda value: str(value))
def test_fault_of_a_pattern(patterns, name, fault, options, message):
    done = run_pattern(patterns, [name, fault], options, seed=1)
    assert done.returncode != 0
    assert message in done.stderr
