"""The trained models frozen: their scores in each format, and files that serve without Python."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fused_lstm.demo import table
from fused_lstm.demo.tasks import TASKS
from fused_lstm.demo.train import Comparison
from fused_lstm.frozen import CPU_FORMATS, Format, freeze
from fused_lstm.models import Seq2Seq


class Scores(NamedTuple):
    """A task's score on held-out data: of the trained model, and of it frozen in each format."""

    task: str
    measure: str
    trained: float
    frozen: Sequence[float]  # of CPU_FORMATS

    @classmethod
    @torch.no_grad()
    def of(cls, comparison: Comparison) -> Scores:
        """On the CPU in float32."""
        task = TASKS[comparison.task.name](torch.device("cpu"), torch.float32)
        model = on_cpu(comparison.model)
        models = [model, *(freeze(model, weights) for weights in CPU_FORMATS)]
        trained, *frozen = (task.score(task.predict(each)) for each in models)
        return cls(task.name, task.measure, trained, frozen)


def text(all_scores: Sequence[Scores]) -> str:
    """The scores as a table in plain characters."""
    rows = [["task", "measure", "trained", *(f"frozen, {weights}" for weights in CPU_FORMATS)]]
    for scores in all_scores:
        figures = map(table.score, (scores.trained, *scores.frozen))
        rows.append([scores.task, scores.measure, *figures])
    return table.aligned(rows)


def save(comparison: Comparison, folder: Path, weights: Format) -> None:
    """Writes TASK.safetensors and TASK.csv into `folder`.

    The first has the model frozen, under its state_dict's names; the second an example, a line for
    each step: the input x0, x1, .., then what the model makes of it in Python, y0, y1, .. The
    classifier's are its logits after each step, as for a sequence that ends there; the other
    models' follow the last step alone: the predictor's value, and the 24 that the forecaster
    generates from the power in x0 of that step on.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
    """
    from safetensors.torch import save_file

    name = comparison.task.name
    example = comparison.task.example().float().cpu()  # [1, T, D]
    frozen = freeze(on_cpu(comparison.model), weights)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(frozen.state_dict(), folder / f"{name}.safetensors", {"weights": weights})
    with torch.no_grad():
        outputs = _outputs(frozen, example)
    (folder / f"{name}.csv").write_text(_csv(example[0], outputs), encoding="utf-8")


def on_cpu(model: nn.Module) -> nn.Module:
    """A copy in float32 there."""
    return copy.deepcopy(model).cpu().float()


def _outputs(model: nn.Module, example: Tensor) -> Tensor:
    """[T, outputs] after each step, or [outputs] after the last one."""
    if isinstance(model, Seq2Seq):
        return model.generate(example, 24, example[:, -1, :1])[0, :, 0]
    if model.lstm.bidirectional:  # type: ignore[union-attr]
        value: Tensor = model(example)[0]
        return value
    logits: Tensor = model.fc(model.lstm(example)[0])[0]  # type: ignore[operator]
    return logits


def _csv(inputs: Tensor, outputs: Tensor) -> str:
    """inputs [T, D] and outputs [T, n] or, of the last step, [n]; nine digits give a float32."""
    titles = [f"x{k}" for k in range(inputs.size(1))]
    titles += [f"y{k}" for k in range(outputs.size(-1))]
    lines = [",".join(titles)]
    for t, row in enumerate(inputs):
        of_step = (
            outputs[t] if outputs.dim() == 2 else outputs[: len(outputs) * (t == len(inputs) - 1)]
        )
        lines.append(",".join(f"{value:.9g}" for value in [*row.tolist(), *of_step.tolist()]))
    return "\n".join(lines) + "\n"
