"""Which kernel a layer takes, and how to make it take another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


GPUS = {
    "H200": Gpu(90, 132, 227 * 1024, 16),
    "H100": Gpu(90, 132, 227 * 1024, 16),
    "A100": Gpu(80, 108, 163 * 1024, 0),
    "L4": Gpu(89, 58, 99 * 1024, 0),
    "RTX 4090": Gpu(89, 128, 99 * 1024, 0),
}
"""GPUs that `explain` knows by name (NVIDIA's data sheets; the H100 is the SXM5 one)."""


KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def explain(
    module: FusedLSTM, batch: int, length: int, *, device: torch.device | str | Gpu | None = None
) -> str:
    """Which kernel each layer of `module` takes, and why not the others.

    Args:
        module: the layers.
        batch: sequences, B.
        length: time steps, T.
        device: "cpu", a CUDA device, or a GPU that need not be there: a name in `GPUS`, or a
            `Gpu`. Default: where the module's parameters lie.

    Returns:
        A text, one paragraph for each layer and pass. Times are estimates for one time step, in
        microseconds, by which the plan compares kernels; they are no measurements.

    Raises:
        ValueError: `batch` or `length` is not positive, or `device` is neither a CPU, nor a CUDA
            device, nor one of `GPUS`.

    Example:
        >>> print(fused_lstm.explain(FusedLSTM(64, 512), batch=16, length=100, device="H100"))
    """
    for name, value in (("batch", batch), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1")
    weight = next(module.parameters())
    gpu = _gpu(weight.device if device is None else device)
    paragraphs = []
    for layer in range(module.num_layers):
        if weight.dtype not in KERNEL_DTYPES:
            paragraphs.append(
                f"layer {layer}: reference, in plain PyTorch: no kernel for {weight.dtype}"
            )
            continue
        directions = 2 if module.bidirectional else 1
        projection = module.proj_size or module.hidden_size
        sizes = {
            "length": length,
            "batch": batch,
            "input": module.input_size if layer == 0 else directions * projection,
            "hidden": module.hidden_size,
            "projection": projection,
            "directions": directions,
        }
        if gpu is None:
            paragraphs.append(f"layer {layer}: {_on_cpu(sizes)}")
            continue
        for backward in (False, True):
            choice = _C.gpu_plan(
                gpu=tuple(gpu),
                backward=backward,
                element_bytes=weight.element_size(),
                tensor_cores=_tensor_cores(weight.dtype),
                kernel_override=_C.kernel_override(),
                **sizes,
            )
            paragraphs.append(
                f"layer {layer} {'backward' if backward else 'forward'}: {_on_gpu(choice)}"
            )
    return "\n".join(paragraphs)


@contextmanager
def use_kernel(name: str | None) -> Iterator[None]:
    """GPU layers inside take the kernel `name` where they can; `explain` says where not, and why.

    It holds for the whole process, for backward runs in threads of its own; so a backward pass is
    subject to the context in which it runs. The environment variable FUSED_LSTM_KERNEL does the
    same from the start.

    Args:
        name: "block", "cluster", "grid" or "stepwise"; None: the fastest by the plan's estimate.

    Raises:
        ValueError: `name` is none of these.
    """
    before = _C.kernel_override()
    _C.use_kernel(name)
    try:
        yield
    finally:
        _C.use_kernel(before)


def _gpu(device: torch.device | str | Gpu) -> Gpu | None:
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


def _tensor_cores(dtype: torch.dtype) -> bool:
    if dtype == torch.float32:
        # Not allow_tf32, which raises once the settings of RNN and convolution differ.
        rnn: Any = torch.backends.cudnn.rnn
        return bool(rnn.fp32_precision == "tf32")
    return dtype != torch.float64


def _on_cpu(sizes: dict[str, int]) -> str:
    plan = _C.cpu_plan(
        threads=torch.get_num_threads(), concurrent_threads=_C.build_info()["openmp"], **sizes
    )
    shared = [
        f"{plan[f'{what}_slices']} slices of the {name}"
        for what, name in (("batch", "batch"), ("unit", "hidden units"))
        if plan[f"{what}_slices"] > 1
    ]
    return ", ".join([plan["kernel"], *shared])


def _on_gpu(plan: dict[str, Any]) -> str:
    lines = []
    for choice in plan["choices"]:
        kernel = choice["kernel"]
        if choice["obstacle"]:
            lines.append(f"  {kernel}: cannot, {choice['obstacle']}")
            continue
        where = ""
        if kernel != "stepwise":
            where = (
                f"; {_count(choice['slices'], 'slice')} of "
                f"{_count(choice['sequences'], 'sequence')}, each on "
                f"{_count(choice['blocks'], 'block')} of {_count(choice['units'], 'hidden unit')}"
            )
        lines.append(f"  {kernel}: {choice['microseconds']:.1f} us a step, estimated{where}")
    return "\n".join([plan["kernel"], *lines])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
