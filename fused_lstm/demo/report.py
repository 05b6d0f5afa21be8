"""The report: one HTML file that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from fused_lstm.demo import pictures, table
from fused_lstm.demo.train import MARGIN, Comparison

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --ink: #1d2129; --soft: #666d7a; --rule: #e3e4e8; --cell: #f1f2f4;
  --fused: #2f6fe4; --reference: #c2570c; --good: #18794e; --bad: #c62a2f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161b; --ink: #e6e8ec; --soft: #9aa1ad; --rule: #2b2f38; --cell: #1e2128;
    --fused: #6ea0ff; --reference: #ffa057; --good: #4cc38a; --bad: #ff6369;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3rem 1.25rem 5rem; max-width: 58rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 0.5rem; }
h2 { font-size: 1.3rem; letter-spacing: -0.01em; margin: 4rem 0 0.25rem; }
h2::first-letter { text-transform: uppercase; }
p { margin: 0.5rem 0; max-width: 44rem; }
.soft, figcaption { color: var(--soft); }
.good { color: var(--good); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; margin: 1.75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.8125rem; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); text-align: right; padding: 0.2rem 0.35rem; }
thead tr:first-child th { text-align: center; font-size: 0.8rem; }
thead tr:first-child th.group { border-bottom: 1px solid var(--rule); }
td { text-align: right; padding: 0.5rem 0.35rem; border-top: 1px solid var(--rule); }
th.words, td.words { text-align: left; }
td:first-child { font-weight: 600; }
figure { margin: 1.75rem 0; }
figcaption { font-size: 0.875rem; line-height: 1.5; margin-top: 0.35rem; max-width: 44rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.matrix svg { max-width: 27rem; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--ink);
  font-variant-numeric: tabular-nums; }
svg .tick, svg .label { fill: var(--soft); }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke-width: 1.5; stroke-linejoin: round; }
svg .fused { stroke: var(--fused); stroke-width: 4.5; stroke-opacity: 0.45; }
svg .reference { stroke: var(--reference); stroke-width: 1.25; }
svg .truth { stroke: var(--ink); stroke-width: 1.25; }
svg .dots { stroke: var(--fused); stroke-width: 3.5; stroke-linecap: round; }
svg .naive { stroke: var(--soft); stroke-width: 1.25; stroke-dasharray: 3 3; }
svg .bound { stroke: var(--soft); stroke-dasharray: 5 4; }
svg .faint { stroke: var(--soft); stroke-width: 0.75; stroke-opacity: 0.5; }
svg .cell { fill: var(--cell); }
svg .hit { fill: var(--fused); }
svg .miss { fill: var(--reference); }
svg .on-ink { fill: var(--paper); }
svg image { image-rendering: pixelated; }
"""


def page(comparisons: list[Comparison], facts: Iterable[str]) -> str:
    """The report of ``comparisons`` as HTML; ``facts`` say on what and how they were made."""
    faults = [fault for each in comparisons for fault in table.faults(each)]
    verdict = (
        "".join(f'<p class="bad">{escape(fault)}.</p>' for fault in faults)
        or '<p class="good">Parity: the two differ by no more than rounding makes them differ.</p>'
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>FusedLSTM and nn.LSTM, side by side</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<h1>FusedLSTM and nn.LSTM, side by side</h1>\n"
        f'<p class="soft">{escape(" · ".join(facts))}</p>\n{verdict}\n'
        f"{_table(comparisons)}\n<p>{_METHOD}</p>\n"
        + "\n".join(map(_section, comparisons))
        + "\n</body>\n</html>\n"
    )


_METHOD = (
    "Both train from the same weights on the same batches, a step of one and a step of the other "
    "in turns. Two correct LSTMs differ by rounding alone, which training lets grow; how far is "
    "measured: a twin of the nn.LSTM model trains along, its weights one rounding error away at "
    f"the start. The losses may differ by {MARGIN:g} times what the twin has strayed so far, and "
    "so, by what the twin does there, may the first gradients and the predictions on the same "
    "trained weights."
)


def _table(comparisons: list[Comparison]) -> str:
    groups = "".join(
        f'<th colspan="{len(names)}"{" class=" + chr(34) + "group" + chr(34) if title else ""}>'
        f"{title}</th>"
        for title, names in table.COLUMNS
    )
    names = _row("th", [name for _, group in table.COLUMNS for name in group])
    rows = "".join(_row("td", table.cells(comparison)) for comparison in comparisons)
    return (
        f'<div class="scroll"><table><thead><tr>{groups}</tr>{names}</thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(tag: str, cells: list[str]) -> str:
    written = []
    for index, cell in enumerate(cells):
        words = ' class="words"' if index < table.TEXT_COLUMNS else ""
        written.append(f"<{tag}{words}>{escape(cell)}</{tag}>")
    return f"<tr>{''.join(written)}</tr>"


def _section(comparison: Comparison) -> str:
    task = comparison.task
    picture, caption = pictures.held_out(comparison)
    shape = "matrix" if "matrix" in picture else "chart"
    return "\n".join(
        [
            f"<section>\n<h2>{escape(task.name)}</h2>",
            f'<p class="soft">{escape(task.data)}. {escape(task.model)}. '
            f"Naive is {escape(task.naive_rule)}.</p>",
            _figure(pictures.losses(comparison), "The loss of both at every step, on a log scale."),
            _figure(
                pictures.differences(comparison),
                "How far apart the losses are at each step, and how far rounding may bring them. "
                "Where no point is, they are equal to the last bit.",
            ),
            _figure(picture, caption, shape),
            _figure(
                pictures.gates(comparison),
                "One held-out sequence, and what each hidden unit of the trained FusedLSTM does "
                "while reading it (first layer, forward): a row is a unit, those that remember "
                "longest on top. Gates i, f, o run from 0, dark, to 1, bright; g and the cell "
                "state from negative, blue, to positive, orange.",
            ),
            "</section>",
        ]
    )


def _figure(picture: str, caption: str, shape: str = "chart") -> str:
    return f'<figure class="{shape}">{picture}<figcaption>{escape(caption)}</figcaption></figure>'
