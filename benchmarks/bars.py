"""The bars that FusedLSTM is to pass on a CPU, and what was measured against each."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.cases import Case, cases
from benchmarks.results import Record, case_of, has_ratio, microseconds, ratio
from benchmarks.summary import Column, columns, geometric_mean, percent


@dataclass(frozen=True)
class Measure:
    """A figure of a record: what it is, which way is better, and how it is written."""

    of: Callable[[Record], float]
    in_record: Callable[[Record], bool]
    more_is_better: bool
    written: Callable[[float], str]


TIMES_NN = Measure(ratio, lambda r: True, True, "{:.2f}x".format)
TIMES_ONNX = Measure(
    lambda r: ratio(r, "onnxruntime"), lambda r: has_ratio(r, "onnxruntime"), True, "{:.2f}x".format
)
SHARE = Measure(lambda r: float(r["limit"]["share"]), lambda r: "limit" in r, True, percent)
TIME = Measure(microseconds, lambda r: True, False, "{:.4g} us".format)


@dataclass(frozen=True)
class Bar:
    """One bar: which cases it is about, what is measured, and what it must be in each mode.

    ``by_mean`` judges the cases' geometric mean; otherwise every one of them must pass.
    """

    title: str
    about: Callable[[Case], bool]
    must_be: dict[str, float]
    by_mean: bool = False
    measure: Measure = TIMES_NN


def _grid(case: Case) -> bool:
    return case.group == "grid" and case.dtype == "float32"


def _one_small_step(case: Case) -> bool:
    return case.dtype == "float32" and (case.batch, case.steps, case.hidden_size) == (1, 1, 64)


def _both(inference: float, training: float) -> dict[str, float]:
    return {"inference": inference, "training": training}


BARS = (
    Bar("grid", _grid, _both(2, 2.5), by_mean=True),
    Bar(
        "B1 T<=20 H<=128",
        lambda c: _grid(c) and c.batch == 1 and c.steps <= 20 and c.hidden_size <= 128,
        _both(5, 5),
    ),
    Bar(
        "B1 T100 H128..1024",
        lambda c: _grid(c) and c.batch == 1 and c.steps == 100 and c.hidden_size >= 128,
        _both(1.6, 3),
    ),
    Bar("packed", lambda c: c.group == "packed" and c.dtype == "float32", _both(3, 3)),
    Bar("any shape", lambda c: c.dtype == "float32" and not c.recompute, _both(1, 1)),
    Bar(
        "bfloat16 grid",
        lambda c: c.group == "grid" and c.dtype == "bfloat16",
        _both(1.2, 1.5),
        by_mean=True,
    ),
    Bar("onnxruntime, grid", _grid, {"inference": 1.2}, by_mean=True, measure=TIMES_ONNX),
    Bar("onnxruntime, any shape", lambda c: c.in_onnx, {"inference": 1}, measure=TIMES_ONNX),
    Bar("share of GEMM", lambda c: _grid(c) and c.limit == "GEMM", _both(0.9, 0.9), measure=SHARE),
    Bar(
        "share of reading",
        lambda c: _grid(c) and c.limit == "reading",
        _both(0.8, 0.8),
        measure=SHARE,
    ),
    Bar(
        "one step, module",
        lambda c: c.group == "grid" and _one_small_step(c),
        {"inference": 15},
        measure=TIME,
    ),
    Bar(
        "one step, cell",
        lambda c: c.group == "cell" and _one_small_step(c),
        {"inference": 15},
        measure=TIME,
    ),
)


@dataclass(frozen=True)
class Judged:
    """What was measured against a bar in one mode at one thread count."""

    bar: Bar
    column: Column
    mean: float
    worst: float
    worst_name: str
    measured: int  # cases
    planned: int

    @property
    def must_be(self) -> str:
        """The bar's demand in words."""
        what = "geometric mean" if self.bar.by_mean else "each"
        sign = ">=" if self.bar.measure.more_is_better else "<"
        return f"{what} {sign} {self.shown(self._demand)}"

    @property
    def verdict(self) -> str:
        """Whether the bar is met; while cases are missing, at most so far."""
        passes = operator.ge if self.bar.measure.more_is_better else operator.lt
        if not passes(self.mean if self.bar.by_mean else self.worst, self._demand):
            return "**not met**"
        return "met" if self.measured == self.planned else "met so far"

    def shown(self, value: float) -> str:
        """A figure as this bar writes it."""
        return self.bar.measure.written(value)

    @property
    def _demand(self) -> float:
        return self.bar.must_be[self.column[0]]


def judge(records: list[Record]) -> list[Judged]:
    """Each bar in each mode at each thread count that was measured on a CPU.

    Records of cases that are no longer planned do not count.
    """
    on_cpu = {case_of(r): r for r in records if r["device"] == "cpu"}
    found = []
    for bar in BARS:
        for column in columns(on_cpu.values()):
            mode, threads = column
            if mode in bar.must_be:
                planned = [c for c in cases("cpu", (threads,)) if c.mode == mode and bar.about(c)]
                measured = [on_cpu[c] for c in planned if c in on_cpu]
                measured = [r for r in measured if bar.measure.in_record(r)]
                if measured:
                    found.append(_judged(bar, column, measured, len(planned)))
    return found


def _judged(bar: Bar, column: Column, records: list[Record], planned: int) -> Judged:
    worst = (min if bar.measure.more_is_better else max)(records, key=bar.measure.of)
    return Judged(
        bar,
        column,
        mean=geometric_mean(map(bar.measure.of, records)),
        worst=bar.measure.of(worst),
        worst_name=f"{worst['group']}-{case_of(worst).shape}",
        measured=len(records),
        planned=planned,
    )
