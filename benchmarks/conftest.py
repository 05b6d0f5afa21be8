"""Options of the benchmark run, and where its figures go."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bars, facts, results, tables


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fused_lstm benchmarks")
    group.addoption("--quick", action="store_true", help="only the small float32 cases")
    group.addoption(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="what to measure on (default: %(default)s)",
    )
    group.addoption(
        "--budget",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="time for a case's rounds; each gets three at least (default: %(default)s)",
    )
    group.addoption(
        "--threads",
        type=_counts,
        default=tuple(range(1, 1 + min(2, os.cpu_count() or 1))),
        metavar="N,N",
        help="thread counts of the CPU cases (default: 1,2 where there are two cores)",
    )
    group.addoption(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="add the figures to the machine's file in this folder (default: keep none)",
    )


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device is cuda, but torch sees no CUDA GPU here")
    config.stash[_RUN] = {"facts": facts.collect(device), "cases": []}


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[results.Record], None]:
    """Keeps a case's record; written at once, so that a run cut short loses nothing."""
    config = request.config

    def add(record: results.Record) -> None:
        run = config.stash[_RUN]
        run["cases"].append(record)
        folder = config.getoption("--results")
        if folder is not None:
            path = folder / f"{facts.machine_name(run['facts'])}.json"
            results.save(path, run["facts"], run["cases"])

    return add


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine_info["fused_lstm"] = config.stash[_RUN]["facts"]


@pytest.hookimpl(trylast=True)  # below pytest-benchmark's long table
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    run = terminalreporter.config.stash[_RUN]
    if run["cases"]:
        terminalreporter.section("FusedLSTM against nn.LSTM")
        terminalreporter.write_line(tables.text([run]))
        judged = bars.judge(run["cases"])
        if judged:
            terminalreporter.section("What is to be reached")
            terminalreporter.write_line(tables.bars_table(judged))


_RUN: pytest.StashKey[results.Run] = pytest.StashKey()
