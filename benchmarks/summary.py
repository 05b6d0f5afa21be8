"""The maths of the report: which row a case counts in, and what a set of ratios comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from benchmarks.results import Record, ratio

Column = tuple[str, int | None]  # mode, threads


def geometric_mean(values: Iterable[float]) -> float:
    """Of at least one value, so that a gain and an equal loss come to 1."""
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs))


@dataclass(frozen=True)
class Summary:
    """The ratios of several cases, another's time / FusedLSTM's; ~ marks rough ones."""

    geometric_mean: float
    minimum: float
    losing: int  # cases under 1
    rough: int  # cases whose timings spread widely
    count: int
    limit: str  # ", 85 % of GEMM", the median of the cases that have a limit; "" without one kind

    @staticmethod
    def of(records: list[Record], over: str = "nn") -> Summary:
        """Summarise at least one record, each of which holds the contestant ``over``."""
        ratios = [ratio(r, over) for r in records]
        return Summary(
            geometric_mean=geometric_mean(ratios),
            minimum=min(ratios),
            losing=sum(r < 1 for r in ratios),
            rough=sum(bool(r["wide"]) for r in records),
            count=len(ratios),
            limit=_limit(records) if over == "nn" else "",
        )

    def __str__(self) -> str:
        lost = f", {self.losing} of {self.count} under 1" if self.losing else ""
        least = f" (min {self.minimum:.2f}x{lost})" if self.count > 1 else ""
        return f"**{self.geometric_mean:.2f}x**{least}{self.limit}" + " ~" * bool(self.rough)


def percent(share: float) -> str:
    """A share as the tables write it."""
    return f"{100 * share:.0f} %"


def _limit(records: list[Record]) -> str:
    limits = [r["limit"] for r in records if "limit" in r]
    if len({limit["kind"] for limit in limits}) != 1:
        return ""
    return f", {percent(median(limit['share'] for limit in limits))} of {limits[0]['kind']}"


def rows(record: Record) -> list[str]:
    """The table rows that a record counts in: its group's, and in the grid its batch's too."""
    group = str(record["group"])
    if group == "grid":
        return ["grid", f"grid, B {record['batch']}"]
    if group.startswith("model-"):
        return [
            f"{record['model']} (B{record['batch']} T{record['steps']} H{record['hidden_size']})"
        ]
    return [group.replace("-", " ")]


def all_rows(records: Iterable[Record]) -> list[str]:
    """Every row that occurs: the task models first, the grid's batches in their order."""
    models_first = sorted(
        records, key=lambda r: (not r["group"].startswith("model-"), r["group"], r["batch"])
    )
    return list(dict.fromkeys(row for record in models_first for row in rows(record)))


def columns(records: Iterable[Record]) -> list[Column]:
    """Every (mode, threads) that occurs, inference first."""
    return sorted({(r["mode"], r["threads"]) for r in records}, key=lambda c: (c[0], c[1] or 0))


def heading(column: Column) -> str:
    """A column's title."""
    mode, threads = column
    what = "forward" if mode == "inference" else "forward + backward"
    if threads is None:
        return what
    return f"{what}, {threads} thread{'s' * (threads > 1)}"
