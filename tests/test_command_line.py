"""python -m fused_lstm: closed pipes, full disks, Ctrl-C, the version."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fused_lstm
from fused_lstm.demo import REPORT

SOURCE = str(Path(fused_lstm.__file__).parents[1])
DEMO = ["demo", "--device", "cpu", "--task", "predictor"]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def start(*arguments: str, cwd: Path, code: str = "", stdout=subprocess.PIPE) -> subprocess.Popen:
    """Starts the command line in a process of its own, after `code` if there is any."""
    run = "import sys, fused_lstm.__main__ as m; sys.exit(m.run(sys.argv[1:]))"
    command = ["-c", f"{code}\n{run}"] if code else ["-m", "fused_lstm"]
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(tmp_path: Path, option: str) -> None:
    out, err = (process := start(option, cwd=tmp_path)).communicate(timeout=120)
    assert (process.returncode, out, err) == (0, f"fused_lstm {fused_lstm.__version__}\n", "")


def test_one_thread_is_not_threads(tmp_path: Path) -> None:
    out, _ = start("info", cwd=tmp_path).communicate(timeout=120)
    assert ", 1 thread\n" in out


@pytest.mark.parametrize("command", [["info"], [*DEMO, "--steps", "100000"]], ids=["info", "demo"])
def test_closed_pipe(tmp_path: Path, command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*command, cwd=tmp_path, stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")
    assert not list(tmp_path.iterdir())


@needs_full
def test_full_standard_output(tmp_path: Path) -> None:
    with FULL.open("w") as full:
        process = start("info", cwd=tmp_path, stdout=full)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err == "fused_lstm: standard output: No space left on device\n"


def test_unknown_instruction_set(tmp_path: Path) -> None:
    code = "import os; os.environ['FUSED_LSTM_CPU_ISA'] = 'foo'"
    _, err = (process := start("info", cwd=tmp_path, code=code)).communicate(timeout=120)
    assert process.returncode == 2
    assert err.startswith("fused_lstm: FUSED_LSTM_CPU_ISA is 'foo'")
    assert err.count("\n") == 1


@pytest.mark.parametrize("existing", [None, "an older report"], ids=["new", "existing"])
def test_ctrl_c_keeps_the_previous_report(tmp_path: Path, existing: str | None) -> None:
    report = tmp_path / REPORT
    if existing:
        report.write_text(existing)
    # Background jobs of a shell, and their children, ignore SIGINT.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = start(*DEMO, "--steps", "100000", cwd=tmp_path, code=code)
    assert process.stdout is not None
    assert process.stdout.readline()  # Training starts after the first line.
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "\nstopped\n")
    assert [file.name for file in tmp_path.iterdir()] == ([REPORT] if existing else [])
    assert not existing or report.read_text() == existing


@pytest.mark.parametrize("existing", [None, "an older report"], ids=["new", "existing"])
def test_full_disk_keeps_the_previous_report(tmp_path: Path, existing: str | None) -> None:
    report = tmp_path / REPORT
    if existing:
        report.write_text(existing)
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    process = start(*DEMO, "--steps", "2", cwd=tmp_path, code=code)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "Parity on all tasks" in out
    assert (
        err == f"python -m fused_lstm demo: report '{REPORT}' cannot be written: File too large\n"
    )
    assert [file.name for file in tmp_path.iterdir()] == ([REPORT] if existing else [])
    assert not existing or report.read_text() == existing


@needs_full
def test_report_to_a_full_device(tmp_path: Path) -> None:
    process = start(*DEMO, "--steps", "2", "--out", str(FULL), cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.splitlines() == [
        "python -m fused_lstm demo: report '/dev/full' cannot be written: No space left on device"
    ]
    assert FULL.is_char_device()


def test_report_through_a_link_keeps_link_and_mode(tmp_path: Path) -> None:
    real = tmp_path / "real.html"
    real.write_text("an older report")
    real.chmod(0o640)
    (tmp_path / "link.html").symlink_to(real)
    process = start(*DEMO, "--steps", "2", "--out", "link.html", cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    assert (tmp_path / "link.html").is_symlink()
    assert real.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert real.stat().st_mode & 0o777 == 0o640
