"""What is benchmarked: every shape, dtype, mode and thread count. Plain data, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

GRIDS = {
    "cpu": {"batch": (1, 8, 32, 128), "steps": (1, 20, 100), "hidden": (64, 128, 256, 512, 1024)},
    "cuda": {
        "batch": (1, 8, 16, 64, 128),
        "steps": (32, 256, 1024),
        "hidden": (64, 128, 256, 512, 768, 1024, 1536),
    },
}
# On CUDA the whole grid runs in every dtype; on a CPU, where it takes many minutes, the 16-bit
# types run these shapes of it only.
CPU_LOW_PRECISION_GRID = {"batch": (1, 8, 32, 128), "steps": (1, 100), "hidden": (64, 256, 1024)}

DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

QUICK_FLOPS = 2e8  # the quick subset holds the cases whose arithmetic stays below this

# Where arithmetic is what limits a CPU case; where one sequence is read, the weights are.
GEMM_BATCH, GEMM_HIDDEN = 32, 256


@dataclass(frozen=True)
class Case:
    """One comparison: a model at a shape, in a dtype, on a device, forward only or with backward.

    ``model`` is "layer", "cell", "classifier", "predictor" or "seq2seq"; ``threads`` is None
    where the host's threads do not matter; ``recompute`` is FusedLSTM's argument.
    """

    group: str
    model: str
    batch: int
    steps: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    recompute: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    training: bool = False
    threads: int | None = 1

    @property
    def mode(self) -> str:
        """Forward without gradients, "inference", or forward and backward, "training"."""
        return "training" if self.training else "inference"

    @property
    def shape(self) -> str:
        """The sizes in one word, such as ``B32-T100-D512-H512-L2-bi-packed``."""
        words = [f"B{self.batch}", f"T{self.steps}", f"D{self.input_size}", f"H{self.hidden_size}"]
        words += [f"L{self.num_layers}"] * (self.num_layers > 1)
        words += ["bi"] * self.bidirectional + ["packed"] * self.packed
        words += ["recompute"] * self.recompute
        return "-".join(words)

    @property
    def name(self) -> str:
        """What pytest's ``-k`` selects by, such as ``grid-B1-T20-D64-H64-float32-training-1t``."""
        where = self.device if self.threads is None else f"{self.threads}t"
        return f"{self.group}-{self.shape}-{self.dtype}-{self.mode}-{where}"

    @property
    def lengths(self) -> list[int]:
        """Each sequence's steps, longest first; packed ones spread evenly from T down to T / 4."""
        if not self.packed:
            return [self.steps] * self.batch
        shortest = max(1, self.steps // 4)
        last = max(1, self.batch - 1)
        return [self.steps - (self.steps - shortest) * b // last for b in range(self.batch)]

    @property
    def rows(self) -> int:
        """Steps of all sequences together: rows of the input's product."""
        return sum(self.lengths)

    @property
    def flops(self) -> int:
        """Floating-point operations of the LSTM's matrix products; nothing else is counted."""
        total = 0
        for layer, (weight_ih, weight_hh) in enumerate(self._weights):
            from_input = 2 * self.rows * weight_ih
            recurrent = 2 * self.rows * weight_hh
            total += from_input + recurrent
            if self.training:  # backward: the gradients of both operands of each product
                # A task model's input is data, which needs no gradient.
                is_data = layer == 0 and self.model not in ("layer", "cell")
                total += (1 if is_data else 2) * from_input + 2 * recurrent
        # The decoder is a second LSTM of the encoder's size.
        return total * (2 if self.model == "seq2seq" else 1)

    @property
    def limit(self) -> str | None:
        """What the machine lets such a case do at most: "GEMM", "reading", or None, nothing told.

        Many sequences through a wide layer are arithmetic, one sequence reads the weights.
        """
        if self.device != "cpu":
            return None
        if self.batch >= GEMM_BATCH and self.hidden_size >= GEMM_HIDDEN:
            return "GEMM"
        return "reading" if self.batch == 1 else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one sequence cannot do without reading, for ``limit`` "reading".

        ``weight_hh`` at every step and ``weight_ih`` once for all of them; in backward both again.
        What is written (gradients) or copied (panels) is not counted, so it costs share.
        """
        read = sum(self.steps * weight_hh + weight_ih for weight_ih, weight_hh in self._weights)
        return read * (2 if self.training else 1) * ITEM_BYTES[self.dtype]

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights that are read over and over, which some level of cache holds.

        One layer's and direction's ``weight_hh`` over the steps; where there is one step, all the
        weights, from call to call.
        """
        if self.steps > 1:
            numbers = 4 * self.hidden_size * self.hidden_size
        else:
            numbers = sum(map(sum, self._weights))
        return numbers * ITEM_BYTES[self.dtype]

    @property
    def in_onnx(self) -> bool:
        """Whether onnxruntime is asked as well: layers on a CPU, forward, in float32."""
        return (self.device, self.dtype, self.model) == ("cpu", "float32", "layer") and not (
            self.packed or self.training
        )

    @property
    def _weights(self) -> list[tuple[int, int]]:
        """Numbers in weight_ih and weight_hh of each layer, its directions together."""
        directions = 1 + self.bidirectional
        gates = 4 * self.hidden_size * directions
        return [
            (
                gates * (self.hidden_size * directions if layer else self.input_size),
                gates * self.hidden_size,
            )
            for layer in range(self.num_layers)
        ]


def _task_models() -> Iterator[Case]:
    for model in ("classifier", "predictor", "seq2seq"):
        two_ways = model == "predictor"
        yield Case(f"model-{model}", model, 32, 20, 10, 64, bidirectional=two_ways)


def _cells() -> Iterator[Case]:
    for batch in (1, 32):
        yield Case("cell", "cell", batch, 1, 64, 64)


def _variants() -> Iterator[Case]:
    for batch, hidden in product((1, 32), (128, 512)):
        base = Case("", "layer", batch, 100, hidden, hidden)
        yield replace(base, group="bidirectional", bidirectional=True)
        yield replace(base, group="two-layers", num_layers=2)
        yield replace(base, group="recompute", recompute=True)
    for batch, hidden in product((8, 32, 128), (128, 512)):
        yield Case("packed", "layer", batch, 100, hidden, hidden, packed=True)
    for batch, hidden in product((1, 32), (100, 200, 650)):
        yield Case("odd-sizes", "layer", batch, 100, hidden, hidden)


def _grid(
    batch: tuple[int, ...], steps: tuple[int, ...], hidden: tuple[int, ...]
) -> Iterator[Case]:
    for b, t, h in product(batch, steps, hidden):
        yield Case("grid", "layer", b, t, h, h)


def _shapes(device: str, dtype: str) -> Iterator[Case]:
    yield from _task_models()
    yield from _cells()
    yield from _variants()
    few = device == "cpu" and dtype != "float32"
    yield from _grid(**(CPU_LOW_PRECISION_GRID if few else GRIDS[device]))


def cases(device: str, threads: tuple[int, ...] = (1, 2), quick: bool = False) -> list[Case]:
    """Every case for a device ("cpu" or "cuda"), the task models first.

    Args:
        device: "cpu" or "cuda".
        threads: the thread counts a CPU case is run with; a CUDA case ignores them.
        quick: keep only the small cases in float32, for a run of a minute or two.
    """
    found = []
    for dtype in DTYPES[device]:
        for shape in _shapes(device, dtype):
            modes = (True,) if shape.recompute else (False, True)  # it is about backward alone
            for training, count in product(modes, threads if device == "cpu" else (None,)):
                found.append(
                    replace(shape, device=device, dtype=dtype, training=training, threads=count)
                )
    if quick:
        found = [c for c in found if c.dtype == "float32" and c.flops < QUICK_FLOPS]
    return found
