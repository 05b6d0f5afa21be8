"""The real data the demo trains on: three small files beside this module.

What each is, who recorded it and under which licence is in data/README.md.
"""

from __future__ import annotations

import csv
import gzip
import math
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

DATA = Path(__file__).parent / "data"

ECG_RATE = 360  # samples a second


class Vowels(NamedTuple):
    """640 utterances of 7 to 29 frames, each of one of nine speakers."""

    frames: Tensor  # [640, 29, 12] float32, LPC cepstrum coefficients, zero past an utterance's end
    lengths: Tensor  # [640] int64, frames of each utterance
    speakers: Tensor  # [640] int64, 0 to 8
    held_out: Tensor  # [640] bool: the 370 utterances of the data set's own test split


class SolarPower(NamedTuple):
    """Hourly means of the power of one solar inverter, 992 days without a break."""

    hours: list[datetime]  # 23,808 starts of an hour, on the recording's own clock
    kilowatts: Tensor  # [23808] float32, NaN where the recording has a gap


def _rows(name: str) -> list[list[str]]:
    with gzip.open(DATA / name, "rt", encoding="ascii", newline="") as file:
        return list(csv.reader(file))[1:]


def japanese_vowels() -> Vowels:
    """The Japanese Vowels utterances, in the order of the file."""
    frames: list[list[list[float]]] = []
    speakers: list[int] = []
    held_out: list[bool] = []
    for split, utterance, speaker, *coefficients in _rows("japanese_vowels.csv.gz"):
        if int(utterance) > len(frames):
            frames.append([])
            speakers.append(int(speaker) - 1)
            held_out.append(split == "test")
        frames[-1].append([float(value) for value in coefficients])
    return Vowels(
        pad_sequence([torch.tensor(utterance) for utterance in frames], batch_first=True),
        torch.tensor([len(utterance) for utterance in frames]),
        torch.tensor(speakers),
        torch.tensor(held_out),
    )


def electrocardiogram() -> Tensor:
    """20.8 seconds of an electrocardiogram, [7500] float32, in millivolt."""
    return torch.tensor([float(row[0]) for row in _rows("ecg.csv.gz")])


def solar_power() -> SolarPower:
    """The solar inverter's hours and kilowatts."""
    rows = _rows("solar.csv.gz")
    return SolarPower(
        [datetime.fromisoformat(hour) for hour, _ in rows],
        torch.tensor([float(watt) / 1000 if watt else math.nan for _, watt in rows]),
    )
