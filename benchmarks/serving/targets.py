"""What is asked of frozen layers and streams, and what the records reached of it."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import geometric_mean

from benchmarks.results import Record
from benchmarks.serving.records import ours


@dataclass(frozen=True)
class Target:
    """The least that is asked of a figure of each record that ``has`` lets in, or the most."""

    name: str
    has: Callable[[Record], bool]
    figure: Callable[[Record], float | None]  # None where a record does not have it
    asked: float
    is_most: bool = False
    is_mean: bool = False  # asked of their geometric mean
    unit: str = "x"

    def is_met(self, value: float) -> bool:
        return value <= self.asked if self.is_most else value >= self.asked


@dataclass(frozen=True)
class Outcome:
    """What the worst record reached, or the mean of all."""

    reached: float
    is_met: bool
    worst: Record
    missed: int  # records that alone are not as good as asked
    records: int


def _gain(peer: str, weights: str) -> Callable[[Record], float | None]:
    """The median time of a peer over that of ours."""

    def gain(r: Record) -> float | None:
        return r["us"][peer][1] / r["us"][ours(r, weights)][1] if peer in r["us"] else None

    return gain


def _error_ratio(r: Record) -> float:
    """The error of our int8 over that of torch's."""
    return r["error"][ours(r, "int8")] / r["error"]["dynamic-int8"]


def _is_step(r: Record) -> bool:
    return r["batch"] == 1 and r["steps"] == 1


def _is_cached(r: Record) -> bool:
    return r["limit"]["float32"]["fits_a_cache"]


def _is_small_step(r: Record) -> bool:
    return _is_step(r) and r["hidden_size"] <= 128


def _is_large_step(r: Record) -> bool:
    return _is_step(r) and r["hidden_size"] > 128 and _is_cached(r)


def _is_any(r: Record) -> bool:
    return True


_RUN, _BOUND = _gain("onnxruntime", "float32"), _gain("onnxruntime-bound", "float32")
TARGETS = (
    Target("float32, a step, H <= 128: onnxruntime's time", _is_small_step, _RUN, 3),
    Target("float32, a step, H <= 128: with IO binding", _is_small_step, _BOUND, 3),
    Target("float32, a step, H > 128 in a cache: onnxruntime's time", _is_large_step, _RUN, 1.5),
    Target("float32, a step, H > 128 in a cache: with IO binding", _is_large_step, _BOUND, 1.5),
    Target(
        "float32, a step, weights in memory: share of its bandwidth",
        lambda r: _is_step(r) and not _is_cached(r),
        lambda r: 100 * r["limit"]["float32"]["share"],
        80,
        unit=" %",
    ),
    Target(
        "float32, sequences of B 1: onnxruntime's time",
        lambda r: r["batch"] == 1 and r["steps"] > 1,
        _RUN,
        1.1,
    ),
    Target(
        "bfloat16, mean: onnxruntime's time",
        _is_any,
        _gain("onnxruntime", "bfloat16"),
        1.5,
        is_mean=True,
    ),
    Target(
        "int8, mean: onnxruntime's time", _is_any, _gain("onnxruntime", "int8"), 2, is_mean=True
    ),
    Target(
        "bfloat16: quantize_dynamic's time, float16",
        _is_any,
        _gain("dynamic-float16", "bfloat16"),
        1.1,
    ),
    Target("int8: quantize_dynamic's time, qint8", _is_any, _gain("dynamic-int8", "int8"), 1.1),
    Target("int8: share of quantize_dynamic's error", _is_any, _error_ratio, 1, is_most=True),
    Target(
        "float32, a step of one layer, H <= 64",
        lambda r: _is_step(r) and r["num_layers"] == 1 and r["hidden_size"] <= 64,
        lambda r: r["us"][ours(r, "float32")][1],
        4,
        is_most=True,
        unit=" us",
    ),
)


def outcome(target: Target, records: list[Record]) -> Outcome | None:
    """None if no record has the figure."""
    pairs = [(target.figure(r), r) for r in records if target.has(r)]
    found = [(value, r) for value, r in pairs if value is not None]
    if not found:
        return None
    reached, worst = (max if target.is_most else min)(found, key=lambda pair: pair[0])
    if target.is_mean:
        reached = geometric_mean(value for value, _ in found)
    missed = sum(not target.is_met(value) for value, _ in found)
    return Outcome(reached, target.is_met(reached), worst, missed, len(found))
