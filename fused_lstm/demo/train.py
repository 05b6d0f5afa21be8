"""Training the same model on two LSTM classes side by side, and the verdict on their parity.

Two correct LSTMs differ by rounding alone, but training lets any difference grow, so no fixed
tolerance is right for all its steps. The yardstick is measured instead: a *twin* of the model on
``nn.LSTM`` trains along, whose weights start one rounding error away. How far the twin strays from
its sibling is what rounding alone does to this model on this data in this dtype; ``FusedLSTM`` may
stray MARGIN times as far: in the first gradients (whose scale Adam would hide from the losses), in
the loss of every step, and in the predictions on the trained weights. A wrong formula strays
further at once.

Under torchrun every process takes its share of each batch, and DistributedDataParallel averages
the gradients: all of them train the same models.
"""

from __future__ import annotations

import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fused_lstm.demo.tasks import LSTM, Task

MARGIN = 16.0  # an LSTM rounds at every step of every sequence, the twin once, at its start
WARM_UP = 10  # steps that are not timed, at most
PROGRESS_LINES = 6


@dataclass(frozen=True)
class Run:
    """One model's training: per step its loss and its seconds; then its held-out results."""

    losses: list[float]
    seconds: list[float]
    prediction: Tensor  # [M, ...], on the CPU, what task.predict gave
    score: float

    @property
    def milliseconds(self) -> float:
        """Median of a training step, the first ones left out."""
        return 1000 * statistics.median(self.seconds[min(WARM_UP, len(self.seconds) // 2) :])


@dataclass(frozen=True)
class Deviation:
    """How far FusedLSTM and nn.LSTM differ in something, and may by the rule of parity."""

    what: str
    difference: float
    allowed: float

    @property
    def share(self) -> float:
        """difference / allowed, over 1 is no parity; infinite if either is not a finite number."""
        if not math.isfinite(self.difference) or not math.isfinite(self.allowed):
            return math.inf
        return self.difference / max(self.allowed, sys.float_info.min)


@dataclass(frozen=True)
class Comparison:
    """One task trained on FusedLSTM and on nn.LSTM."""

    task: Task
    fused: Run
    reference: Run
    model: nn.Module  # on FusedLSTM, trained
    gradients: Deviation  # of the weight where it is worst, in the first batch
    losses: list[Deviation]  # at each step
    predictions: Deviation  # on the held-out data and the weights that nn.LSTM learnt

    @property
    def worst_loss(self) -> Deviation:
        return max(self.losses, key=lambda deviation: deviation.share)

    @property
    def broken(self) -> list[Deviation]:
        """What differs more than parity allows."""
        all_three = (self.gradients, self.worst_loss, self.predictions)
        return [deviation for deviation in all_three if not deviation.share <= 1]

    @property
    def parity(self) -> bool:
        return not self.broken


def rounding_error(weight: Tensor) -> float:
    """The relative rounding error of an LSTM on ``weight``: of its dtype, or of TF32 in its place.

    nn.LSTM on a CUDA device multiplies float32 in TF32 (11 bits) unless told otherwise.
    """
    if weight.is_cuda and weight.dtype is torch.float32 and torch.backends.cudnn.allow_tf32:
        return 2.0**-10
    return torch.finfo(weight.dtype).eps


@torch.no_grad()
def twin_of(model: nn.Module, seed: int) -> nn.Module:
    """A copy of ``model``, each weight moved up or down by one rounding error."""
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for weight in twin.parameters():
        sign = 2 * torch.randint(2, weight.shape, generator=generator) - 1
        weight.mul_((1 + rounding_error(weight) * sign.double()).to(weight.device))
    return twin


class _Learner:
    """A model with its optimizer: Adam under a cosine schedule, on weights of float32 or wider."""

    def __init__(self, model: nn.Module, task: Task, steps: int) -> None:
        self.model, self.task = model, task
        self.trained = model if processes() == 1 else DistributedDataParallel(model)
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.weights = list(model.parameters())
        # Adam's steps are too small to move a 16-bit weight: it keeps a float32 copy of those.
        self.masters = [
            weight.detach().float() if weight.dtype.itemsize < 4 else weight
            for weight in self.weights
        ]
        self.optimizer = torch.optim.Adam(self.masters, lr=task.learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)

    def step(self, batch: tuple[Tensor, ...]) -> None:
        _wait_for(batch[0].device)
        start = time.perf_counter()
        self.model.zero_grad()
        loss = self.task.loss(self.trained, *batch)
        loss.backward()
        self._update()
        loss = _mean_of_all(loss.detach())
        _wait_for(batch[0].device)
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())

    @torch.no_grad()
    def _update(self) -> None:
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight and weight.grad is not None:
                master.grad = weight.grad.float()
        self.optimizer.step()
        self.schedule.step()
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight:
                weight.copy_(master)

    @torch.no_grad()
    def finish(self) -> Run:
        prediction = self.task.predict(self.model)
        return Run(self.losses, self.seconds, prediction, self.task.score(prediction))


def processes() -> int:
    """How many train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _mean_of_all(value: Tensor) -> Tensor:
    """The mean over all processes."""
    if processes() > 1:
        distributed.all_reduce(value)
        value /= processes()
    return value


def _share(rows: Tensor) -> Tensor:
    """This process's part of the rows of a batch; all parts are of one size."""
    if processes() == 1:
        return rows
    size = len(rows) // processes()
    return rows[distributed.get_rank() * size :][:size]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _batches(task: Task, steps: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """``steps`` full batches, every sequence once an epoch, in an order of the seed's own.

    With several processes, this one's share of them.
    """
    count, device = len(task.train[0]), task.train[0].device
    generator = torch.Generator().manual_seed(seed)
    rows: list[Tensor] = []
    for _ in range(steps):
        if not rows:
            order = torch.randperm(count, generator=generator)
            rows = list(order[: count - count % task.batch_size].split(task.batch_size))
        chosen = _share(rows.pop()).to(device)
        yield tuple(tensor[chosen] for tensor in task.train)


def compare(
    task: Task, fused: LSTM, reference: LSTM, seed: int, steps: int, say: Callable[[str], None]
) -> Comparison:
    """Trains ``task`` on both LSTM classes from the same weights on the same batches.

    Each step is taken by one model after the other, in turns as to who is first: their times are
    those of the same moment. ``say`` gets the lines of progress.
    """
    inputs = task.held_out[0]

    def build(lstm: LSTM) -> nn.Module:
        torch.manual_seed(seed)
        return task.build(lstm).to(inputs.device, inputs.dtype)

    reference_model = build(reference)
    models = (build(fused), reference_model, twin_of(reference_model, seed))
    first = next(_batches(task, 1, seed))
    gradients = _compare_gradients(*(_gradients(model, task, first) for model in models))
    learners = [_Learner(model, task, steps) for model in models]
    for step, batch in enumerate(_batches(task, steps, seed)):
        for turn in range(len(learners)):
            learners[(step + turn) % len(learners)].step(batch)
        if (step + 1) * PROGRESS_LINES // steps > step * PROGRESS_LINES // steps:
            say(_progress(step + 1, steps, learners[0], learners[1]))

    ours, theirs, twin = (learner.finish() for learner in learners)
    rounding = rounding_error(next(reference_model.parameters()))
    losses = _compare_losses(ours.losses, theirs.losses, twin.losses, rounding)
    predictions = _compare_predictions(task, build(fused), reference_model, theirs.prediction, seed)
    return Comparison(task, ours, theirs, models[0], gradients, losses, predictions)


def _progress(step: int, steps: int, fused: _Learner, reference: _Learner) -> str:
    difference = abs(fused.losses[-1] - reference.losses[-1])
    return (
        f"step {step:4}/{steps}   loss: FusedLSTM {fused.losses[-1]:.5f} "
        f"nn.LSTM {reference.losses[-1]:.5f} difference {difference:.1e}   "
        f"time: {sum(fused.seconds):.1f} s, {sum(reference.seconds):.1f} s"
    )


def _gradients(model: nn.Module, task: Task, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    task.loss(model, *batch).backward()
    return {
        name: _mean_of_all(weight.grad)
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def _compare_gradients(
    fused: dict[str, Tensor], reference: dict[str, Tensor], twin: dict[str, Tensor]
) -> Deviation:
    """Of each weight, the gradients' largest difference; the worst of them.

    A gradient is a sum whose terms may cancel: what is small is judged by the largest of them all.
    """
    largest = max(gradient.abs().max().item() for gradient in reference.values())
    deviations = [
        _deviation(f"the gradients of {name}", fused[name], reference[name], twin[name], largest)
        for name in reference
    ]
    return max(deviations, key=lambda deviation: deviation.share)


def _compare_losses(
    fused: list[float], reference: list[float], twin: list[float], rounding: float
) -> list[Deviation]:
    """Each step's loss difference, and MARGIN times the furthest that the twin has strayed so far.

    At least the rounding of the loss itself is allowed: the twin may hit it by chance.
    """
    deviations: list[Deviation] = []
    furthest = 0.0
    for step, (ours, theirs, other) in enumerate(zip(fused, reference, twin, strict=True), 1):
        furthest = max(furthest, abs(other - theirs), rounding * abs(theirs))
        what = f"the losses of step {step}"
        deviations.append(Deviation(what, abs(ours - theirs), MARGIN * furthest))
    return deviations


@torch.no_grad()
def _compare_predictions(
    task: Task, fused: nn.Module, reference: nn.Module, prediction: Tensor, seed: int
) -> Deviation:
    """The held-out predictions' largest difference, with the weights that ``reference`` learnt."""
    fused.load_state_dict(reference.state_dict())
    twin = twin_of(reference, seed)
    what = "the predictions on the same weights"
    largest = prediction.abs().max().item()
    return _deviation(what, task.predict(fused), prediction, task.predict(twin), largest)


def _deviation(
    what: str, fused: Tensor, reference: Tensor, twin: Tensor, largest: float
) -> Deviation:
    """The largest difference, and MARGIN times the twin's or the rounding of ``largest``."""
    rounding = torch.finfo(reference.dtype).eps * largest
    difference, strayed = (
        (values.double() - reference.double()).abs().max().item() for values in (fused, twin)
    )
    return Deviation(what, difference, MARGIN * max(strayed, rounding))
