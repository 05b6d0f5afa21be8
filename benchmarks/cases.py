"""What is measured: every shape, dtype, mode and thread count. Plain data, no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import log2

# Batch, steps, hidden. On a CPU the 16-bit dtypes have a part of the grid, which takes long there.
GRIDS = {
    "cpu": ((1, 8, 32, 128), (1, 20, 100), (64, 128, 256, 512, 1024)),
    "cpu, 16 bits": ((1, 8, 32, 128), (1, 100), (64, 256, 1024)),
    "cuda": ((1, 8, 16, 64, 128), (32, 256, 1024), (64, 128, 256, 512, 768, 1024, 1536)),
}
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
PEAKS = {"float32": "FMA peak", "bfloat16": "bf16 peak", "int8": "int8 peak"}  # of a CPU
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
# Shapes that nothing is tuned to: batch, steps, input, hidden, layers, bidirectional. On a CPU.
ODD_SET = {
    "float32": (
        (1, 1, 48, 96, 1, False),
        (1, 37, 10, 64, 1, False),
        (1, 160, 80, 320, 1, False),
        (1, 90, 256, 512, 2, False),
        (4, 60, 24, 40, 1, True),
        (32, 20, 10, 64, 1, False),
        (32, 20, 10, 64, 1, True),
        (24, 75, 100, 200, 1, False),
        (20, 35, 200, 200, 2, False),
        (48, 80, 160, 384, 1, True),
        (96, 50, 300, 650, 1, False),
        (64, 30, 512, 1024, 1, False),
    ),
    "bfloat16": ((32, 64, 128, 256, 1, False),),
}
README_CASES = (  # kinds of call, won and lost; each machine has those of its device
    "packed-B32-T100-D128-H128-packed-float32-training-1t",
    "grid-B1-T1-D64-H64-float32-inference-1t",
    "grid-B1-T100-D128-H128-float32-training-1t",
    "grid-B32-T20-D64-H64-float32-inference-1t",
    "grid-B32-T100-D256-H256-float32-training-1t",
    "grid-B128-T100-D512-H512-float32-inference-1t",
    "packed-B32-T100-D512-H512-packed-bfloat16-training-cuda",
    "grid-B1-T256-D256-H256-bfloat16-inference-cuda",
    "grid-B16-T256-D512-H512-bfloat16-training-cuda",
    "grid-B128-T1024-D1024-H1024-bfloat16-training-cuda",
)
# Models in use: model, batch, steps, input, hidden, layers, bidirectional. The STAC-like ones have
# the sizes of STAC-ML's LSTM_A, LSTM_B and LSTM_C, a whole window and the step that moves it on;
# they are no audited STAC result. Kokoro's input size is a choice.
SERVED_MODELS = {
    "stac-like-a": (("layer", 1, 50, 100, 100, 2, False), ("layer", 1, 1, 100, 100, 2, False)),
    "stac-like-b": (("layer", 1, 100, 250, 200, 3, False), ("layer", 1, 1, 250, 200, 3, False)),
    "stac-like-c": (("layer", 1, 100, 500, 1000, 4, False), ("layer", 1, 1, 500, 1000, 4, False)),
    "silero": (("cell", 1, 1, 128, 128, 1, False),),
    "parakeet": (("layer", 1, 1, 640, 640, 2, False),),
    "rtneural": tuple(("layer", 1, 1, d, h, 1, False) for d, h in ((4, 4), (16, 16), (1, 24))),
    "kokoro": (("layer", 1, 100, 512, 256, 1, True),),
}
SERVING_README_CASES = (
    "serving-step-B1-T1-D64-H64-float32-inference-1t",
    "serving-silero-B1-T1-D128-H128-float32-inference-1t",
    "serving-step-B1-T1-D512-H512-float32-inference-1t",
    "serving-parakeet-B1-T1-D640-H640-L2-float32-inference-1t",
    "serving-sequence-B1-T100-D512-H512-float32-inference-1t",
    "serving-batch-B32-T20-D256-H256-float32-inference-1t",
)
# How the names begin of the cases that a GPU has first, by worth
HEADLINE = (
    "grid-B16-T1024-D768-H768-",
    "model-",
    "packed-B32-T100-D512-H512-",
    "bidirectional-B32-T100-D512-H512-",
    "two-layers-B32-T100-D128-H128-",
)
# How the names begin of the cases that are run for the table of regimes
IN_REGIMES = (
    "odd-set",
    "cold",
    "model-classifier-B32-T20-D10-H64-float32",
    "model-predictor-B32-T20-D10-H64-bi-float32",
    "model-seq2seq-B32-T20-D10-H64-float32",
    "packed-B8-T100-D128-H128-packed-float32",
    "packed-B32-T100-D128-H128-packed-float32",
    "odd-sizes-B32-T100-D650-H650-bfloat16",
    *(name.removesuffix("1t") for name in README_CASES),
)


@dataclass(frozen=True)
class Case:
    """One comparison: a model at a shape, in a dtype, on a device, with or without backward."""

    group: str
    model: str  # "layer", "cell", "classifier", "predictor" or "seq2seq"
    batch: int
    steps: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    packed: bool = False
    recompute: bool = False  # FusedLSTM's argument
    cold: bool = False  # nothing of it is in the caches when a call begins
    device: str = "cpu"
    dtype: str = "float32"
    training: bool = False
    threads: int | None = 1  # None where the host's threads do not matter

    @property
    def mode(self) -> str:
        """Forward without gradients, "inference", or forward and backward, "training"."""
        return "training" if self.training else "inference"

    @property
    def name(self) -> str:
        """What pytest's ``-k`` selects by, such as ``grid-B1-T20-D64-H64-float32-training-1t``."""
        sizes = f"B{self.batch}-T{self.steps}-D{self.input_size}-H{self.hidden_size}"
        words = [self.group, sizes] + [f"L{self.num_layers}"] * (self.num_layers > 1)
        words += ["bi"] * self.bidirectional + ["packed"] * self.packed
        words += ["recompute"] * self.recompute + ["cold"] * self.cold + [self.dtype, self.mode]
        return "-".join([*words, f"{self.threads}t" if self.threads else self.device])

    @property
    def lengths(self) -> list[int]:
        """Each sequence's steps; packed ones spread evenly from T down to T / 4."""
        if not self.packed:
            return [self.steps] * self.batch
        dropped, last = self.steps - max(1, self.steps // 4), max(1, self.batch - 1)
        return [self.steps - dropped * b // last for b in range(self.batch)]

    @property
    def flops(self) -> int:
        """Floating-point operations of the LSTM's GEMMs; nothing else is counted."""
        weights = (3 if self.training else 1) * sum(map(sum, self._weights))
        if self.training and self.model not in ("layer", "cell"):
            weights -= self._weights[0][0]  # a task model's input is data, which needs no gradient
        return 2 * sum(self.lengths) * weights * (1 + (self.model == "seq2seq"))  # two LSTMs

    @property
    def limit(self) -> str | None:
        """What limits the case on a CPU: "reading" of one sequence, the peak of its dtype, None."""
        if self.device != "cpu" or self.cold:
            return None
        return "reading" if self.batch == 1 else PEAKS[self.dtype]

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that a call reads at least: weight_hh at each step, weight_ih once."""
        read = sum(self.steps * weight_hh + weight_ih for weight_ih, weight_hh in self._weights)
        return read * (1 + self.training) * ITEM_BYTES[self.dtype]  # backward reads them again

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights read over and over: one weight_hh by steps, all by calls of one step."""
        of_steps, of_calls = 4 * self.hidden_size**2, sum(map(sum, self._weights))  # elements
        return (of_steps if self.steps > 1 else of_calls) * ITEM_BYTES[self.dtype]

    @property
    def in_onnx(self) -> bool:
        """Whether onnxruntime is measured as well: layers on a CPU, forward, in float32."""
        plain = (self.device, self.dtype, self.model) == ("cpu", "float32", "layer")
        return plain and not (self.packed or self.training)

    @property
    def _weights(self) -> list[tuple[int, int]]:
        """Elements of weight_ih and weight_hh of each layer, its directions together."""
        directions = 1 + self.bidirectional
        gates = 4 * self.hidden_size * directions
        inputs = [self.input_size] + [self.hidden_size * directions] * (self.num_layers - 1)
        return [(gates * features, gates * self.hidden_size) for features in inputs]


def _shapes(device: str, dtype: str) -> Iterator[Case]:
    grid = "cpu, 16 bits" if (device, dtype) == ("cpu", "bfloat16") else device
    if device == "cpu":
        yield from (Case("odd-set", "layer", *sizes) for sizes in ODD_SET[dtype])
    if (device, dtype) == ("cpu", "float32"):
        for features, hidden in ((48, 96), (64, 64)):
            yield Case("cold", "layer", 1, 1, features, hidden, cold=True)
    for model in ("classifier", "predictor", "seq2seq"):
        yield Case(f"model-{model}", model, 32, 20, 10, 64, bidirectional=model == "predictor")
    for batch in (1, 32):
        yield Case("cell", "cell", batch, 1, 64, 64)
    for batch, hidden in product((1, 32), (128, 512)):
        yield Case("bidirectional", "layer", batch, 100, hidden, hidden, bidirectional=True)
        yield Case("two-layers", "layer", batch, 100, hidden, hidden, num_layers=2)
        yield Case("recompute", "layer", batch, 100, hidden, hidden, recompute=True)
    for batch, hidden in product((8, 32, 128), (128, 512)):
        yield Case("packed", "layer", batch, 100, hidden, hidden, packed=True)
    for batch, hidden in product((1, 32), (100, 200, 650)):
        yield Case("odd-sizes", "layer", batch, 100, hidden, hidden)
    for batch, steps, hidden in product(*GRIDS[grid]):
        yield Case("grid", "layer", batch, steps, hidden, hidden)


def cases(device: str, threads: tuple[int, ...] = (1, 2), quick: bool = False) -> list[Case]:
    """Every case for "cpu", at each of the thread counts, or "cuda"; ``quick`` keeps the small."""
    found = [
        replace(shape, device=device, dtype=dtype, training=training, threads=count)
        for dtype in DTYPES[device]
        for shape in _shapes(device, dtype)
        for training in ((True,) if shape.recompute else (False,) if shape.cold else (False, True))
        for count in (threads if device == "cpu" else (None,))
    ]
    return [c for c in found if not quick or (c.dtype == "float32" and c.flops < 2e8)]


def serving_cases(threads: tuple[int, ...] = (1, 2)) -> list[Case]:
    """What is served on a CPU: steps, sequences and models on one thread, batches on each count.

    A case of one step goes on from the state that the step before has left.
    """
    found = [Case("serving-step", "layer", 1, 1, h, h) for h in (16, 32, 64, 128, 256, 512, 1024)]
    for steps, hidden in product((20, 100), (64, 128, 256, 512, 1024)):
        found.append(Case("serving-sequence", "layer", 1, steps, hidden, hidden))
    for name, shapes in SERVED_MODELS.items():
        found += [Case(f"serving-{name}", *shape) for shape in shapes]
    batches = [(b, 1, 256) for b in (8, 32)] + [(32, 100, 256)]
    batches += product((8, 32), (20,), (64, 256, 1024))
    for (batch, steps, hidden), count in product(batches, threads):
        found.append(Case("serving-batch", "layer", batch, steps, hidden, hidden, threads=count))
    return found


def headline(found: list[Case]) -> list[Case]:
    """Those of HEADLINE, in its order."""
    return [c for start in HEADLINE for c in found if c.name.startswith(start)]


def rest_by_worth(found: list[Case]) -> list[Case]:
    """The others: the nearer to the headline's B 16, T 1024, H 768, the earlier.

    Distances are of logarithms, so that a run that is cut short has the shapes around it.
    """

    def distance(c: Case) -> float:
        pairs = ((c.batch, 16), (c.steps, 1024), (c.hidden_size, 768))
        return sum(abs(log2(size / best)) for size, best in pairs)

    return sorted((c for c in found if not c.name.startswith(HEADLINE)), key=distance)
