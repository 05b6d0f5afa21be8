"""The report's tables as text: a terminal's, and the README's part."""

from __future__ import annotations

from benchmarks.bars import Judged
from benchmarks.results import Record, Run, has_ratio, microseconds, ratio
from benchmarks.summary import Column, Summary, all_rows, columns, heading, percent, rows

BEGIN = "<!-- benchmarks: written by python -m benchmarks.report --readme -->"
END = "<!-- end of benchmarks -->"
NOTHING = "No benchmark has been recorded yet."

SMALLEST = 10  # cases listed even where none is slower

# Whom else FusedLSTM is compared to in some cases, and how the tables call it
OTHERS = {"onnxruntime": "onnxruntime", "kept": "recompute=False"}


def table(records: list[Record]) -> str:
    """A markdown table of one dtype's records: a row a group, a column a mode and thread count.

    Where others took part, their columns follow those of nn.LSTM, which also show the median
    share of the limit, where a row's cases have the same kind of limit.
    """
    shown = [("nn", column, heading(column)) for column in columns(records)]
    for over, name in OTHERS.items():
        taking_part = columns(r for r in records if has_ratio(r, over))
        shown += [(over, c, f"{name}'s / FusedLSTM's, {heading(c)}") for c in taking_part]
    lines = [
        _row("nn.LSTM's time / FusedLSTM's", [title for *_, title in shown]),
        _rule(len(shown)),
    ]
    for row in all_rows(records):
        cells = []
        for over, column, _ in shown:
            of_cell = [r for r in _of(records, column) if row in rows(r) and has_ratio(r, over)]
            cells.append(str(Summary.of(of_cell, over)) if of_cell else "")
        lines.append(_row(row, cells))
    return "\n".join(lines)


def bars_table(judged: list[Judged]) -> str:
    """A markdown table of the bars, a row a bar, mode and thread count."""
    titles = ["calls", "must be", "geometric mean", "worst", "of cases", "verdict"]
    lines = [_row("bar", titles), _rule(len(titles))]
    for one in judged:
        cells = [
            heading(one.column),
            one.must_be,
            one.shown(one.mean),
            f"{one.shown(one.worst)} {one.worst_name}",
            f"{one.measured} of {one.planned}",
            one.verdict,
        ]
        lines.append(_row(one.bar.title, cells))
    return "\n".join(lines)


def smallest_gains(records: list[Record], at_most: int | None = None) -> str:
    """The cases that FusedLSTM loses, or gains least in, one a line; and how many were noisy."""
    losing = sum(ratio(r) < 1 for r in records)
    lines = [f"Slower than nn.LSTM in {losing} of {len(records)} cases; the smallest ratios:"]
    lines += [_line(r) for r in sorted(records, key=ratio)[: at_most or max(losing, SMALLEST)]]
    with_onnx = [ratio(r, "onnxruntime") for r in records if has_ratio(r, "onnxruntime")]
    if with_onnx:
        losing = sum(times < 1 for times in with_onnx)
        lines.append(f"Slower than onnxruntime in {losing} of {len(with_onnx)} cases.")
    rough = sum(bool(r["wide"]) for r in records)
    if rough:
        lines.append(f"{rough} of {len(records)} cases have a wide spread (~): read them as rough.")
    return "\n".join(lines)


def full(records: list[Record]) -> str:
    """Every case, one a line."""
    return "\n".join(_line(r) for r in records)


def facts_line(run: Run) -> str:
    """One line with the facts of a run."""
    facts = run["facts"]
    parts = [f"{facts['device']}", f"torch {facts['torch']}"]
    if "cuda" in facts:
        switches = ", ".join(f"{k} {v}" for k, v in facts["tf32"].items())
        parts += [f"CUDA {facts['cuda']}", f"cuDNN {facts['cudnn']}", switches]
    else:
        parts += [f"{facts['cores']} cores", f"{facts['instruction_set']} kernels"]
        onnxruntime = facts.get("onnxruntime")
        parts.append(f"onnxruntime {onnxruntime}" if onnxruntime else "no onnxruntime")
    commit = (facts["commit"] or "unknown")[:10] + " with changes" * bool(facts["dirty"])
    parts += [f"commit {commit}", facts["date"], f"{len(run['cases'])} cases"]
    return ", ".join(parts)


def text(runs: list[Run]) -> str:
    """The terminal's report on one machine: facts, a table a dtype, where it gains least."""
    records = records_of(runs)
    parts = [facts_line(run) for run in runs]
    for dtype, of_dtype in _by_dtype(records).items():
        parts += ["", dtype, table(of_dtype)]
    return "\n".join([*parts, "", smallest_gains(records)])


def readme_block(machines: list[list[Run]]) -> str:
    """The README's part, between and with its two marker comments."""
    parts = [BEGIN]
    for runs in machines:
        records = records_of(runs)
        parts += [*(f"{facts_line(run)}  " for run in runs), ""]
        for number, (dtype, of_dtype) in enumerate(_by_dtype(records).items()):
            body = table(of_dtype)
            parts += [f"{dtype}:", "", body, ""] if number == 0 else [_folded(dtype, body), ""]
        gains = smallest_gains(records, SMALLEST)
        parts += [_folded("Where it gains least", f"```\n{gains}\n```"), ""]
    if not machines:
        parts += [NOTHING, ""]
    return "\n".join([*parts, END])


def replace_block(readme: str, block: str) -> str:
    """The README's text with the part between the markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README must hold the two lines\n{BEGIN}\n{END}")
    return before + block + after


def records_of(runs: list[Run]) -> list[Record]:
    """The records of all runs."""
    return [record for run in runs for record in run["cases"]]


def _of(records: list[Record], column: Column) -> list[Record]:
    return [r for r in records if (r["mode"], r["threads"]) == column]


def _row(first: str, others: list[str]) -> str:
    return f"| {first} | " + " | ".join(others) + " |"


def _rule(others: int) -> str:
    return "|---" * (1 + others) + "|"


def _by_dtype(records: list[Record]) -> dict[str, list[Record]]:
    return {
        d: [r for r in records if r["dtype"] == d]
        for d in dict.fromkeys(r["dtype"] for r in records)
    }


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _line(record: Record) -> str:
    nn, fused = microseconds(record, "nn"), microseconds(record)
    steps, rate = record["us_per_step"]["fused"], record["gflops"]["fused"]
    parts = [record["name"] + " ~" * bool(record["wide"])]
    if "limit" in record:
        parts.append(f"{percent(record['limit']['share'])} of {record['limit']['kind']}")
    for over, name in OTHERS.items():
        if has_ratio(record, over):
            parts.append(f"{ratio(record, over):.2f}x {name}")
    if "peak_bytes" in record:
        before, after = (record["peak_bytes"][side] / 2**20 for side in ("nn", "fused"))
        parts.append(f"peak {before:.1f} -> {after:.1f} MiB")
    return (
        f"{ratio(record):8.2f}x  {nn:>10g} -> {fused:>10g} us  {steps:>8g} us a step "
        f"{rate:>8g} GFLOP/s  {', '.join(parts)}"
    )
