"""The plot of all ratios: a panel a dtype and mode, a row a kind of call, a dot a case."""

from collections.abc import Mapping
from pathlib import Path
from statistics import geometric_mean

from benchmarks.results import Record

COLOURS = ("#1f6fb4", "#e07b00", "#3a923a", "#8a4fb0")  # of the thread counts
STYLE = {
    **{"axes.grid": True, "axes.grid.axis": "x", "grid.color": "#e0e0e0", "legend.frameon": False},
    **{"axes.titlelocation": "left", "axes.titleweight": "bold", "axes.titlesize": 10},
    **{"xtick.major.size": 0, "ytick.major.size": 0, "legend.markerscale": 1.5},
    "svg.hashsalt": "ratios",  # the same names in each file
}
TITLE = "How many times as fast as nn.LSTM is FusedLSTM?\nA dot is a shape; right of 1x is faster"


def save(panels: Mapping[tuple[str, ...], Mapping[str, list[Record]]], path: Path) -> None:
    """Draw the records, given by (machine, dtype, mode, threads) and by kind of call, to a file."""
    if not panels:
        raise ValueError("no case to plot")
    import matplotlib
    from matplotlib.figure import Figure

    modes, threads = (list(dict.fromkeys(title[i] for title in panels)) for i in (2, 3))
    rows: dict[tuple[str, ...], list[str]] = {}  # of each machine and dtype
    for title, panel in panels.items():
        known = rows.setdefault(title[:2], [])
        known += [row for row in panel if row not in known]
    ratios = [r["ratio"] for panel in panels.values() for of_row in panel.values() for r in of_row]
    heights = [len(names) + 1 for names in rows.values()]
    legend = {}
    with matplotlib.rc_context(STYLE):
        size = (1.7 + 3.7 * len(modes), 1 + 0.29 * sum(heights))  # inches
        figure = Figure(size, layout="constrained")
        figure.suptitle(TITLE)
        axes = figure.subplots(*map(len, (rows, modes)), squeeze=False, height_ratios=heights)
        for (machine, dtype, mode, count), panel in panels.items():
            names, column = rows[machine, dtype], modes.index(mode)
            counts = [title[3] for title in panels if title[:3] == (machine, dtype, mode)]
            axis = axes[list(rows).index((machine, dtype)), column]
            axis.set_title(f"{dtype}, {mode}")
            axis.set_xscale("log", base=2)
            axis.set_xlim(0.9 * min(0.5, *ratios), 1.1 * max(2, *ratios))
            axis.xaxis.set_major_formatter("{x:g}x")
            axis.set_yticks(range(len(names)), [""] * len(names) if column else names)
            axis.set_ylim(len(names) - 0.4, -0.6)  # downwards
            axis.set_ylabel("" if column else machine)
            for row, records in panel.items():
                of_row = [r["ratio"] for r in records]
                y = names.index(row) + 0.36 * (counts.index(count) - (len(counts) - 1) / 2)
                colour = COLOURS[threads.index(count) % len(COLOURS)]
                dots = {"color": colour, "alpha": 0.55, "lw": 0, "zorder": 2}
                legend[count] = axis.scatter(of_row, [y] * len(of_row), 15, **dots)
                at = geometric_mean(of_row)
                mean = axis.vlines(at, y - 0.17, y + 0.17, "black", lw=2, zorder=1.9)
        for axis in axes.flat:
            axis.axvline(1, color="black", lw=1)
            axis.axvspan(axis.get_xlim()[0], 1, color="#d1495b", alpha=0.07, lw=0)
        legend["geometric mean"] = mean
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=len(legend))
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
