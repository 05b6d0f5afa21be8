"""One test a case: nn.LSTM, FusedLSTM and the others alternate inside it."""

import gc
from dataclasses import replace

import pytest
import torch

from benchmarks import results, workloads
from benchmarks.cases import IN_REGIMES, Case, cases, headline, rest_by_worth
from benchmarks.conftest import RUN
from benchmarks.limits import cache_flush, limit_of
from benchmarks.timing import alternate


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    threads = tuple(map(int, option("--threads").split(",")))
    device = "cuda" if option("--rehearse") else option("--device")
    chosen = cases(device, threads, option("--quick"))
    if option("--regimes"):
        chosen = [case for case in chosen if case.name.startswith(IN_REGIMES)]
    if option("--headline"):
        chosen = (headline if option("--headline") == "only" else rest_by_worth)(chosen)
    names = [case.name for case in chosen]
    if option("--rehearse"):
        tiny = {"batch": 3, "steps": 4, "input_size": 5, "hidden_size": 20}
        chosen = [replace(case, **tiny, device="cpu", threads=1) for case in chosen]
    metafunc.parametrize("case", chosen, ids=names)


def test_speed(case: Case, pytestconfig: pytest.Config) -> None:
    gc.collect()  # what the case before left
    if case.threads is not None:
        torch.set_num_threads(case.threads)
    calls = workloads.implementations(case)
    workloads.check_agreement(case, calls)
    flush = cache_flush() if case.cold else None
    measured = alternate(calls, case.device, pytestconfig.getoption("--budget"), flush)
    limit = None if pytestconfig.getoption("--rehearse") else limit_of(case)
    record = results.record(case, measured, limit)
    if case.device == "cuda":
        record["peak_bytes"] = {name: workloads.peak_bytes(call) for name, call in calls.items()}
    run = pytestconfig.stash[RUN]
    run["cases"].append(record)
    if folder := pytestconfig.getoption("--results"):  # at once, so that a run cut short keeps it
        path = folder / f"{results.machine_name(run['facts'])}.json"
        results.save(path, run["facts"], run["cases"])
