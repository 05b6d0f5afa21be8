"""The table of regimes, tables of ratios, the plot and the README's table from results files.

``python -m benchmarks.report [FILE ...]``; with no file, those of benchmarks/results/.
"""

import argparse
import sys
from itertools import product
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from benchmarks import plot, results
from benchmarks.cases import README_CASES
from benchmarks.markdown import markdown
from benchmarks.regimes import REGIMES, outcome, records_in
from benchmarks.results import Record, Run
from benchmarks.serving import tables
from benchmarks.serving.records import split

README = results.FOLDER.parent.parent / "README.md"
BEGIN = "<!-- benchmarks: written by python -m benchmarks.report --readme -->"
END = "<!-- end of benchmarks -->"
README_HEADER = "| call (CPU: 1 thread) | nn.LSTM us | FusedLSTM us | ratio |\n|---|--:|--:|--:|"
COMPARED = {
    "ratio": "nn.LSTM",
    "ratio_onnxruntime": "onnxruntime",
    "ratio_kept": "recompute=False",
    "ratio_padded": "padded input",
}
# The columns of the table of regimes, and what asks for something in each
ASKED = {
    "limit": ("share", "us", "ratio_padded"),
    "against nn.LSTM": ("ratio", "mean ratio"),
    "against onnxruntime": ("ratio_onnxruntime", "mean ratio_onnxruntime"),
}
MODES = {"inference": "forward", "training": "forward + backward"}
Panels = dict[tuple[str, str, str, str], dict[str, list[Record]]]


def summary(records: list[Record], key: str = "ratio") -> str:
    """A table's cell: mean, least ratio, losses, median share of the limit, ~ for a wide spread."""
    records = [r for r in records if key in r]
    if not records:
        return ""
    ratios = [r[key] for r in records]
    losses = sum(ratio < 1 for ratio in ratios)
    lost = f", {losses} of {len(ratios)} under 1" * bool(losses)
    text = f"{geometric_mean(ratios):.2f}x" + f" (min {min(ratios):.2f}x{lost})" * (len(ratios) > 1)
    limits = [r["limit"] for r in records if "limit" in r]
    if key == "ratio" and len({limit["kind"] for limit in limits}) == 1:
        text += f", {100 * median(x['share'] for x in limits):.0f} % of {limits[0]['kind']}"
    return text + " ~" * any(r["wide"] for r in records)


def rows(record: Record) -> list[str]:
    """The kinds of call that a record counts in: in the grid its batch's too."""
    if record["group"] == "grid":
        return ["one layer", f"one layer, B {record['batch']}"]
    if record["group"].startswith("model-"):
        return ["{model} (B{batch} T{steps} H{hidden_size})".format_map(record)]
    return [record["group"].replace("-", " ")]


def panels(runs: list[Run], finest: bool = False) -> Panels:
    """One machine's records by (machine, dtype, mode, threads) and by (its finest) kind of call."""

    def order(r: Record) -> tuple[Any, ...]:  # float32 and the task models first
        calls = (not r["group"].startswith("model-"), r["group"], r["batch"])
        return r["dtype"] != "float32", r["dtype"], r["mode"], r["threads"], *calls

    found: Panels = {}
    for r in sorted(records_of(runs), key=order):
        threads = f"{r['threads']} thread{'s' * (r['threads'] > 1)}" if r["threads"] else "GPU"
        title = (runs[0]["facts"]["device"], r["dtype"], MODES[r["mode"]], threads)
        for row in rows(r)[-1 if finest else 0 :]:
            found.setdefault(title, {}).setdefault(row, []).append(r)
    return found


def table(panel: dict[str, list[Record]]) -> str:
    """A markdown table: a row a kind of call, a column an implementation that was compared."""
    keys = [key for key in COMPARED if any(key in r for of_row in panel.values() for r in of_row)]
    header = ["", *(f"{COMPARED[key]}'s time / FusedLSTM's" for key in keys)]
    lines = [header, ["---"] * len(header)]
    lines += [[row, *(summary(panel[row], key) for key in keys)] for row in panel]
    return markdown(lines)


def regimes(run: Run) -> str:
    """What a CPU's run reached in each regime beside what is asked; the misses, worst case named.

    "" if no case is in a regime.
    """
    threads = sorted({r["threads"] for r in run["cases"] if r["device"] == "cpu"})
    header = [f"asked: reached with threads {', '.join(map(str, threads))}", *ASKED]
    lines, misses = [header, ["---"] * len(header)], []
    for regime, mode in product(REGIMES, MODES):
        asked, records = getattr(regime, mode), records_in(regime, mode, run["cases"])
        if not (asked and records):
            continue
        by_threads = [[r for r in records if r["threads"] == count] for count in threads]
        row = [f"{regime.name}, {MODES[mode]}"]
        for keys in ASKED.values():
            found = [regime_cell(key, asked[key], by_threads) for key in keys if key in asked]
            row.append("; ".join(cell for cell, _ in found))
            misses += [f"{row[0]}: {miss}" for _, of_cell in found for miss in of_cell]
        lines.append(row)
    least = min(run["cases"], key=lambda r: r["ratio"])
    parts = [markdown(lines), "Missed (!), with the worst case:", *misses]
    return "\n".join([*parts, "The least ratio:", case_line(least)]) if lines[2:] else ""


def regime_cell(key: str, asked: float, by_threads: list[list[Record]]) -> tuple[str, list[str]]:
    """A cell of the table of regimes, a figure for each thread count, and a line for each miss."""
    figures, misses = [], []
    of_each = key.removeprefix("mean ")
    prefix = "mean " * (of_each != key) + "padded " * (key == "ratio_padded")
    what = prefix + _figure(key, asked)
    for found in (outcome(key, asked, records) for records in by_threads):
        figures.append("-")
        if found:
            value, is_missed, worst = found
            of_limit = f" of {worst['limit']['at_most']:g}" if key == "share" else ""
            figures[-1] = _figure(key, value) + of_limit + " !" * is_missed
            reached = f"{_figure(key, value)} {COMPARED.get(of_each, '')}".strip()
            misses += [f"{reached}, asked {what}: {worst['name']}"] * is_missed
    return f"{what}: {', '.join(figures)}", misses


def _figure(key: str, value: float) -> str:
    """A figure of a regime with its unit."""
    units = {"share": f"{100 * value:.0f} %", "us": f"{value:.3g} us"}
    return units.get(key, f"{value:.2f}x")


def smallest_gains(records: list[Record]) -> str:
    """How many cases are lost and how many were noisy; and the smallest ratios, one a line."""
    lines = []
    for key, name in COMPARED.items():
        if ratios := [r[key] for r in records if key in r]:
            losses = sum(ratio < 1 for ratio in ratios)
            lines.append(f"Slower than {name} in {losses} of {len(ratios)} cases.")
    wide = sum(r["wide"] for r in records)
    lines.append(f"{wide} of {len(records)} cases have a wide spread (~): read them as rough.")
    smallest = sorted(records, key=lambda r: r["ratio"])
    smallest = [r for i, r in enumerate(smallest) if i < 10 or r["ratio"] < 1]
    return "\n".join([*lines, "The smallest ratios:", *map(case_line, smallest)])


def case_line(r: Record) -> str:
    """One case: the ratio, both medians, the time of a step, the rate, the name, and the rest."""
    nn, fused = (r["us"][name][1] for name in ("nn", "fused"))
    a_step, rate = r["us_per_step"]["fused"], r["gflops"]["fused"]
    parts = [r["name"] + " ~" * r["wide"]]
    if "limit" in r:
        parts.append(f"{100 * r['limit']['share']:.0f} % of {r['limit']['kind']}")
    parts += [f"{r[key]:.2f}x {COMPARED[key]}" for key in list(COMPARED)[1:] if key in r]
    if "peak_bytes" in r:
        parts.append("peak {nn:,} -> {fused:,} bytes".format_map(r["peak_bytes"]))
    times = f"{nn:>10g} -> {fused:>10g} us  {a_step:>8g} us a step {rate:>8g} GFLOP/s"
    return f"{r['ratio']:8.2f}x  {times}  {', '.join(parts)}"


def facts_line(run: Run) -> str:
    """One line with the facts of a run."""
    facts = {name.replace("_", " "): value for name, value in run["facts"].items() if value}
    facts |= {"commit": facts.get("commit", "unknown")[:10], "cases": len(run["cases"])}
    left_out = ("device", "cpu", "system", "python", "torch cpu capability")
    parts = [f"{name} {facts[name]}" for name in facts if name not in left_out]
    return ", ".join([facts["device"], *parts])


def text(runs: list[Run]) -> str:
    """The terminal's report on one machine: facts, a table a panel, where it gains least; serving.

    Of the runs with cases of serving the newest is shown.
    """
    runs, serving = split(runs)
    served = ["", facts_line(serving[-1]), tables.text(serving[-1]["cases"])] if serving else []
    if not runs:
        return "\n".join(served[1:])
    parts = [facts_line(run) for run in runs]
    if in_regimes := regimes(runs[-1]):
        parts += ["", f"The run of {runs[-1]['facts']['date']}:", in_regimes]
    for title, panel in panels(runs).items():
        parts += ["", ", ".join(title), table(panel)]
    return "\n".join([*parts, "", smallest_gains(records_of(runs)), *served])


def readme_block(machines: list[list[Run]]) -> str:
    """The README's part, between and with its two marker comments.

    Of the CPUs and of the GPUs that with the newest run, and of its runs those with cases shown.
    Below them serving, of the newest run that has it.
    """
    lines = [BEGIN]
    halves = [split(runs) for runs in machines]
    served = sorted((run for _, runs in halves for run in runs), key=lambda r: r["facts"]["date"])
    others = [runs for runs, _ in halves if runs]
    by_date = sorted(others, key=lambda runs: runs[-1]["facts"]["date"])
    newest = {runs[0]["facts"]["device"] == runs[0]["facts"]["cpu"]: runs for runs in by_date}
    for runs in newest.values():
        lines.append(README_HEADER)
        shown = [run for run in runs if any(r["name"] in README_CASES for r in run["cases"])]
        by_name = {r["name"]: r for r in records_of(shown)}
        for r in (by_name[name] for name in README_CASES if name in by_name):
            call = f"{rows(r)[0]}, B {r['batch']}, T {r['steps']}, H {r['hidden_size']}"
            nn, fused = (f"{r['us'][name][1]:,g}" for name in ("nn", "fused"))
            ratio = f"{r['ratio']:.2f}x" + " ~" * r["wide"]
            call += f", {r['dtype']}, {MODES[r['mode']]}"
            lines.append(f"| {call} | {nn} | {fused} | {ratio} |")
        faster = sum(r["ratio"] >= 1 for r in by_name.values())
        lines += ["", f"Faster in {faster} of {len(by_name)} cases (~: wide spread). Measured:"]
        lines += [f"{facts_line(run)}." for run in shown]
    if served and (rows_of_serving := tables.readme_rows(served[-1]["cases"])):
        lines += ["", *rows_of_serving, "", f"{facts_line(served[-1])}."]
    return "\n".join([*lines, END])


def update_readme(path: Path, block: str, check: bool) -> None:
    """Put the block between the markers; ``check`` only raises ValueError if it is not there."""
    old = path.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} must hold the two lines\n{BEGIN}\n{END}")
    if not check:
        path.write_text(before + block + after)
    elif old != before + block + after:
        raise ValueError(f"{path} is stale, run python -m benchmarks.report --readme")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE", help="results files")
    add("--full", action="store_true", help="print every case as well")
    add("--plot", type=Path, metavar="SVG", help="draw every case's ratio into this file")
    add("--readme", type=Path, nargs="?", const=README, metavar="PATH", help="write its table")
    add("--check", action="store_true", help="with --readme: write nothing, fail if it is stale")
    options = parser.parse_args(argv)
    try:
        files = options.files or sorted(results.FOLDER.glob("*.json"))
        machines = [results.load(f) for f in files]
        if options.plot:
            others = [runs for runs, _ in map(split, machines) if runs]
            drawn = {k: v for runs in others for k, v in panels(runs, finest=True).items()}
            plot.save(drawn, options.plot)
        if options.readme:
            update_readme(options.readme, readme_block(machines), options.check)
            return
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"report: {error}")
    for runs in machines:
        print(text(runs), *(every_case(runs) if options.full else ()), "", sep="\n")
    if not machines:
        print("No benchmark has been recorded yet.")


def every_case(runs: list[Run]) -> list[str]:
    """A line a case, a table a case of serving."""
    others, serving = split(runs)
    return [
        *map(case_line, records_of(others)),
        *(f"\n{tables.every_time(r)}" for r in records_of(serving)),
    ]


def records_of(runs: list[Run]) -> list[Record]:
    """The records of all runs."""
    return [record for run in runs for record in run["cases"]]


if __name__ == "__main__":
    main()
