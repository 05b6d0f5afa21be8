"""The maths of the report: which row a case counts in, and what a set of ratios comes to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.results import Record

Column = tuple[str, int | None]  # mode, threads


@dataclass(frozen=True)
class Summary:
    """The ratios nn.LSTM / FusedLSTM of several cases; over 1 is a gain, ~ marks rough ones."""

    geometric_mean: float
    minimum: float
    losing: int  # cases under 1
    rough: int  # cases whose timings spread widely
    count: int

    @staticmethod
    def of(records: list[Record]) -> Summary:
        """Summarise at least one record."""
        ratios = [float(r["ratio"]) for r in records]
        return Summary(
            geometric_mean=math.exp(math.fsum(map(math.log, ratios)) / len(ratios)),
            minimum=min(ratios),
            losing=sum(ratio < 1 for ratio in ratios),
            rough=sum(bool(r["wide"]) for r in records),
            count=len(ratios),
        )

    def __str__(self) -> str:
        mark = " ~" if self.rough else ""
        if self.count == 1:
            return f"**{self.geometric_mean:.2f}x**{mark}"
        lost = f", {self.losing} of {self.count} under 1" if self.losing else ""
        return f"**{self.geometric_mean:.2f}x** (min {self.minimum:.2f}x{lost}){mark}"


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
