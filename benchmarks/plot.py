"""The ratios as one self-contained SVG: a dot a case, a panel a dtype, mode and thread count."""

from __future__ import annotations

import math
from html import escape

from benchmarks.results import Record, Run, ratio
from benchmarks.summary import Column, Summary, all_rows, columns, heading, rows

PANEL = 250  # width of a panel's axis, pixels
LABELS = 190  # width of the row labels
LINE = 18  # height of a row
GAP = 30  # between panels
TOP = 70  # title and panel heading

STYLE = (
    "text{font:12px sans-serif;fill:#222}.small{font-size:10px;fill:#666}"
    ".gain{fill:#1f6fb4;fill-opacity:.55}.loss{fill:#d1495b;fill-opacity:.8}"
    ".axis{stroke:#ddd}.one{stroke:#222}.mean{stroke:#222;stroke-width:2}"
)


def svg(runs: list[Run]) -> str:
    """The plot of every case in the runs.

    Across: how many times faster than nn.LSTM, logarithmic. Down: the report's rows. A short
    upright line marks a row's geometric mean, a tooltip names each dot's case.

    Raises:
        ValueError: there is no case to draw.
    """
    panels = _panels(runs)
    if not panels:
        raise ValueError("no case to plot")
    drawn = [r for of_panel in panels.values() for r in of_panel]
    scale = _Scale([ratio(r) for r in drawn])
    # The panels of a device and dtype stand side by side.
    across = max(sum(other[:2] == key[:2] for other in panels) for key in panels)
    parts: list[str] = []
    y = 0
    strips = dict.fromkeys(key[:2] for key in panels)
    for device, dtype in strips:
        of_strip = {key[2]: r for key, r in panels.items() if key[:2] == (device, dtype)}
        labels = all_rows(r for of_panel in of_strip.values() for r in of_panel)
        parts.append(
            f'<text x="10" y="{y + 24}">{escape(device)}, {dtype}: times as fast as nn.LSTM, '
            "a dot a case, a bar their geometric mean</text>"
        )
        parts += [
            f'<text x="{LABELS - 10}" y="{y + TOP + LINE * i + 13}" text-anchor="end">'
            f"{escape(label)}</text>"
            for i, label in enumerate(labels)
        ]
        for number, (column, records) in enumerate(of_strip.items()):
            x = LABELS + number * (PANEL + GAP)
            parts.append(_panel(records, labels, heading(column), scale, x, y))
        y += TOP + LINE * len(labels) + 2 * GAP
    width = LABELS + across * (PANEL + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
        f'viewBox="0 0 {width} {y}"><title>FusedLSTM against nn.LSTM</title>'
        f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


class _Scale:
    """A logarithmic axis over whole powers of two that hold every ratio and 1."""

    def __init__(self, ratios: list[float]) -> None:
        logs = [math.log2(r) for r in ratios]
        self.low = min(-1, math.floor(min(logs)))
        self.high = max(1, math.ceil(max(logs)))

    def __call__(self, ratio: float) -> float:
        return PANEL * (math.log2(ratio) - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        apart = 1 + (self.high - self.low) // 7  # so that the labels find room
        powers = [p for p in range(self.low, self.high + 1) if p % apart == 0]
        return [2.0**power for power in powers]


def _panels(runs: list[Run]) -> dict[tuple[str, str, Column], list[Record]]:
    """The records by device, dtype and column, each in the order of its first case."""
    panels: dict[tuple[str, str, Column], list[Record]] = {}
    for run in runs:
        for column in columns(run["cases"]):
            for record in run["cases"]:
                if (record["mode"], record["threads"]) == column:
                    key = (str(run["facts"]["device"]), str(record["dtype"]), column)
                    panels.setdefault(key, []).append(record)
    return panels


def _panel(
    records: list[Record], labels: list[str], title: str, scale: _Scale, x: int, y: int
) -> str:
    top, bottom = y + TOP, y + TOP + LINE * len(labels)
    parts = [f'<text x="{x}" y="{y + 46}">{escape(title)}</text>']
    for tick in scale.ticks:
        at = x + scale(tick)
        kind = "one" if tick == 1 else "axis"
        parts.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(
            f'<text class="small" x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">'
            f"{tick:g}x</text>"
        )
    for number, label in enumerate(labels):
        of_row = [r for r in records if label in rows(r)]
        if not of_row:
            continue
        middle = top + LINE * number + LINE / 2
        for record in of_row:
            times = ratio(record)
            kind = "gain" if times >= 1 else "loss"
            parts.append(
                f'<circle class="{kind}" cx="{x + scale(times):.1f}" cy="{middle:g}" r="3.5">'
                f"<title>{escape(record['name'])}: {times:.4g}x</title></circle>"
            )
        mean = x + scale(Summary.of(of_row).geometric_mean)
        parts.append(
            f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" '
            f'y1="{middle - 7:g}" y2="{middle + 7:g}"/>'
        )
    return "\n".join(parts)
