"""Options of the benchmark run, and where its figures go."""

import os
from pathlib import Path

import pytest
import torch

from benchmarks import report, results

RUN: pytest.StashKey[results.Run] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("fused_lstm benchmarks").addoption
    add("--quick", action="store_true", help="only the small float32 cases")
    add("--regimes", action="store_true", help="only what the table of a CPU's regimes needs")
    add("--serving", action="store_true", help="frozen layers and streams, and nothing else")
    add(
        "--headline", choices=("only", "without"), help="the headline's cases, or the rest by worth"
    )
    add("--rehearse", action="store_true", help="a GPU's cases, tiny, on an emulated one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cpu", "cuda"), default=device, help="default here: %(default)s")
    add("--budget", type=float, default=1.0, help="seconds for a case's rounds (%(default)s)")
    threads = "1,2" if (os.cpu_count() or 1) > 1 else "1"
    add("--threads", default=threads, help="thread counts of the CPU cases (%(default)s)")
    add("--results", type=Path, metavar="FOLDER", help="add the figures to the machine's file here")


def pytest_configure(config: pytest.Config) -> None:
    if (device := config.getoption("--device")) == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device is cuda, but torch sees no CUDA GPU here")
    of_cpu = config.getoption("--serving")
    config.stash[RUN] = {"facts": results.facts("cpu" if of_cpu else device), "cases": []}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of the two files of tests one is chosen by --serving; None leaves the others to pytest."""
    others = {"test_speed.py": True, "test_serving.py": False}
    chosen = config.getoption("--serving")
    return others.get(collection_path.name) == chosen or None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    run = terminalreporter.config.stash[RUN]
    if run["cases"]:
        terminalreporter.section("FusedLSTM against nn.LSTM")
        terminalreporter.write_line(report.text([run]))
