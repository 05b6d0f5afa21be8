"""The report's tables as text: a terminal's, and the README's part."""

from __future__ import annotations

from benchmarks.results import Record, Run
from benchmarks.summary import Summary, all_rows, columns, heading, rows

BEGIN = "<!-- benchmarks: written by python -m benchmarks.report --readme -->"
END = "<!-- end of benchmarks -->"
NOTHING = "No benchmark has been recorded yet."

SMALLEST = 10  # cases listed even where none is slower


def table(records: list[Record]) -> str:
    """A markdown table of one dtype's records: a row a group, a column a mode and thread count."""
    shown = columns(records)
    lines = [
        "| nn.LSTM's time / FusedLSTM's | " + " | ".join(heading(c) for c in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for row in all_rows(records):
        cells = []
        for column in shown:
            of_cell = [r for r in records if row in rows(r) and (r["mode"], r["threads"]) == column]
            cells.append(str(Summary.of(of_cell)) if of_cell else "")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def smallest_gains(records: list[Record], at_most: int | None = None) -> str:
    """The cases that FusedLSTM loses, or gains least in, one a line; and how many were noisy."""
    losing = sum(r["ratio"] < 1 for r in records)
    lines = [f"Slower than nn.LSTM in {losing} of {len(records)} cases; the smallest ratios:"]
    by_ratio = sorted(records, key=lambda r: float(r["ratio"]))
    lines += [_line(r) for r in by_ratio[: at_most or max(losing, SMALLEST)]]
    wide = sum(bool(r["wide"]) for r in records)
    if wide:
        lines.append(f"{wide} of {len(records)} cases have a wide spread (~): read them as rough.")
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
            if number == 0:
                parts += [f"{dtype}:", "", table(of_dtype), ""]
            else:
                parts += [_folded(dtype, table(of_dtype)), ""]
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


def _by_dtype(records: list[Record]) -> dict[str, list[Record]]:
    return {
        d: [r for r in records if r["dtype"] == d]
        for d in dict.fromkeys(r["dtype"] for r in records)
    }


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _line(record: Record) -> str:
    nn, fused = (record["us"][side][1] for side in ("nn", "fused"))
    steps = record["us_per_step"]["fused"]
    rate = record["gflops"]["fused"]
    mark = " ~" if record["wide"] else ""
    if "peak_bytes" in record:
        before, after = (record["peak_bytes"][side] / 2**20 for side in ("nn", "fused"))
        mark += f" (peak {before:.1f} -> {after:.1f} MiB)"
    return (
        f"{record['ratio']:8.2f}x  {nn:>10g} -> {fused:>10g} us  {steps:>8g} us a step "
        f"{rate:>8g} GFLOP/s  {record['name']}{mark}"
    )
