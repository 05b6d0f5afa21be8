"""The pictures of the report, drawn by matplotlib: losses, predictions, gates over time."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import torch
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from fused_lstm.demo.tasks import Classifier, Forecaster, Predictor
from fused_lstm.demo.train import Comparison

WIDTH = 4.6  # inches; the page scales pictures to its columns, of 360 to 460 pixels
FORECASTS = 4  # days shown

INK = "#010203"  # replaced by the colour of the page's text, which depends on light or dark mode
SOFT, FUSED, REFERENCE = "#8a93a3", "#3f83f0", "#e8761a"  # legible on white and on black

STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.edgecolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "grid.color": SOFT,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.5,
    "legend.columnspacing": 1.2,
}

# How each line is drawn: FusedLSTM is wide, so that nn.LSTM is seen on top of it.
LOOKS: dict[str, dict[str, Any]] = {
    "FusedLSTM": {"color": FUSED, "linewidth": 4, "alpha": 0.6},
    "nn.LSTM": {"color": REFERENCE, "linewidth": 1},
    "measured": {"color": INK, "linewidth": 1},
    "day before": {"color": SOFT, "linewidth": 1, "linestyle": "--"},
}


class Picture(NamedTuple):
    """A picture with the words around it."""

    heading: str
    svg: str
    caption: str


def pictures(comparison: Comparison) -> list[Picture]:
    """The pictures of a comparison.

    Args:
        comparison: The trained models and their results.

    Returns:
        Losses, loss differences, held-out predictions and gates, in this order.
    """
    return [
        _picture("Loss during training", 3.2, _losses, comparison),
        _picture("Difference between the two losses", 3.2, _differences, comparison),
        _picture("Predictions on held-out data", 3.8, _HELD_OUT[type(comparison.task)], comparison),
        _picture("Inside the trained FusedLSTM", 10.2, _gates, comparison),
    ]


def _picture(
    heading: str, height: float, draw: Callable[[Figure, Comparison], str], comparison: Comparison
) -> Picture:
    """Calls ``draw``, which returns the caption, on an empty figure of ``height`` inches."""
    written = io.StringIO()
    with style.context(("default", STYLE)):  # not the user's matplotlibrc
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        caption = draw(figure, comparison)
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=no_metadata)
    _, start, svg = written.getvalue().partition("<svg")
    svg = re.sub(r' id="[a-z0-9]+_\d+"', "", svg.replace(INK, "currentColor"))
    label = escape(f"{heading}: {comparison.task.name}")
    return Picture(heading, f'{start} role="img" aria-label="{label}"{svg}', caption)


def _line(axes: Axes, label: str, xs: list[float], values: Tensor) -> None:
    axes.plot(xs, values.flatten().tolist(), label=label, **LOOKS[label])


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=4)


def _color_bar(figure: Figure, image: AxesImage, axes: Axes, **options: Any) -> None:
    bar = figure.colorbar(image, ax=axes, **options)
    assert bar.solids is not None
    bar.solids.set_rasterized(True)  # one small image in place of 256 paths


def _losses(figure: Figure, comparison: Comparison) -> str:
    axes = figure.subplots()
    steps = [float(step) for step in range(1, len(comparison.losses) + 1)]
    _line(axes, "FusedLSTM", steps, torch.tensor(comparison.fused.losses))
    _line(axes, "nn.LSTM", steps, torch.tensor(comparison.reference.losses))
    axes.set(xlabel="training step", ylabel=f"loss, {comparison.task.loss_name}", yscale="log")
    axes.grid()
    _legend(figure, axes)
    return "The loss of each batch, on a logarithmic scale. Equal losses lie on top of each other."


def _differences(figure: Figure, comparison: Comparison) -> str:
    axes = figure.subplots()
    losses = comparison.losses
    steps = range(1, len(losses) + 1)
    seen = [loss.difference or math.nan for loss in losses]
    axes.plot(steps, seen, ".", color=FUSED, markersize=3, label="difference", rasterized=True)
    allowed = [loss.allowed or math.nan for loss in losses]
    axes.plot(steps, allowed, "--", color=INK, linewidth=1, label="allowed: what rounding explains")
    axes.set(xlabel="training step", ylabel="difference of losses", yscale="log")
    axes.grid()
    _legend(figure, axes)
    return (
        "How far apart the two losses of each step are: there is parity where every point is under "
        "the line. Where there is no point, the losses are equal to the last bit."
    )


def _confusion(figure: Figure, comparison: Comparison) -> str:
    truth, guess = comparison.task.truth, comparison.fused.prediction.argmax(1)
    classes = comparison.fused.prediction.size(1)
    counts = torch.bincount(truth * classes + guess, minlength=classes**2).view(classes, classes)
    shares = 100 * counts / counts.sum(1, keepdim=True)
    axes = figure.subplots()
    edges = (0.5, classes + 0.5, classes + 0.5, 0.5)
    image = axes.imshow(shares.numpy(), vmin=0, vmax=100, extent=edges, interpolation="none")
    for row, column in counts.nonzero().tolist():
        color = "black" if shares[row, column] > 60 else "white"
        count = str(int(counts[row, column]))
        axes.text(column + 1, row + 1, count, color=color, ha="center", va="center", fontsize=9)
    speakers = range(1, classes + 1)
    axes.set(xlabel="recognised as speaker", ylabel="speaker", xticks=speakers, yticks=speakers)
    _color_bar(figure, image, axes, label="share of the speaker's utterances, %", fraction=0.046)
    same = (guess == comparison.reference.prediction.argmax(1)).sum().item()
    return (
        f"Confusion matrix of FusedLSTM on {len(truth)} utterances: how many of each speaker's "
        f"(row) were recognised as whose (column). nn.LSTM gave the same answer for {same}."
    )


def _samples(figure: Figure, comparison: Comparison) -> str:
    task = comparison.task
    assert isinstance(task, Predictor)
    shown = 3 * task.rate
    seconds = [index / task.rate for index in range(shown)]
    axes = figure.subplots()
    _line(axes, "FusedLSTM", seconds, comparison.fused.prediction[-shown:])
    _line(axes, "nn.LSTM", seconds, comparison.reference.prediction[-shown:])
    _line(axes, "measured", seconds, task.truth[-shown:])
    axes.set(xlabel="time, s", ylabel="voltage, mV")
    axes.grid()
    _legend(figure, axes)
    return (
        "The last three seconds of the electrocardiogram: each sample predicted from the "
        f"{task.window} samples (half a second) measured before it."
    )


def _forecasts(figure: Figure, comparison: Comparison) -> str:
    task = comparison.task
    assert isinstance(task, Forecaster)
    past = task.held_out[0]  # [M, 72, 5]
    midnights = [index for index, start in enumerate(task.starts) if start.hour == 0]
    spread = torch.linspace(0, len(midnights) - 1, FORECASTS + 2).long()[1:-1].tolist()
    hours = [hour + 0.5 for hour in range(task.future)]  # each value is the mean of an hour
    grid = figure.subplots(2, FORECASTS // 2, sharex=True, sharey=True)
    for axes, which in zip(grid.flat, spread, strict=True):
        day = midnights[which]
        _line(axes, "day before", hours, 1000 * past[day, -24:, 0].float().cpu())
        _line(axes, "FusedLSTM", hours, comparison.fused.prediction[day])
        _line(axes, "nn.LSTM", hours, comparison.reference.prediction[day])
        _line(axes, "measured", hours, task.truth[day])
        axes.set(title=f"{task.starts[day]:%d %B %Y}".lstrip("0"), xticks=range(0, 25, 6))
        axes.grid()
    figure.supxlabel("hour of the day", fontsize=10)
    figure.supylabel("power, W", fontsize=10)
    _legend(figure, grid[0, 0])
    return (
        "Four forecasts, each made at midnight for the next 24 hours from the three days before. "
        "The weather to come is not in the data, so the forecast is of a typical day."
    )


_HELD_OUT = {Classifier: _confusion, Predictor: _samples, Forecaster: _forecasts}


@torch.no_grad()
def _gates(figure: Figure, comparison: Comparison) -> str:
    task = comparison.task
    sequence = task.example()  # [1, T, D]
    _, _, states = task.lstm(comparison.model)(sequence, return_states=True)
    cells, gates = states.cells[0][0].float().cpu(), states.gates[0][0].float().cpu()
    order = gates[:, 1].mean(0).argsort(descending=True)  # [H], the largest forget gate first
    i, f, g, o = gates[:, :, order].unbind(1)  # each [T, H]
    c = cells[:, order]  # [T, H]
    signal = sequence[0].float().cpu()  # [T, D]
    steps, units = c.shape
    top, *rest = figure.subplots(6, sharex=True)
    for feature in reversed(range(signal.size(1))):
        look = {"color": SOFT, "alpha": 0.4} if feature else {"color": INK}
        top.plot(range(1, steps + 1), signal[:, feature].tolist(), linewidth=1, **look)
    top.set(title="input: " + task.inputs)
    limit = c.abs().nan_to_num().quantile(0.98).clamp(min=1e-6).item()
    for axes, (title, values, low, high) in zip(
        rest,
        (
            ("input gate i: how much is written", i, 0, 1),
            ("forget gate f: how much is kept", f, 0, 1),
            ("candidate g: what is written", g, -1, 1),
            ("cell state c: the memory", c, -limit, limit),
            ("output gate o: how much of the memory is shown", o, 0, 1),
        ),
        strict=True,
    ):
        image = axes.imshow(
            values.T.numpy(),
            cmap="coolwarm" if low else "viridis",
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="none",
            extent=(0.5, steps + 0.5, units + 0.5, 0.5),
        )
        axes.set(title=title, ylabel="hidden unit", yticks=(1, units))
        if values is c:  # some lie beyond the limits
            _color_bar(figure, image, axes, aspect=10, extend="both")
        else:
            _color_bar(figure, image, axes, aspect=10, ticks=[low, (low + high) / 2, high])
    rest[-1].set(xlabel=f"time step ({task.step})")
    return (
        "One held-out sequence, and what each hidden unit does while reading it (first layer, "
        "forward direction). A row is a unit; those that keep their memory longest are on top."
    )
