"""Calls layers on the emulator, which records their launches: python record.py FOLDER SHAPES.

SHAPES is a list in JSON of what a `Shape` has. FOLDER then has a folder `NUMBER/PASS` of each, with
the launches, and plans.json: of each shape and pass the kernel and the estimate of the plan. The
process is one of its own, with the emulator's package on its path.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import fused_lstm
from fused_lstm import _C
from fused_lstm.explain import Gpu


def record(folder: Path, length: int, shape: dict[str, Any]) -> dict[str, Any]:
    batch = shape["batch"]
    dtype = getattr(torch, shape["dtype"])
    module = fused_lstm.FusedLSTM(shape["input"], shape["hidden"], shape["layers"], dtype=dtype)
    x = torch.zeros(length, batch, shape["input"], dtype=dtype, requires_grad=True)
    options = {}
    if shape["boundaries"] == "lengths":
        options["lengths"] = length - torch.arange(batch)
    elif shape["boundaries"] == "resets":
        options["reset"] = torch.zeros(length, batch, dtype=torch.bool)
        options["reset"][7::100] = True  # no step in the middle, which is the one that is timed
    gpu = Gpu(*_C.gpu(0))  # the emulated one, with the clusters that its driver allows
    ragged = bool(shape["boundaries"])
    plan = fused_lstm.explain(module, batch, length, device=gpu, ragged=ragged)[0]

    def enter(direction: str) -> None:
        (folder / direction).mkdir(parents=True)
        os.environ["EMULATOR_RECORD"] = str(folder / direction)

    if shape["frozen"]:
        frozen = fused_lstm.freeze(module, shape["dtype"])
        enter("forward")
        frozen(x.detach())
    else:
        enter("forward")
        output = module(x, **options)[0]
        enter("backward")
        output.sum().backward()
    found = {}
    for direction, chosen in (("forward", plan.forward), ("backward", plan.backward)):
        if shape["layers"] > 1 and not chosen.stack:
            raise SystemExit(f"{shape} has a launch for each layer, {direction}")
        candidate = chosen.stack.candidate if chosen.stack else chosen.candidates[chosen.kernel]
        found[direction] = (chosen.kernel, candidate.microseconds)
    return found


def main(folder: Path, length: int, shapes: list[dict[str, Any]]) -> None:
    plans = [record(folder / str(i), length, shape) for i, shape in enumerate(shapes)]
    (folder / "plans.json").write_text(json.dumps(plans))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *json.loads(sys.argv[2]))
