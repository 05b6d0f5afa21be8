"""The whole suite in each of the ways in which it must pass: python tests/modes.py [PYTEST ...].

On one processor and on two, with each instruction set of this one, with one thread, in random order
and in parallel, the last two with pytest-randomly and pytest-xdist. It prints one line a mode, and
what failed; the last line has the seconds of all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

TESTS = Path(__file__).parent
SETS = ["portable", "avx2", "avxvnni", "avx512", "avx512vnni", "avx512bf16", "amx"]


def has(name: str) -> bool:
    """Whether the kernels' own choice accepts the instruction set on this processor."""
    call = "from fused_lstm import _C; _C.cpu_instruction_set()"
    environment = os.environ | {"FUSED_LSTM_CPU_ISA": name}
    return not subprocess.run(
        [sys.executable, "-c", call], env=environment, capture_output=True
    ).returncode


def modes() -> dict[str, tuple[list[str], dict[str, str], list[str]]]:
    """By name: what goes before pytest, the environment, pytest's own arguments."""
    in_order = ["-p", "no:randomly"]
    found = {"one processor": (["taskset", "-c", "0"], {}, in_order)}
    if len(os.sched_getaffinity(0)) > 1:
        found["two processors"] = (["taskset", "-c", "0,1"], {}, in_order)
    found["one thread"] = ([], {"OMP_NUM_THREADS": "1"}, in_order)
    for name in [*filter(has, SETS), ""]:
        found[f"FUSED_LSTM_CPU_ISA={name}"] = ([], {"FUSED_LSTM_CPU_ISA": name}, in_order)
    if find_spec("pytest_randomly"):
        found["random order"] = ([], {}, ["-p", "randomly"])
    if find_spec("xdist"):
        found["two at a time"] = ([], {}, [*in_order, "-n", "2"])
    return found


def main(arguments: list[str]) -> int:
    failed, begin = [], time.monotonic()
    for name, (before, environment, options) in modes().items():
        start = time.monotonic()
        done = subprocess.run(
            [*before, sys.executable, "-m", "pytest", TESTS, "-q", *options, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - start
        last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()]
        print(f"{name:28} {seconds:5.0f} s   {last[0]}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout + done.stderr)
    print(f"{time.monotonic() - begin:.0f} s; failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
