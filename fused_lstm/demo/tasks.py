"""The three tasks of the demo: real data, a model, a loss, and a score on data held out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fused_lstm.demo import datasets
from fused_lstm.models import LSTMClassifier, LSTMSequencePredictor, Seq2Seq

LSTM = Callable[..., nn.Module]


def _wide(values: Tensor) -> Tensor:
    """``values`` in float32 at least: a loss is not summed up in 16 bits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _rmse(prediction: Tensor, truth: Tensor) -> float:
    return (prediction.double() - truth.double()).square().mean().sqrt().item()


class Task(ABC):
    """Data on a device, and what to do with it; N sequences to train on, M held out."""

    name: ClassVar[str]
    question: ClassVar[str]
    data: ClassVar[str]
    model: ClassVar[str]
    loss_name: ClassVar[str]
    measure: ClassVar[str]  # of score()
    naive_rule: ClassVar[str]  # what naive scores
    inputs: ClassVar[str]  # of example(), with their unit
    step: ClassVar[str]  # what a time step of example() is
    steps: ClassVar[int]  # training steps, unless told otherwise
    batch_size: ClassVar[int]
    learning_rate: ClassVar[float]

    train: tuple[Tensor, ...]  # each [N, ...]; a batch of their rows goes into loss()
    held_out: tuple[Tensor, ...]  # the model's inputs, each [M, ...]
    truth: Tensor  # [M, ...], on the CPU, what predict() should give
    naive: float  # the score without a model

    @abstractmethod
    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        """Loads the data; the models' inputs are in ``dtype`` on ``device``."""

    @abstractmethod
    def build(self, lstm: LSTM) -> nn.Module:
        """The task's model on the LSTM class ``lstm``, on the CPU in float32."""

    @abstractmethod
    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        """The mean loss of a batch, a scalar, float32 or wider."""

    @abstractmethod
    def predict(self, model: nn.Module) -> Tensor:
        """The model's outputs [M, ...] for the held-out sequences."""

    @abstractmethod
    def score(self, prediction: Tensor) -> float:
        """``measure`` of the outputs of predict()."""

    @abstractmethod
    def lstm(self, model: nn.Module) -> nn.Module:
        """The LSTM that reads the task's sequences."""

    @abstractmethod
    def example(self) -> Tensor:
        """One held-out sequence [1, T, D], whose gates are worth a look."""


class Classifier(Task):
    """Who is speaking? One label for a sequence of any length."""

    name = "classifier"
    question = "Who is speaking?"
    data = "Japanese Vowels: 9 speakers, 12 coefficients a frame, 7 to 29 frames"
    model = "LSTMClassifier, 64 hidden, on the last hidden state of each utterance"
    loss_name = "cross entropy"
    measure = "accuracy, %"
    naive_rule = "always the commonest speaker"
    inputs = "12 coefficients, standardised"
    step = "a frame"
    steps = 300
    batch_size = 30
    learning_rate = 3e-3

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        frames, lengths, speakers, held_out = datasets.japanese_vowels()
        real = torch.arange(frames.size(1)) < lengths[:, None]  # [640, 29]
        known = frames[~held_out][real[~held_out]]  # [frames to train on, 12]
        frames = ((frames - known.mean(0)) / known.std(0)).to(device, dtype)
        lengths, speakers = lengths.to(device), speakers.to(device)
        held_out = held_out.to(device)
        self.train = (frames[~held_out], lengths[~held_out], speakers[~held_out])
        self.held_out = (frames[held_out], lengths[held_out])
        self.truth = speakers[held_out].cpu()
        self.naive = 100 * self.truth.bincount().max().item() / len(self.truth)

    def build(self, lstm: LSTM) -> nn.Module:
        return LSTMClassifier(12, 64, 9, lstm=lstm)

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        frames, lengths, speakers = batch  # [B, 29, 12], [B], [B]
        return functional.cross_entropy(_wide(model(frames, lengths=lengths)), speakers)

    def predict(self, model: nn.Module) -> Tensor:
        frames, lengths = self.held_out
        logits: Tensor = model(frames, lengths=lengths)  # [M, 9]
        return logits.cpu()

    def score(self, prediction: Tensor) -> float:
        return 100 * (prediction.argmax(1) == self.truth).double().mean().item()

    def lstm(self, model: nn.Module) -> nn.Module:
        return model.get_submodule("lstm")

    def example(self) -> Tensor:
        frames, lengths = self.held_out
        longest = int(lengths.argmax())
        return frames[longest : longest + 1, : int(lengths[longest])]


class Predictor(Task):
    """What comes next? The next sample of a heart's signal from the half second before it."""

    name = "predictor"
    question = "What is the next sample of a heartbeat?"
    data = "Electrocardiogram: 20.8 seconds at 120 samples a second, the last fifth held out"
    model = "LSTMSequencePredictor, 64 hidden, bidirectional, on both final states"
    loss_name = "mean square error"
    measure = "RMSE, mV"
    naive_rule = "the sample before"
    inputs = "voltage, standardised"
    step = "1/120 s"
    steps = 240
    batch_size = 64
    learning_rate = 5e-3

    window = 60  # samples a prediction is made from
    rate = 120  # samples a second

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        samples = datasets.electrocardiogram()
        samples = samples.view(-1, datasets.ECG_RATE // self.rate).mean(1)  # [2500]
        cut = len(samples) * 4 // 5
        self.mean, self.scale = samples[:cut].mean(), samples[:cut].std()
        windows = ((samples - self.mean) / self.scale).unfold(0, self.window + 1, 1)[:, :, None]
        past, following = windows[:, :-1], windows[:, -1]  # [2440, 60, 1], [2440, 1]
        first = cut - self.window  # the first window whose last sample is held out
        self.train = (past[:first].to(device, dtype), following[:first].to(device, dtype))
        self.held_out = (past[first:].to(device, dtype),)
        self.truth = samples[cut:, None]  # [500, 1], in mV
        self.naive = _rmse(samples[cut - 1 : -1, None], self.truth)

    def build(self, lstm: LSTM) -> nn.Module:
        return LSTMSequencePredictor(1, 64, 1, summary="final_states", lstm=lstm)

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        past, following = batch  # [B, 60, 1], [B, 1]
        return functional.mse_loss(_wide(model(past)), _wide(following))

    def predict(self, model: nn.Module) -> Tensor:
        return _wide(model(*self.held_out).cpu()) * self.scale + self.mean  # [500, 1], in mV

    def score(self, prediction: Tensor) -> float:
        return _rmse(prediction, self.truth)

    def lstm(self, model: nn.Module) -> nn.Module:
        return model.get_submodule("lstm")

    def example(self) -> Tensor:
        (past,) = self.held_out
        return past[4 * self.window : 8 * self.window : self.window].reshape(1, -1, 1)  # 2 seconds


class Forecaster(Task):
    """How much sun tomorrow? The next 24 hours of a solar inverter from the three days before."""

    name = "forecaster"
    question = "How much sun will there be tomorrow?"
    data = "Solar power: one inverter in Colorado, 992 days by the hour, the last fifth held out"
    model = "Seq2Seq, 64 hidden: 72 hours in, 24 hours out, fed its own outputs when held out"
    loss_name = "mean square error"
    measure = "RMSE, W"
    naive_rule = "the same hour of the day before"
    inputs = "power, kW; pale: hour of day, day of year"
    step = "an hour"
    steps = 400
    batch_size = 64
    learning_rate = 3e-3

    past = 72  # hours
    future = 24

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        hours, kilowatts = datasets.solar_power()
        day = torch.tensor([2 * math.pi * hour.hour / 24 for hour in hours])
        year = torch.tensor([2 * math.pi * hour.timetuple().tm_yday / 365.25 for hour in hours])
        features = [kilowatts, day.sin(), day.cos(), year.sin(), year.cos()]
        span = self.past + self.future
        windows = torch.stack(features, 1).unfold(0, span, 3).transpose(1, 2)  # [., 96, 5]
        complete = ~windows[:, :, 0].isnan().any(1)
        start = torch.arange(len(windows)) * 3
        cut = len(hours) * 4 // 5
        known = windows[complete & (start + span <= cut)].to(device, dtype)
        unseen = complete & (start + self.past >= cut)
        held_out = windows[unseen]
        self.starts = [hours[index + self.past] for index in start[unseen].tolist()]  # of forecasts
        self.train = (known[:, : self.past], known[:, self.past - 1 :, :1])
        self.held_out = (held_out[:, : self.past].to(device, dtype),)
        self.truth = 1000 * held_out[:, self.past :, 0]  # [M, 24], in W
        self.naive = _rmse(1000 * held_out[:, self.past - 24 : self.past, 0], self.truth)

    def build(self, lstm: LSTM) -> nn.Module:
        return Seq2Seq(5, 64, 1, lstm=lstm)

    def loss(self, model: nn.Module, *batch: Tensor) -> Tensor:
        past, power = batch  # [B, 72, 5]; [B, 25, 1], from the last hour of the past on
        return functional.mse_loss(_wide(model(past, power[:, :-1])), _wide(power[:, 1:]))

    def predict(self, model: nn.Module) -> Tensor:
        assert isinstance(model, Seq2Seq)
        (past,) = self.held_out
        power = model.generate(past, self.future, past[:, -1, :1])  # [M, 24, 1]
        return 1000 * _wide(power[:, :, 0].cpu())

    def score(self, prediction: Tensor) -> float:
        return _rmse(prediction, self.truth)

    def lstm(self, model: nn.Module) -> nn.Module:
        return model.get_submodule("encoder.lstm")

    def example(self) -> Tensor:
        (past,) = self.held_out
        return past[:1]


TASKS: dict[str, type[Task]] = {task.name: task for task in (Classifier, Predictor, Forecaster)}
