"""The launches of a layer's passes, from the host code as it is, run on the emulator.

tests/emulator/recorder.cpp writes each launch to a file instead of running it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from .cubin import same_everywhere
from .execute import Launch
from .shapes import GPUS, LENGTH, Shape

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Recorded:
    """One launch, and the kernel by its mangled name without the anonymous namespace's."""

    kernel: str
    launch: Launch


@dataclass(frozen=True)
class Pass:
    """All launches of a forward or backward pass, and what the plan says of it."""

    shape: Shape
    direction: str
    kernel: str
    """The plan's: block, cluster, grid or stepwise."""
    microseconds: float
    """Of a step, estimated by the plan."""
    launches: tuple[Recorded, ...]


@cache
def _functions(library: str) -> dict[int, str]:
    """The functions of a shared library by offset, those of anonymous namespaces too."""
    done = subprocess.run(["nm", library], capture_output=True, text=True, check=True)
    rows = (line.split() for line in done.stdout.splitlines())
    return {int(row[0], 16): row[2] for row in rows if len(row) == 3 and row[1] in "tTwW"}


def read(path: Path) -> Recorded:
    data, at = path.read_bytes(), 0

    def number() -> int:
        nonlocal at
        at += 8
        return int(struct.unpack_from("<Q", data, at - 8)[0])

    def blob() -> bytes:
        nonlocal at
        size = number()
        at += size
        return data[at - size : at]

    offset, library = number(), blob().decode()
    grid, block, cluster, shared_memory = (number() for _ in range(4))
    parameters = blob()
    regions = {}
    while at < len(data):
        address = number()
        regions[address] = blob()
    name = same_everywhere(_functions(library)[offset])
    return Recorded(name, Launch(grid, block, cluster, shared_memory, parameters, regions))


def record(
    emulated: Path, folder: Path, shapes: Sequence[Shape], length: int = LENGTH
) -> list[Pass]:
    """The passes of a call of each shape; `emulated` is what tests/emulator/build.py has made."""
    found: dict[Shape, list[Pass]] = {}
    for gpu in GPUS:
        of_gpu = [shape for shape in shapes if shape.gpu == gpu]
        if of_gpu:
            found |= _record(emulated, folder / gpu, of_gpu, gpu, length)
    return [one for shape in shapes for one in found[shape]]


def _record(
    emulated: Path, folder: Path, shapes: Sequence[Shape], gpu: str, length: int
) -> dict[Shape, list[Pass]]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    arguments = json.dumps([length, [asdict(shape) for shape in shapes]])
    environment = os.environ | {
        "PYTHONPATH": str(emulated.resolve()),
        "EMULATED_GPU": GPUS[gpu].profile,
        "EMULATOR_RECORD": str(folder.resolve()),
    }
    subprocess.run(
        [sys.executable, str(HERE / "record.py"), str(folder.resolve()), arguments],
        env=environment,
        check=True,
        cwd=folder,
    )
    plans = json.loads((folder / "plans.json").read_text())
    found: dict[Shape, list[Pass]] = {shape: [] for shape in shapes}
    for i, (shape, plan) in enumerate(zip(shapes, plans, strict=True)):
        for direction in shape.passes:
            paths = sorted((folder / str(i) / direction).glob("*.launch"), key=_number)
            launches = tuple(read(path) for path in paths)
            kernel, microseconds = plan[direction]
            found[shape].append(Pass(shape, direction, kernel, microseconds, launches))
    return found


def _number(path: Path) -> int:
    return int(path.stem)
