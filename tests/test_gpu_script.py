"""benchmarks/gpu.sh on a machine without a GPU: its stages, their order and what they leave."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.cases import HEADLINE, cases, headline, rest_by_worth

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.sh"
STAGES = ["build", "latency", "persistent", "check", "steps", "headline", "peers"]
STAGES += ["streams", "sanitize", "bench"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


class Machine:
    """A folder with the script, and with programs in the place of python3, nvcc and the others."""

    def __init__(self, folder: Path) -> None:
        (folder / "benchmarks").mkdir()
        (folder / "tests").mkdir()
        shutil.copy(SCRIPT, folder / "benchmarks")
        for name in ("test_persistent", "test_cuda"):
            (folder / f"tests/{name}.py").write_text("cuda")
        self.folder, self.bin, self.results = folder, folder / "bin", folder / "results"
        self.bin.mkdir()
        for name in ("python3", "nvidia-smi", "compute-sanitizer"):
            self.program(name, f'echo "{name} $*" >>"{folder}/calls"')
        # The compiler makes a program, whose name is its last argument.
        self.program("nvcc", '[ "$1" = --version ] || cp "$(type -P true)" "${!#}"')

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", self.folder / "benchmarks/gpu.sh", self.results, *arguments],
            env=os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}"} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def verdicts(self) -> dict[str, str]:
        lines = (self.results / "summary.txt").read_text().splitlines()
        found = [line.split(": ", 1) for line in lines if line[:1] != " " and ": " in line]
        return {stage: verdict.split(" after")[0] for stage, verdict in found}

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


def test_all_stages_in_order(machine):
    done = machine.run()
    assert done.returncode == 0, done.stdout
    assert list(machine.verdicts().items()) == [(stage, "passed") for stage in STAGES]
    for stage in STAGES:
        assert (machine.results / f"{stage}.log").exists()
    modules = [
        c for c in machine.calls() if c.startswith("python3 -m fused_lstm") or "-m benchm" in c
    ]
    assert [c.split(" -m ")[1].split()[0:2][-1] for c in modules if "report" not in c] == [
        "info",
        "check",
        "benchmarks.steps",
        "benchmarks.peers",
        "benchmarks.streams",
    ]
    tests = [c for c in machine.calls() if "faulthandler_timeout" in c]
    assert {name for c in tests for name in ("block", "cluster", "grid") if f"-k {name}" in c} == {
        "block",
        "cluster",
        "grid",
    }
    assert any("test_cuda.py" in c for c in tests)


def test_the_named_stages_alone(machine):
    machine.run("steps", "check")
    assert list(machine.verdicts()) == ["steps", "check"]


def test_an_unknown_stage(machine):
    done = machine.run("stepz")
    assert done.returncode == 2
    assert "no stage is called stepz" in done.stderr


def test_a_failed_build_ends_the_run(machine):
    machine.program("python3", '[ "$1" != setup.py ]')
    done = machine.run()
    assert done.returncode == 1
    assert machine.verdicts()["build"] == "FAILED"
    assert "steps" not in machine.verdicts()


def test_a_failed_test_process_is_reported(machine):
    machine.program("python3", 'case $* in *"-k grid"*) echo "FAILED a_test"; exit 1 ;; esac')
    assert machine.run("persistent", "steps").returncode == 1
    assert machine.verdicts() == {"persistent": "FAILED", "steps": "passed"}
    assert "1 FAILED a_test" in (machine.results / "persistent.log").read_text()


def test_a_stage_is_cut_at_its_limit_and_keeps_its_lines(machine):
    machine.program("python3", "echo a line; exec sleep 30")
    assert machine.run("steps", LIMIT_STEPS="1").returncode == 1
    assert machine.verdicts() == {"steps": "CUT SHORT at its limit"}
    assert "a line" in (machine.results / "steps.log").read_text()


def test_the_budget_ends_the_run(machine):
    machine.program("python3", "exec sleep 30")
    assert machine.run("steps", "check", BUDGET="1").returncode == 1
    assert machine.verdicts() == {
        "steps": "CUT SHORT at its limit",
        "check": "not run, the time is up",
    }


def test_a_machine_without_the_sanitizer(machine):
    (machine.bin / "compute-sanitizer").unlink()
    machine.run("sanitize", CUDA_HOME="/nowhere")
    assert machine.verdicts() == {"sanitize": "skipped"}


def test_headline_and_the_rest_are_all_cases():
    found = cases("cuda")
    first, rest = headline(found), rest_by_worth(found)
    assert {c.name for c in first} | {c.name for c in rest} == {c.name for c in found}
    assert len(first) + len(rest) == len(found)
    assert {c.dtype for c in first} == {"float32", "bfloat16", "float16"}
    for start in HEADLINE:
        assert {c.mode for c in first if c.name.startswith(start)} == {"inference", "training"}
    assert first[0].name.startswith("grid-B16-T1024-D768-H768")
    assert {(c.batch, c.steps, c.hidden_size) for c in rest[:6]} == {(16, 1024, 1024)}
