"""Tables of ratios, the plot and the README's table from results files.

``python -m benchmarks.report [FILE ...]``; with no file, those of benchmarks/results/.
"""

import argparse
import sys
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from benchmarks import plot, results
from benchmarks.results import Record, Run

README = results.FOLDER.parent.parent / "README.md"
BEGIN = "<!-- benchmarks: written by python -m benchmarks.report --readme -->"
END = "<!-- end of benchmarks -->"
README_CASES = (  # kinds of call, won and lost; each machine has those of its device
    "packed-B32-T100-D128-H128-packed-float32-training-1t",
    "grid-B1-T1-D64-H64-float32-inference-1t",
    "grid-B1-T100-D128-H128-float32-training-1t",
    "grid-B32-T20-D64-H64-float32-inference-1t",
    "grid-B32-T100-D256-H256-float32-training-1t",
    "grid-B128-T100-D512-H512-float32-inference-1t",
    "packed-B32-T100-D512-H512-packed-bfloat16-training-cuda",
    "grid-B1-T256-D256-H256-bfloat16-inference-cuda",
    "grid-B16-T256-D512-H512-bfloat16-training-cuda",
    "grid-B128-T1024-D1024-H1024-bfloat16-training-cuda",
)
README_HEADER = "| call (CPU: 1 thread) | nn.LSTM us | FusedLSTM us | ratio |\n|---|--:|--:|--:|"
COMPARED = {"ratio": "nn.LSTM", "ratio_onnxruntime": "onnxruntime", "ratio_kept": "recompute=False"}
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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


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
    """The terminal's report on one machine: facts, a table a panel, where it gains least."""
    parts = [facts_line(run) for run in runs]
    for title, panel in panels(runs).items():
        parts += ["", ", ".join(title), table(panel)]
    return "\n".join([*parts, "", smallest_gains(records_of(runs))])


def readme_block(machines: list[list[Run]]) -> str:
    """The README's part, between and with its two marker comments."""
    lines = [BEGIN]
    for runs in machines:
        lines.append(README_HEADER)
        by_name = {r["name"]: r for r in records_of(runs)}
        for r in (by_name[name] for name in README_CASES if name in by_name):
            call = f"{rows(r)[0]}, B {r['batch']}, T {r['steps']}, H {r['hidden_size']}"
            nn, fused = (f"{r['us'][name][1]:,g}" for name in ("nn", "fused"))
            ratio = f"{r['ratio']:.2f}x" + " ~" * r["wide"]
            call += f", {r['dtype']}, {MODES[r['mode']]}"
            lines.append(f"| {call} | {nn} | {fused} | {ratio} |")
        faster = sum(r["ratio"] >= 1 for r in by_name.values())
        lines += ["", f"Faster in {faster} of {len(by_name)} cases (~: wide spread). Measured:"]
        lines += [f"{facts_line(run)}." for run in runs]
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
            drawn = {k: v for runs in machines for k, v in panels(runs, finest=True).items()}
            plot.save(drawn, options.plot)
        if options.readme:
            update_readme(options.readme, readme_block(machines), options.check)
            return
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"report: {error}")
    for runs in machines:
        print(text(runs), *(map(case_line, records_of(runs)) if options.full else ()), "", sep="\n")
    if not machines:
        print("No benchmark has been recorded yet.")


def records_of(runs: list[Run]) -> list[Record]:
    """The records of all runs."""
    return [record for run in runs for record in run["cases"]]


if __name__ == "__main__":
    main()
