"""One test a case of serving: torch's layers, onnxruntime and ours alternate inside it."""

import gc
from dataclasses import replace

import pytest
import torch

from benchmarks import results
from benchmarks.cases import Case, serving_cases
from benchmarks.conftest import RUN
from benchmarks.limits import fits_a_cache, limit_of
from benchmarks.serving import records
from benchmarks.serving.implementations import implementations
from benchmarks.timing import alternate, latencies

MOST_STEPS = 100_000  # whose latencies are taken
LATENCY_BUDGETS = 4  # times --budget, for them all
TIMED_SINGLY = ("onnxruntime", "onnxruntime-bound", *map("stream-{}".format, records.FORMATS))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    chosen = serving_cases(tuple(map(int, option("--threads").split(","))))
    metafunc.parametrize("case", chosen, ids=[case.name for case in chosen])


@torch.no_grad()
def test_serving(case: Case, pytestconfig: pytest.Config) -> None:
    gc.collect()  # what the case before left
    torch.set_num_threads(case.threads)
    budget = pytestconfig.getoption("--budget")
    calls, errors = implementations(case)
    measured = alternate(calls, case.device, budget)
    found = {}
    if case.batch == case.steps == 1:
        single = {name: calls[name] for name in TIMED_SINGLY if name in calls}
        a_step = sum(measured[name].median for name in single)
        found = latencies(single, min(MOST_STEPS, max(100, int(LATENCY_BUDGETS * budget / a_step))))
    by_format = {weights: replace(case, dtype=weights) for weights in records.FORMATS}
    limits = {weights: (limit_of(c), fits_a_cache(c)) for weights, c in by_format.items()}
    run = pytestconfig.stash[RUN]
    run["cases"].append(records.record(case, measured, errors, limits, found))
    if folder := pytestconfig.getoption("--results"):  # at once, so that a run cut short keeps it
        path = folder / f"{results.machine_name(run['facts'])}.json"
        results.save(path, run["facts"], run["cases"])
