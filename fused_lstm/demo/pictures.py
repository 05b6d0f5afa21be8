"""What the report shows of a comparison: losses, held-out predictions, gates over time."""

from __future__ import annotations

import torch

from fused_lstm.demo.svg import Line, Panel, heat_maps, line_chart, matrix
from fused_lstm.demo.tasks import Classifier, Forecaster, Predictor
from fused_lstm.demo.train import Comparison

FORECASTS = 4  # days shown


def losses(comparison: Comparison) -> str:
    """Both loss curves over each other."""
    steps = range(1, len(comparison.losses) + 1)
    return line_chart(
        [
            Line("FusedLSTM", "fused", steps, comparison.fused.losses),
            Line("nn.LSTM", "reference", steps, comparison.reference.losses),
        ],
        f"Loss of the {comparison.task.name} along training",
        "training step",
        "loss",
        log=True,
    )


def differences(comparison: Comparison) -> str:
    """The difference of the two losses at each step, under what parity allows."""
    steps = range(1, len(comparison.losses) + 1)
    return line_chart(
        [
            Line("difference", "dots", steps, [loss.difference for loss in comparison.losses]),
            Line("allowed", "bound", steps, [loss.allowed for loss in comparison.losses]),
        ],
        f"Difference of the losses of the {comparison.task.name}, and what is allowed",
        "training step",
        "loss difference",
        log=True,
    )


def held_out(comparison: Comparison) -> tuple[str, str]:
    """Predictions against the truth on data that no model trained on; picture and caption."""
    task = comparison.task
    if isinstance(task, Classifier):
        return _confusion(comparison)
    if isinstance(task, Predictor):
        return _samples(comparison, task)
    assert isinstance(task, Forecaster)
    return _forecasts(comparison, task)


def _confusion(comparison: Comparison) -> tuple[str, str]:
    truth, guess = comparison.task.truth, comparison.fused.prediction.argmax(1)
    classes = comparison.fused.prediction.size(1)
    counts = torch.bincount(truth * classes + guess, minlength=classes**2).view(classes, classes)
    same = (guess == comparison.reference.prediction.argmax(1)).sum().item()
    picture = matrix(counts, "Confusion matrix", "speaker", "taken for speaker")
    return picture, (
        f"Who spoke, and whom FusedLSTM took them for: {len(truth)} utterances held out. "
        f"nn.LSTM gave the same answer on {same} of them."
    )


def _samples(comparison: Comparison, task: Predictor) -> tuple[str, str]:
    shown = 3 * task.rate
    seconds = [index / task.rate for index in range(shown)]

    def line(label: str, look: str, values: torch.Tensor) -> Line:
        return Line(label, look, seconds, values[-shown:, 0].tolist())

    picture = line_chart(
        [
            line("recorded", "truth", task.truth),
            line("FusedLSTM", "fused", comparison.fused.prediction),
            line("nn.LSTM", "reference", comparison.reference.prediction),
        ],
        "Predicted and recorded electrocardiogram",
        "seconds",
        "mV",
        height=300,
    )
    return picture, (
        "The last three seconds, held out: every sample predicted from the "
        f"{task.window} recorded before it."
    )


def _forecasts(comparison: Comparison, task: Forecaster) -> tuple[str, str]:
    """Forecasts made at midnight, evenly spread over the days held out."""
    past = task.held_out[0]  # [M, 72, 5]: power, then sine and cosine of the hour of the day, ...
    midnight = (past[:, 0, 2] > 0.9).nonzero().flatten().cpu()
    chosen = midnight[torch.linspace(0, len(midnight) - 1, FORECASTS + 2).long()[1:-1]]
    hours = range(task.future * FORECASTS)

    def line(label: str, look: str, values: torch.Tensor) -> Line:
        return Line(label, look, hours, values.flatten().tolist())

    before = 1000 * past[chosen.to(past.device), -24:, 0].float().cpu()
    picture = line_chart(
        [
            line("day before", "naive", before),
            line("measured", "truth", task.truth[chosen]),
            line("FusedLSTM", "fused", comparison.fused.prediction[chosen]),
            line("nn.LSTM", "reference", comparison.reference.prediction[chosen]),
        ],
        "Forecast and measured solar power",
        f"hours: {FORECASTS} held-out days, weeks apart",
        "W",
        height=300,
    )
    return picture, (
        "Four forecasts, each made at midnight for the 24 hours to come from the three days "
        "before. What the weather will be is not in the data: the forecast is the day to expect."
    )


@torch.no_grad()
def gates(comparison: Comparison) -> str:
    """Gates and cell state of the trained FusedLSTM over one held-out sequence."""
    task = comparison.task
    sequence = task.example()  # [1, T, D]
    _, _, states = task.lstm(comparison.model)(sequence, return_states=True)
    cells, values = states.cells[0][0].cpu(), states.gates[0][0].cpu()  # [T, H], [T, 4, H]
    order = values[:, 1].mean(0).argsort(descending=True)  # by the forget gate: long memory first
    i, f, g, o = values[:, :, order].unbind(1)
    c = cells[:, order] / cells.abs().quantile(0.98).clamp(min=1e-6)
    return heat_maps(
        sequence[0].float().cpu(),
        [
            Panel("input i", i.T),
            Panel("forget f", f.T),
            Panel("cell g", g.T, signed=True),
            Panel("output o", o.T),
            Panel("state c", c.T, signed=True),
        ],
        f"Gates of the {task.name} over one sequence",
        "sequence",
        "time step",
    )
