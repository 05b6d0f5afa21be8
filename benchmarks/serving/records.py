"""What is kept of a case of serving, in a run of a results file beside the other cases."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from statistics import median, quantiles
from typing import Any

from torch.utils.benchmark import Measurement

from benchmarks.cases import Case
from benchmarks.results import Record, Run, short
from benchmarks.timing import Latencies

FORMATS = ("float32", "bfloat16", "int8")  # of frozen weights
TITLES = {
    "nn": "nn.LSTM",
    "dynamic-float16": "dynamic float16",  # torch's quantize_dynamic
    "dynamic-int8": "dynamic qint8",
    "onnxruntime": "onnxruntime",
    "onnxruntime-bound": "onnxruntime bound",  # by IO binding
    "onnxruntime-int8": "onnxruntime int8",
    "fused": "FusedLSTM",
    **{f"frozen-{weights}": f"FrozenLSTM {weights}" for weights in FORMATS},
    **{f"stream-{weights}": f"stream {weights}" for weights in FORMATS},
}
Limits = Mapping[str, tuple[float | None, bool]]


def is_serving(record: Record) -> bool:
    """Whether a record of a results file is one of these."""
    return str(record["group"]).startswith("serving-")


def split(runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """The runs with their other cases, those with their cases of serving; none without a case."""
    halves = []
    for half in (False, True):
        cases = [[r for r in run["cases"] if is_serving(r) == half] for run in runs]
        pairs = zip(runs, cases, strict=True)
        halves.append([{**run, "cases": found} for run, found in pairs if found])
    return halves[0], halves[1]


def ours(record: Record, weights: str) -> str:
    """The implementation that serves the case: the stream, in a case of one step."""
    stream = f"stream-{weights}"
    return stream if stream in record["us"] else f"frozen-{weights}"


def record(
    case: Case,
    measured: Mapping[str, Measurement],
    errors: Mapping[str, float],
    limits: Limits,
    latencies: Mapping[str, Latencies],
) -> Record:
    """Times are microseconds a call. ``latencies`` may be empty.

    ``limits``: of each format what the machine does at most, GFLOP/s or GB/s as the case's limit in
    that dtype says, or None; and whether a cache holds the weights.
    """
    quartiles = partial(quantiles, n=4, method="inclusive")
    us = {name: [short(1e6 * t) for t in quartiles(m.times)] for name, m in measured.items()}
    kept: dict[str, Any] = {
        "name": case.name,
        **asdict(case),
        "mode": case.mode,
        "rounds": len(next(iter(measured.values())).times),
        "us": us,  # lower quartile, median, upper quartile
        "cpu_us": {  # median of the calling thread's time on a processor
            name: short(1e6 * median(m.metadata["cpu"])) for name, m in measured.items()
        },
        "wide": [name for name, m in measured.items() if not m.meets_confidence(0.1)],
        "error": {name: float(f"{error:.2g}") for name, error in errors.items()},
        "limit": {},
    }
    for weights, (at_most, is_cached) in limits.items():
        if at_most is None:
            continue
        of_format = replace(case, dtype=weights)
        is_reading = of_format.limit == "reading"
        work = of_format.weight_bytes if is_reading else case.flops
        reached = work / us[ours(kept, weights)][1] / 1e3
        kept["limit"][weights] = {
            "kind": of_format.limit,
            "unit": "GB/s" if is_reading else "GFLOP/s",
            "at_most": short(at_most),
            "reached": short(reached),
            "share": short(reached / at_most),
            "fits_a_cache": is_cached,
        }
    if latencies:
        kept["latency"] = {
            "steps": len(next(iter(latencies.values())).nanoseconds),
            "us": {  # p50, p99, p99.9, worst
                name: list(map(short, of_one.percentiles())) for name, of_one in latencies.items()
            },
            "preemptions": {name: of_one.preemptions for name, of_one in latencies.items()},
        }
    return kept
