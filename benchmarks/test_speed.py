"""The pytest-benchmark cases: one test a case, FusedLSTM and the others alternating inside it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks import workloads
from benchmarks.cases import Case, cases
from benchmarks.limits import Limits
from benchmarks.results import Record, record
from benchmarks.timing import Contest, clock


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    chosen = cases(option("--device"), option("--threads"), option("--quick"))
    metafunc.parametrize("case", chosen, ids=[case.name for case in chosen])


@pytest.fixture(autouse=True)
def _threads(case: Case) -> Iterator[None]:
    before = torch.get_num_threads()
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    yield
    torch.set_num_threads(before)
    gc.collect()  # the next case starts with this one's memory returned


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits()


@pytest.mark.benchmark(timer=clock.read)
def test_speed(
    case: Case,
    benchmark: Any,
    keep: Callable[[Record], None],
    limits: Limits,
    pytestconfig: pytest.Config,
) -> None:
    calls = workloads.contestants(case)
    workloads.check_agreement(case, calls)
    contest = Contest(calls, case.device, pytestconfig.getoption("--budget"))
    benchmark.group = case.group
    contest.run_under(benchmark)
    if not benchmark.enabled:
        return
    figures = record(case, contest.spreads, contest.rounds, limits.of(case))
    if case.device == "cuda":
        figures["peak_bytes"] = {name: workloads.peak_bytes(run) for name, run in calls.items()}
    benchmark.extra_info.update(figures)
    keep(figures)
