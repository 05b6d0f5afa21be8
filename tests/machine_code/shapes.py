"""The calls whose kernels are looked at, and what a step of each may cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .timing import GIGAHERTZ

BATCH, LENGTH = 16, 1024
PASSES = ("forward", "backward")


@dataclass(frozen=True)
class Gpu:
    """For which code is executed."""

    architecture: int
    profile: str
    """Of tests/emulator/cuda_runtime.cpp."""
    gigahertz: float


GPUS = {"H100": Gpu(90, "hopper-132", GIGAHERTZ), "A100": Gpu(80, "a100", 1.41)}
BOUNDARIES_MAY_COST = 1.3  # times what a call without lengths and resets may
MASK_BYTES = 4  # byte accesses of a step where there are resets, which are bool
LISTED_MASK_BYTES = 8  # and in the code of all of the loop, for several sequences
LEAST_DISTANCE = 400  # cycles from a load from memory to its use


@dataclass(frozen=True)
class Limit:
    """Of one step of a pass."""

    instructions: float
    kilobytes: float
    """Of code, in cache lines."""
    cycles: float

    def times(self, factor: float) -> Limit:
        return Limit(*(factor * each for each in (self.instructions, self.kilobytes, self.cycles)))


@dataclass(frozen=True)
class Shape:
    """A layer in training, float32 in TF32."""

    dtype: str
    hidden: int
    input: int
    boundaries: str = ""
    """"lengths", "resets", or neither."""
    frozen: bool = False
    """By `freeze`: in inference."""
    gpu: str = "H100"
    batch: int = BATCH
    layers: int = 1
    """In one launch."""

    @property
    def name(self) -> str:
        gpu = f"{self.gpu} " if self.gpu != "H100" else ""
        fused = f" D {self.input}" if self.input != self.hidden else ""
        batch = f" B {self.batch}" if self.batch != BATCH else ""
        frozen = "frozen" if self.frozen else ""
        layers = f" L {self.layers}" if self.layers > 1 else ""
        sizes = f"H {self.hidden}{fused}{batch}{layers}"
        return f"{gpu}{self.dtype} {sizes} {self.boundaries}{frozen}".strip()

    @property
    def passes(self) -> tuple[str, ...]:
        """Those that are looked at. What an A100 runs forward, an H100 runs, too."""
        if self.gpu != "H100":
            return ("backward",)
        return PASSES[:1] if self.frozen else PASSES

    def limit(self, direction: str) -> Limit | None:
        limits = _LIMITS if self.gpu == "H100" else _LIMITS_OF_AN_A100
        found = limits.get((direction, self.dtype, self.hidden))
        if self.batch != BATCH:
            found = _LIMITS_OF_BATCHES.get((direction, self.dtype, self.hidden, self.batch))
        if self.layers > 1:
            found = _LIMITS_OF_STACKS.get((direction, self.dtype, self.hidden))
        if found is None or self.frozen:  # of the same kernels
            return None
        return found.times(BOUNDARIES_MAY_COST) if self.boundaries else found


_CLUSTER, _GRID, _TF32 = Limit(350, 6, 1000), Limit(300, 6, 950), Limit(600, 10, 2000)
_BACKWARD = Limit(400, 8, 1250)
_LIMITS = {
    ("forward", "bfloat16", 64): Limit(220, 4, 600),
    ("forward", "bfloat16", 256): _CLUSTER,
    ("forward", "bfloat16", 512): _CLUSTER,
    ("forward", "bfloat16", 768): _GRID,
    ("forward", "bfloat16", 1024): _GRID,
    ("backward", "bfloat16", 768): _BACKWARD,
    ("backward", "bfloat16", 1024): _BACKWARD,
    ("forward", "float32", 768): _TF32,
    ("forward", "float32", 1024): _TF32,
    ("backward", "float32", 768): _TF32,
    ("backward", "float32", 1024): _TF32,
}
_LIMITS_OF_AN_A100 = {
    ("backward", "bfloat16", 256): Limit(260, 4, 1200),
    ("backward", "bfloat16", 512): Limit(350, 6, 1400),
    ("backward", "bfloat16", 768): Limit(500, 8, 1600),
    ("backward", "bfloat16", 1024): Limit(600, 10, 1700),
    ("backward", "float32", 512): Limit(380, 6, 1500),
    ("backward", "float32", 768): Limit(480, 8, 1700),
}


# What there is, and a little more: no one has asked for a number.
_LIMITS_OF_BATCHES = {
    ("forward", "bfloat16", 512, 256): Limit(540, 9, 1500),
    ("forward", "bfloat16", 1024, 64): Limit(1100, 9, 3800),
    ("forward", "float32", 1024, 64): Limit(1700, 14, 5400),
    ("backward", "bfloat16", 512, 128): Limit(1680, 9, 4500),  # of an A100
    ("backward", "bfloat16", 512, 256): Limit(2200, 9, 5200),
    ("backward", "bfloat16", 1024, 64): Limit(1600, 13, 3600),
    ("backward", "float32", 1024, 64): Limit(3200, 13, 8600),
}


# Of stacks likewise: the limits of no one's design.
_LIMITS_OF_STACKS = {
    ("forward", "bfloat16", 64): Limit(330, 6, 1300),
    ("forward", "bfloat16", 256): Limit(390, 7, 1500),
    ("forward", "bfloat16", 512): Limit(540, 9, 2050),
    ("backward", "bfloat16", 64): Limit(410, 7, 1350),
    ("backward", "bfloat16", 256): Limit(450, 7, 1500),
    ("backward", "bfloat16", 512): Limit(550, 9, 1750),
    ("forward", "float32", 64): Limit(380, 7, 1450),
    ("forward", "float32", 256): Limit(560, 9, 2000),
    ("backward", "float32", 64): Limit(460, 8, 1500),
    ("backward", "float32", 256): Limit(530, 9, 1750),
}


def shapes() -> Iterator[Shape]:
    for boundaries in ("", "lengths", "resets"):
        yield Shape("bfloat16", 64, 10, boundaries)
        for hidden in (256, 512, 768, 1024):
            yield Shape("bfloat16", hidden, hidden, boundaries)
        for hidden in (768, 1024):
            yield Shape("float32", hidden, hidden, boundaries)
        for hidden in (256, 512, 768, 1024):
            yield Shape("bfloat16", hidden, hidden, boundaries, gpu="A100")
        for hidden in (512, 768):
            yield Shape("float32", hidden, hidden, boundaries, gpu="A100")
        yield Shape("bfloat16", 1024, 1024, boundaries, batch=64)
    for hidden in (64, 256, 512):
        yield Shape("bfloat16", hidden, hidden, layers=2)
    for hidden in (64, 256):
        yield Shape("float32", hidden, hidden, layers=2)
    yield Shape("bfloat16", 512, 512, batch=256)
    yield Shape("float32", 1024, 1024, batch=64)
    yield Shape("bfloat16", 512, 512, gpu="A100", batch=128)
    yield Shape("bfloat16", 64, 10, frozen=True)
    for hidden in (512, 1024):
        yield Shape("bfloat16", hidden, hidden, frozen=True)
    yield Shape("float32", 768, 768, frozen=True)
