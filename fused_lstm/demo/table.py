"""The comparisons as one table, for the terminal and for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fused_lstm.demo.train import Comparison

COLUMNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("", ("task", "measure")),
    ("held-out score", ("FusedLSTM", "nn.LSTM", "naive")),
    ("loss difference", ("largest", "of allowed")),
    ("training step, ms", ("FusedLSTM", "nn.LSTM", "speedup")),
    ("", ("parity",)),
)
TEXT_COLUMNS = 2  # Words are aligned to the left, figures to the right.


def cells(comparison: Comparison) -> list[str]:
    """A row of the table, one cell for each of COLUMNS."""
    task, fused, reference = comparison.task, comparison.fused, comparison.reference
    return [
        task.name,
        task.measure,
        score(fused.score),
        score(reference.score),
        score(task.naive),
        f"{max(loss.difference for loss in comparison.losses):.1e}",
        _percent(comparison.worst_loss.share),
        f"{fused.milliseconds:.2f}",
        f"{reference.milliseconds:.2f}",
        f"{reference.milliseconds / fused.milliseconds:.2f}x",
        "yes" if comparison.parity else "NO",
    ]


def text(comparisons: list[Comparison]) -> str:
    """The table in plain characters, then a line for each way in which parity is broken."""
    names = [name for _, group in COLUMNS for name in group]
    rows = [names, *map(cells, comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    heads = []
    for title, group in COLUMNS:
        across = widths[: len(group)]
        widths = widths[len(group) :] + across
        heads.append(title.center(sum(across) + 2 * len(group) - 2))
    lines = ["  ".join(heads), aligned(rows)]
    return "\n".join([*lines, *(fault for each in comparisons for fault in faults(each))])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of equal columns, a rule below the first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index < TEXT_COLUMNS else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def faults(comparison: Comparison) -> list[str]:
    """A sentence for each way in which parity is broken."""
    return [
        f"{comparison.task.name}: {deviation.what} differ by {deviation.difference:.1e}, "
        f"{deviation.allowed:.1e} is allowed"
        for deviation in comparison.broken
    ]


def score(score: float) -> str:
    return f"{score:#.4g}".rstrip(".")


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "-"
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:,.0f} %"
