"""Trains the same model on two LSTM classes side by side and checks their parity.

Two correct LSTMs differ by rounding alone, but training lets any difference grow, so no fixed
tolerance is right for all its steps. The tolerance is measured instead: a *twin* of the model on
``nn.LSTM`` trains along, whose weights start one rounding error away. How far the twin differs from
``nn.LSTM`` is the effect of rounding on this model, data and dtype. ``FusedLSTM`` may differ MARGIN
times as far: in the first gradients (Adam would hide their scale from the losses), in the loss of
every step, and in the predictions on the trained weights. A wrong formula exceeds that at once.

Under torchrun each process trains on its share of each batch, and DistributedDataParallel averages
the gradients, so all processes train the same models.
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

MARGIN = 16.0  # An LSTM rounds at every step of every sequence, the twin once, at its start.
WARM_UP = 10  # steps that are not timed, at most


@dataclass(frozen=True)
class Run:
    """One model's training: loss and seconds of each step, then the held-out results."""

    losses: list[float]
    seconds: list[float]
    prediction: Tensor  # [M, ...], on the CPU, what task.predict gave
    score: float

    @property
    def milliseconds(self) -> float:
        """Median time of a training step, without the warm-up."""
        return 1000 * statistics.median(self.seconds[min(WARM_UP, len(self.seconds) // 2) :])


@dataclass(frozen=True)
class Deviation:
    """How far FusedLSTM and nn.LSTM differ in something, and how far parity allows them to."""

    what: str
    difference: float
    allowed: float

    @property
    def share(self) -> float:
        """difference / allowed: over 1 is no parity; infinite if either is not finite."""
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
    gradients: Deviation  # of the worst weight, in the first batch
    losses: list[Deviation]  # of each step
    predictions: Deviation  # on the held-out data and the weights that nn.LSTM learnt

    @property
    def worst_loss(self) -> Deviation:
        return max(self.losses, key=lambda deviation: deviation.share)

    @property
    def broken(self) -> list[Deviation]:
        """Whatever differs more than parity allows."""
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
    """``steps`` full batches, every sequence once an epoch, in an order that ``seed`` decides.

    With several processes, the share of this one.
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
    task: Task,
    fused: LSTM,
    reference: LSTM,
    seed: int,
    steps: int,
    after_step: Callable[[float, float], None] = lambda fused, reference: None,
) -> Comparison:
    """Trains ``task`` on both LSTM classes from the same weights on the same batches.

    At each step the models train one after the other, each step another one first, so that their
    times are measured under the same conditions.

    Args:
        task: Data, model and loss.
        fused: The LSTM class to check.
        reference: The LSTM class to check it against.
        seed: Of weights and batches.
        steps: How many training steps, 1 or more.
        after_step: Called after each step with the losses on ``fused`` and ``reference``.

    Returns:
        Both trainings and how far they differ.
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
        for position in range(len(learners)):
            learners[(step + position) % len(learners)].step(batch)
        after_step(learners[0].losses[-1], learners[1].losses[-1])

    fused_run, reference_run, twin_run = (learner.finish() for learner in learners)
    rounding = rounding_error(next(reference_model.parameters()))
    losses = _compare_losses(fused_run.losses, reference_run.losses, twin_run.losses, rounding)
    prediction = reference_run.prediction
    predictions = _compare_predictions(task, build(fused), reference_model, prediction, seed)
    return Comparison(task, fused_run, reference_run, models[0], gradients, losses, predictions)


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
    """The largest difference of the gradients of a weight, for the worst weight.

    A gradient is a sum whose terms may cancel, so small ones are judged by the largest gradient.
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
    """Each step's loss difference; allowed is MARGIN times the largest of the twin so far.

    At least the rounding of the loss itself is allowed: the twin's loss may be equal by chance.
    """
    deviations: list[Deviation] = []
    largest = 0.0
    for step, (tested, expected, moved) in enumerate(zip(fused, reference, twin, strict=True), 1):
        largest = max(largest, abs(moved - expected), rounding * abs(expected))
        what = f"the losses of step {step}"
        deviations.append(Deviation(what, abs(tested - expected), MARGIN * largest))
    return deviations


@torch.no_grad()
def _compare_predictions(
    task: Task, fused: nn.Module, reference: nn.Module, prediction: Tensor, seed: int
) -> Deviation:
    """The largest difference of the held-out predictions on the weights ``reference`` learnt."""
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
    difference, apart = (
        (values.double() - reference.double()).abs().max().item() for values in (fused, twin)
    )
    return Deviation(what, difference, MARGIN * max(apart, rounding))
