"""The report: one HTML file that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from fused_lstm.demo import table
from fused_lstm.demo.pictures import pictures
from fused_lstm.demo.train import MARGIN, Comparison

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1d2129; --soft: #5f6673; --rule: #dfe1e6; --good: #18794e; --bad: #c62a2f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161b; --ink: #e6e8ec; --soft: #a3aab6; --rule: #343945; --good: #4cc38a;
    --bad: #ff6b70;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 64rem;
  background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 0.5rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3.5rem 0 0; padding-top: 1.5rem;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 0 0 0.5rem; }
p { margin: 0.5rem 0; max-width: 44rem; }
.soft, figcaption, th { color: var(--soft); }
.good, .bad { font-weight: 600; }
.good { color: var(--good); }
.bad { color: var(--bad); }
table { border-collapse: collapse; margin: 1.5rem 0; width: 100%; max-width: 44rem;
  font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0 0.3rem 0.75rem; text-align: right; }
th { font-weight: 400; }
th:first-child { padding-left: 0; text-align: left; }
th[colspan] { color: var(--ink); font-weight: 600; }
th[colspan]::first-letter { text-transform: uppercase; }
tbody { border-top: 1px solid var(--rule); }
.pictures { columns: 24rem 2; column-gap: 3rem; }
figure { break-inside: avoid; margin: 0; padding-top: 2rem; }
figcaption { font-size: 0.875rem; line-height: 1.5; margin-top: 0.5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
"""

METHOD = (
    "Both train from the same weights on the same batches, one step of one and one step of the "
    "other alternately. Two correct LSTMs differ by rounding alone, but training lets any "
    "difference grow. How much is measured: a second nn.LSTM model trains along, whose weights "
    f"start one rounding error away. FusedLSTM may differ by {MARGIN:g} times as much as that one: "
    "in its losses, in the gradients of the first batch, and in its predictions with the weights "
    "that nn.LSTM learnt."
)


def page(comparisons: list[Comparison], facts: Iterable[str]) -> str:
    """The report as HTML.

    Args:
        comparisons: One for each task.
        facts: The device, the dtype and whatever else the results depend on.

    Returns:
        The text of the file.
    """
    faults = [fault for each in comparisons for fault in table.faults(each)]
    verdict = (
        "".join(f'<p class="bad">{escape(fault)}.</p>' for fault in faults)
        or '<p class="good">Parity: the two differ by no more than rounding explains.</p>'
    )
    title = "FusedLSTM and nn.LSTM, side by side"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="soft">{escape(" · ".join(facts))}</p>\n{verdict}\n'
        f"{_table(comparisons)}\n<p>{METHOD}</p>\n"
        + "\n".join(map(_section, comparisons))
        + "\n</body>\n</html>\n"
    )


def _table(comparisons: list[Comparison]) -> str:
    """The table of the terminal on its side, so that it fits a phone: a column for each task."""
    columns = [table.cells(comparison) for comparison in comparisons]
    rows = zip(*columns, strict=True)
    groups = []
    for title, names in table.COLUMNS:
        heading = f'<tr><th colspan="{len(columns) + 1}">{escape(title)}</th></tr>' if title else ""
        lines = (
            f"<tr><th>{escape(name)}</th>"
            + "".join(f"<td>{escape(cell)}</td>" for cell in next(rows))
            + "</tr>"
            for name in names
        )
        groups.append(f"<tbody>{heading}{''.join(lines)}</tbody>")
    return f"<table>{''.join(groups)}</table>"


def _section(comparison: Comparison) -> str:
    task = comparison.task
    figures = (
        f"<figure><h3>{escape(heading)}</h3>\n{svg}\n"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for heading, svg, caption in pictures(comparison)
    )
    return (
        f"<section>\n<h2>{task.name.capitalize()}: {escape(task.question)}</h2>\n"
        f'<p class="soft">{escape(task.data)}. {escape(task.model)}. '
        f'The naive prediction is {escape(task.naive_rule)}.</p>\n<div class="pictures">\n'
        + "\n".join(figures)
        + "\n</div>\n</section>"
    )
