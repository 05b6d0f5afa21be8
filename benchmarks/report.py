"""Ratio tables, bars, a plot and the README's table from results files.

``python -m benchmarks.report [FILE ...]``; with no file, those of benchmarks/results/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import bars, plot, results, tables

README = results.FOLDER.parent.parent / "README.md"


def main(argv: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="results files")
    parser.add_argument("--full", action="store_true", help="print every case as well")
    parser.add_argument(
        "--bars", action="store_true", help="print the bars instead of the ratios, met or not"
    )
    parser.add_argument("--plot", type=Path, metavar="SVG", help="write the plot to this file")
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="?",
        const=README,
        metavar="PATH",
        help="write the table into the README instead of printing it (default: the project's)",
    )
    parser.add_argument(
        "--check", action="store_true", help="with --readme: write nothing, fail if it is stale"
    )
    options = parser.parse_args(argv)
    try:
        machines = [results.load(f) for f in options.files or sorted(results.FOLDER.glob("*.json"))]
        if options.plot:
            options.plot.write_text(plot.svg([run for runs in machines for run in runs]))
        if options.readme:
            return _update_readme(options.readme, tables.readme_block(machines), options.check)
    except (OSError, ValueError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    for runs in machines:
        records = tables.records_of(runs)
        if options.bars:
            print(
                *map(tables.facts_line, runs), "", tables.bars_table(bars.judge(records)), sep="\n"
            )
        else:
            print(tables.text(runs))
        if options.full:
            print(tables.full(records))
        print()
    if not machines:
        print(tables.NOTHING)
    return 0


def _update_readme(path: Path, block: str, check: bool) -> int:
    old = path.read_text()
    new = tables.replace_block(old, block)
    if check and new != old:
        print(
            f"report: {path} is stale; run: python -m benchmarks.report --readme", file=sys.stderr
        )
        return 1
    if not check:
        path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
