"""Which kernel a layer runs, and how to make it run another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import starmap
from typing import Any, NamedTuple

import torch

from fused_lstm import _C
from fused_lstm.lstm import FusedLSTM

# Reads FUSED_LSTM_KERNEL: a name that is no kernel is an error at import, on a CPU too.
_C.kernel_override()


class Gpu(NamedTuple):
    """What the choice of a kernel depends on."""

    capability: int
    """90 for compute capability 9.0."""
    multiprocessors: int
    shared_memory: int
    """Bytes that one block of threads can have."""
    largest_cluster: int
    """Blocks, each with all of that; 0 where there are no clusters."""
    clusters: Sequence[int] | None = None
    """Clusters of 2, 4, 8 and 16 blocks that run at once; None: as many as the multiprocessors have
    room for."""
    refusals: Sequence[tuple[str, int, str]] = ()
    """What its driver has refused in this process: the kernel, the fewest blocks of a cluster or of
    a grid's launch, and the obstacle."""


GPUS = {
    "H200": Gpu(90, 132, 227 * 1024, 16),
    "H100": Gpu(90, 132, 227 * 1024, 16),
    "A100": Gpu(80, 108, 163 * 1024, 0),
    "L4": Gpu(89, 58, 99 * 1024, 0),
    "RTX 4090": Gpu(89, 128, 99 * 1024, 0),
}
"""GPUs that `explain` knows by name (NVIDIA's data sheets; the H100 is the SXM5 one)."""


@dataclass(frozen=True)
class Candidate:
    """A kernel of a GPU for one pass of a layer, and the best way to distribute the layer."""

    kernel: str
    obstacle: str | None
    """Why the kernel cannot run; None if it can."""
    microseconds: float
    """Of one time step, estimated: by this the plan compares kernels. No measurement."""
    slices: int
    """Parts of the batch, each with a block group of its own."""
    sequences: int
    """Of a slice."""
    blocks: int
    """Of a block group."""
    units: int
    """Hidden units of a block."""
    shared_memory: int
    """Bytes of a block."""

    def __str__(self) -> str:
        if self.obstacle:
            return f"{self.kernel}: cannot, {self.obstacle}"
        where = ""
        if self.blocks:
            where = (
                f"; {_count(self.slices, 'slice')} of {_count(self.sequences, 'sequence')}, each "
                f"on {_count(self.blocks, 'block')} of {_count(self.units, 'hidden unit')}"
            )
        return f"{self.kernel}: {self.microseconds:.1f} us a step, estimated{where}"


@dataclass(frozen=True)
class Stack:
    """Layers of one direction that one launch runs at once, each awaiting the one before."""

    layers: range
    candidate: Candidate
    """Its kernel, and how it distributes each of the layers; a step of all of them."""

    def __str__(self) -> str:
        first, last = self.layers[0], self.layers[-1]
        return f"layers {first} to {last} at once, each awaiting the one before: {self.candidate}"


@dataclass(frozen=True)
class PassPlan:
    """What a forward or a backward pass of one layer runs."""

    kernel: str
    """On a GPU "block", "cluster", "grid" or "stepwise", on a CPU "direct" or "panels";
    "reference" where no kernel has the dtype."""
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    """On a GPU, by name, for the layer by itself."""
    stack: Stack | None = None
    """On a GPU, the launch that the layer shares with others, without dropout between them and
    `return_states`; None: it has its own."""
    batch_slices: int = 1
    """On a CPU, parts of the batch that run on threads of their own."""
    unit_slices: int = 1
    """On a CPU, parts of the hidden units that do, with a barrier at each step."""
    input_gemm: str | None = None
    """On a CPU, the strategy of the GEMM with weight_ih: "dot", "packed_ahead", "packed_on_use",
    "transposed" or "unpacked" (csrc/plan/kernel.h)."""
    recurrent_gemm: str | None = None
    """Likewise with weight_hh."""
    microseconds: float | None = None
    """On a CPU, of the GEMMs with weight_hh and weight_ih over all steps (backward: for the hidden
    state and for the input), estimated: by this the plan compares strategies. No measurement."""

    def __str__(self) -> str:
        lines = [self.kernel]
        lines += [f"  {candidate}" for candidate in self.candidates.values()]
        if self.stack:
            lines.insert(1, f"  {self.stack}")
        if self.microseconds is not None:
            parts = ((self.batch_slices, "batch"), (self.unit_slices, "hidden units"))
            lines[0] += "".join(f", {n} slices of the {name}" for n, name in parts if n > 1)
            lines.append(
                f"  GEMM with weight_ih: {self.input_gemm}, weight_hh: {self.recurrent_gemm}"
            )
            lines[1] += f"; {self.microseconds:.1f} us, estimated"
        return "\n".join(lines)


@dataclass(frozen=True)
class LayerPlan:
    """What one layer runs."""

    layer: int
    forward: PassPlan
    backward: PassPlan

    def __str__(self) -> str:
        if self.forward.kernel == "reference":
            return f"layer {self.layer}: reference, in plain PyTorch: no kernel has its dtype"
        passes = (("forward", self.forward), ("backward", self.backward))
        return "\n".join(f"layer {self.layer} {name}: {plan}" for name, plan in passes)


class Plans(tuple[LayerPlan, ...]):
    """The plan of each layer of a module; printed, a paragraph for each layer and pass."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self))


KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def explain(
    module: FusedLSTM,
    batch: int,
    length: int,
    *,
    device: torch.device | str | Gpu | None = None,
    ragged: bool = False,
) -> Plans:
    """Which kernel each layer of `module` runs, and why not the others.

    Args:
        module: the layers.
        batch: sequences, B.
        length: time steps, T.
        device: "cpu", a CUDA device, or a GPU that need not be there: a name in `GPUS`, or a
            `Gpu`. Default: where the module's parameters are.
        ragged: of a call with lengths, resets or a packed sequence, whose steps take longer on a
            GPU.

    Returns:
        A tuple of a `LayerPlan` for each layer, whose `forward` and `backward` name the kernel
        and, on a GPU, all candidates with their obstacles and estimates. `print` shows it as text.

    Raises:
        ValueError: `batch` or `length` is not positive, or `device` is neither a CPU, nor a CUDA
            device, nor one of `GPUS`.

    Example:
        >>> plans = fused_lstm.explain(FusedLSTM(64, 512), batch=16, length=100, device="H100")
        >>> plans[0].forward.kernel
        'grid'
        >>> plans[0].forward.candidates["block"].obstacle
        'the recurrent weights do not fit into one block'
    """
    for name, value in (("batch", batch), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1")
    weight = next(module.parameters())
    where = weight.device if device is None else device
    gpu = gpu_of(where)
    index = _index(where) if gpu else None
    directions = 2 if module.bidirectional else 1
    projection = module.proj_size or module.hidden_size
    every = [
        {
            "length": length,
            "batch": batch,
            "input": module.input_size if layer == 0 else directions * projection,
            "hidden": module.hidden_size,
            "projection": projection,
            "directions": directions,
        }
        for layer in range(module.num_layers)
    ]
    if weight.dtype not in KERNEL_DTYPES:
        passes = [[PassPlan("reference")] * len(every)] * 2
    elif gpu is None:
        passes = [[_on_cpu(weight.dtype, sizes, b) for sizes in every] for b in (False, True)]
    else:
        stacked = directions == 1 and not module.proj_size
        on_gpu = partial(_on_gpu, gpu, index, weight.dtype, ragged=ragged)
        passes = [_of_layers(on_gpu, every, stacked, backward=b) for b in (False, True)]
    return Plans(starmap(LayerPlan, zip(range(len(every)), *passes, strict=True)))


@contextmanager
def use_kernel(name: str | None) -> Iterator[None]:
    """GPU layers inside run the kernel `name` where they can; `explain` says where not, and why.

    It holds for the whole process, for backward runs in threads of its own; so a backward pass is
    subject to the context in which it runs. The environment variable FUSED_LSTM_KERNEL does the
    same from the start.

    Args:
        name: "block", "cluster", "grid" or "stepwise"; None: the fastest by the plan's
            estimate.

    Raises:
        ValueError: `name` is none of these.
    """
    before = _C.kernel_override()
    _C.use_kernel(name)
    try:
        yield
    finally:
        _C.use_kernel(before)


def gpu_of(device: torch.device | str | Gpu) -> Gpu | None:
    """What a plan knows of a device; None for a CPU. Arguments and errors are `explain`'s."""
    if isinstance(device, Gpu):
        return device
    if isinstance(device, str) and device in GPUS:
        return GPUS[device]
    kinds = f"must be a CPU, a CUDA device or one of {', '.join(GPUS)}"
    try:
        device = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r}, {kinds}") from None
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        raise ValueError(f"device is {device}, {kinds}")
    return Gpu(*_C.gpu(torch.cuda.current_device() if device.index is None else device.index))


def uses_tensor_cores(dtype: torch.dtype) -> bool:
    """Whether a GPU multiplies in them, float32 as TF32."""
    if dtype == torch.float32:
        # Not allow_tf32, which raises once the settings of RNN and convolution differ.
        rnn: Any = torch.backends.cudnn.rnn
        return bool(rnn.fp32_precision == "tf32")
    return dtype != torch.float64


def _on_cpu(dtype: torch.dtype, sizes: dict[str, Any], backward: bool) -> PassPlan:
    bf16_operands = dtype == torch.bfloat16 and _C.machine()["bf16_gflops"] > 0
    plan = _C.cpu_plan(
        threads=torch.get_num_threads(),
        concurrent_threads=_C.build_info()["openmp"],
        backward=backward,
        element_bytes=dtype.itemsize,
        operand_bytes=2 if bf16_operands else max(4, dtype.itemsize),
        **sizes,
    )
    names = ("kernel", "batch_slices", "unit_slices", "input_gemm", "recurrent_gemm")
    return PassPlan(**{name: plan[name] for name in names}, microseconds=plan["microseconds"])


def _index(device: torch.device | str | Gpu) -> int | None:
    """Of a CUDA device; None of a GPU that need not be there."""
    if isinstance(device, Gpu) or device in GPUS:
        return None
    device = torch.device(device)
    return torch.cuda.current_device() if device.index is None else device.index


def _of_layers(
    on_gpu: Callable[..., tuple[PassPlan, int]],
    every: list[dict[str, int]],
    stacked: bool,
    *,
    backward: bool,
) -> list[PassPlan]:
    """A pass of each layer: forward from the first one on, backward from the last."""
    order = range(len(every))
    left = list(reversed(order)) if backward else list(order)
    plans: dict[int, PassPlan] = {}
    while left:
        plan, count = on_gpu(every[left[0]], backward, layers=len(left) if stacked else 1)
        at_once, left = left[:count], left[count:]
        for layer in at_once:
            alone, _ = on_gpu(every[layer], backward, layers=1)
            plans[layer] = alone
            if plan.stack:
                shared = replace(plan.stack, layers=range(min(at_once), max(at_once) + 1))
                plans[layer] = replace(alone, kernel=plan.kernel, stack=shared)
    return [plans[layer] for layer in order]


def _on_gpu(
    gpu: Gpu,
    index: int | None,
    dtype: torch.dtype,
    sizes: dict[str, int],
    backward: bool,
    ragged: bool,
    layers: int,
) -> tuple[PassPlan, int]:
    """Of the first of so many layers, and how many of them go at once."""
    override = _C.kernel_override()
    if override is None and index is not None:  # what autotune has found
        rows = sizes["length"] * sizes["batch"]
        names = ("input", "hidden", "projection", "directions")
        numbers = [sizes["length"], sizes["batch"], rows, *(sizes[name] for name in names)]
        problem = (numbers, backward, dtype.itemsize, uses_tensor_cores(dtype))
        override = _C.measured_kernel(index, problem)
    plan = _C.gpu_plan(
        gpu=tuple(gpu),
        backward=backward,
        element_bytes=dtype.itemsize,
        tensor_cores=uses_tensor_cores(dtype),
        ragged=ragged,
        kernel_override=override,
        layers=layers,
        **sizes,
    )
    candidates = (Candidate(**candidate) for candidate in plan["candidates"])
    found, count = plan["stack"], plan["layers"]
    stack = Stack(range(count), Candidate(**found)) if found else None
    return PassPlan(plan["kernel"], {one.kernel: one for one in candidates}, stack), count


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
