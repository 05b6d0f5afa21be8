"""Which kernel a layer runs, and how to make it run another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
class PassPlan:
    """What a forward or a backward pass of one layer runs."""

    kernel: str
    """On a GPU "block", "cluster", "grid" or "stepwise", on a CPU "direct" or "panels";
    "reference" where no kernel has the dtype."""
    candidates: Mapping[str, Candidate] = field(default_factory=dict)
    """On a GPU, by name."""
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
    plans = []
    for layer in range(module.num_layers):
        sizes = {
            "length": length,
            "batch": batch,
            "input": module.input_size if layer == 0 else directions * projection,
            "hidden": module.hidden_size,
            "projection": projection,
            "directions": directions,
        }
        if weight.dtype not in KERNEL_DTYPES:
            forward = backward = PassPlan("reference")
        elif gpu is None:
            forward, backward = (_on_cpu(weight.dtype, sizes, b) for b in (False, True))
        else:
            forward, backward = (
                _on_gpu(gpu, index, weight.dtype, sizes, b, ragged) for b in (False, True)
            )
        plans.append(LayerPlan(layer, forward, backward))
    return Plans(plans)


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


def _on_gpu(
    gpu: Gpu,
    index: int | None,
    dtype: torch.dtype,
    sizes: dict[str, int],
    backward: bool,
    ragged: bool,
) -> PassPlan:
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
        **sizes,
    )
    candidates = (Candidate(**candidate) for candidate in plan["candidates"])
    return PassPlan(plan["kernel"], {one.kernel: one for one in candidates})


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
