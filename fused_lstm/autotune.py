"""Kernels chosen by measurement on a GPU: `fused_lstm.autotune`."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from fused_lstm import _C, _torch, ops
from fused_lstm.explain import KERNEL_DTYPES, Gpu, explain, gpu_of, use_kernel, uses_tensor_cores
from fused_lstm.lstm import FusedLSTM

REPEATS = 3
"""Of a call that is timed, after one that is not; the shortest counts."""


class Problem(NamedTuple):
    """What a choice is remembered for."""

    device: str
    """The GPU's name."""
    backward: bool
    length: int
    """A power of two: lengths from it up to its double are one problem."""
    batch: int
    packed: bool
    input: int
    hidden: int
    projection: int
    directions: int
    element_bytes: int
    tensor_cores: bool

    @property
    def for_table(self) -> tuple[list[int], bool, int, bool]:
        """As `_C.measured_kernel` takes it."""
        rows = self.length * self.batch - self.packed
        sizes = [self.length, self.batch, rows, self.input, self.hidden]
        sizes += [self.projection, self.directions]
        return sizes, self.backward, self.element_bytes, self.tensor_cores


class Choice(NamedTuple):
    """What was measured of a problem."""

    kernel: str
    """The fastest."""
    microseconds: dict[str, float]
    """Of a pass, by kernel."""


_lock = threading.RLock()
_hook: RemovableHandle | None = None
_path: Path | None = None
_choices: dict[Problem, Choice] = {}


class autotune:
    """Measures at the first call of a problem which kernel is the fastest; later ones run that.

    For GPU layers, as `torch.backends.cudnn.benchmark` is for convolutions: the plan's estimates
    decide unless this is on. A problem is a GPU, a pass (forward or backward), a precision, the
    sizes of a layer, the batch, the number of steps within a factor of two, and whether the
    sequence is packed. Calls `autotune(True)` and `autotune(False)` switch it; in a `with`
    statement it holds inside. What was measured is remembered when it is off again. `use_kernel`
    and FUSED_LSTM_KERNEL go before it.

    The first call of a problem takes some calls' time and memory more, and waits for the GPU.
    Nothing is measured under torch.compile, during the capture of a CUDA graph, in a transform of
    torch.func, or where the input is passed by keyword; what was measured before is used there too.

    Args:
        enabled: whether problems are measured.
        path: a JSON file. What it holds for GPUs of the same name is used without measuring, and
            it is written after each measurement. Not read and not written if None.

    Raises:
        ValueError: `path` is a file of something else.

    Example:
        >>> with fused_lstm.autotune(path="kernels.json"):
        ...     for x, y in batches:
        ...         train(model, x, y)
    """

    def __init__(self, enabled: bool = True, *, path: str | os.PathLike[str] | None = None) -> None:
        with _lock:
            self._before = (_hook is not None, _path)
            if path is not None and Path(path).exists():
                _load(Path(path))
            _switch(enabled, None if path is None else Path(path))

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        with _lock:
            _switch(*self._before)


def _switch(enabled: bool, path: Path | None) -> None:
    global _hook, _path
    if _hook is not None and not enabled:
        _hook.remove()
        _hook = None
    elif _hook is None and enabled:
        _hook = register_module_forward_pre_hook(_before_forward)
    _path = path


def _before_forward(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    if torch.compiler.is_compiling() or not isinstance(module, FusedLSTM) or not arguments:
        return
    x = arguments[0]
    packed = isinstance(x, PackedSequence)
    data = x.data if packed else x
    # A subclass, such as a fake tensor, may have no memory
    if type(data) not in (Tensor, nn.Parameter) or data.dim() not in ((2,) if packed else (2, 3)):
        return
    if not data.numel() or _torch.transforms_active(data) or _C.kernel_override() is not None:
        return
    place = _place(data)
    if place is None:
        return
    trains = torch.is_grad_enabled()
    with _lock, torch.inference_mode(False), torch.enable_grad():
        _measure(module, x, *place, trains)


def _place(x: Tensor) -> tuple[int, str, Gpu] | None:
    """The index, the name and the facts of the GPU on which a layer can be timed now, or None."""
    if not x.is_cuda or torch.cuda.is_current_stream_capturing():
        return None
    gpu = gpu_of(x.device)
    assert gpu is not None
    return x.device.index, torch.cuda.get_device_name(x.device), gpu


def _measure(
    module: FusedLSTM,
    x: Tensor | PackedSequence,
    index: int,
    name: str,
    gpu: Gpu,
    trains: bool,
) -> None:
    """Times what is not known of each layer and pass of a call."""
    data = x.data
    batch_sizes = x.batch_sizes if isinstance(x, PackedSequence) else None
    if batch_sizes is not None:
        length, batch = batch_sizes.numel(), int(batch_sizes[0])
    elif data.dim() == 2:
        length, batch = data.size(0), 1
    else:
        length, batch = data.shape[:2][:: -1 if module.batch_first else 1]
    weights = [w for w in module._flat_weights if isinstance(w, Tensor)]
    each = len(weights) // module.num_layers
    dtype = weights[0].dtype
    if torch.is_autocast_enabled(data.device.type) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(data.device.type)
    if dtype not in KERNEL_DTYPES:
        return
    directions = 2 if module.bidirectional else 1
    projection = module.proj_size or module.hidden_size
    for plan in explain(module, batch, length, device=gpu):
        width = directions * projection if plan.layer else module.input_size
        own = weights[plan.layer * each : (plan.layer + 1) * each]

        def forward(width: int = width, own: list[Tensor] = own) -> tuple[Tensor, list[Tensor]]:
            """The layer's output for zeros, and the leaves behind it."""
            new = partial(data.detach().new_zeros, dtype=dtype)
            rows = (length, batch) if batch_sizes is None else (data.size(0),)
            leaves = [new((*rows, width)), *(w.detach().to(dtype) for w in own)]
            x, *copies = (leaf.requires_grad_() for leaf in leaves)
            states = [new((directions, batch, size)) for size in (projection, module.hidden_size)]
            with torch.autocast(data.device.type, enabled=False):
                output = ops.layer(x, states[0], states[1], copies, batch_sizes=batch_sizes)[0]
            return output, [x, *copies]

        for backward in (False, True)[: 1 + trains]:
            problem = Problem(
                name,
                backward,
                1 << (length.bit_length() - 1),
                batch,
                batch_sizes is not None,
                width,
                module.hidden_size,
                projection,
                directions,
                dtype.itemsize,
                uses_tensor_cores(dtype),
            )
            if problem in _choices:
                continue
            one = plan.backward if backward else plan.forward
            kernels = [k for k, candidate in one.candidates.items() if candidate.obstacle is None]
            times = {}
            for kernel in kernels if len(kernels) > 1 else ():
                with use_kernel(kernel), suppress(RuntimeError):  # out of memory
                    call: Callable[[], object] = forward
                    if backward:
                        output, leaves = forward()
                        call = partial(
                            torch.autograd.grad, output, leaves, output.detach(), retain_graph=True
                        )
                    times[kernel] = _microseconds(call)
            best = min(times, key=times.__getitem__, default=one.kernel)
            _choices[problem] = Choice(best, times)
            _C.set_measured_kernel(index, problem.for_table, best)
            if _path is not None:
                _save(_path)


def _microseconds(call: Callable[[], object]) -> float:
    """Of a call on the current stream: the shortest of REPEATS, after one that is not timed."""
    call()
    found = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(1e3 * float(start.elapsed_time(end)))
    return min(found)


def _indices(name: str) -> list[int]:
    """The GPUs of that name."""
    count = torch.cuda.device_count()
    return [index for index in range(count) if torch.cuda.get_device_name(index) == name]


def _load(path: Path) -> None:
    try:
        entries = json.loads(path.read_text())["problems"]
        found = {
            Problem(**entry["problem"]): Choice(entry["kernel"], entry["microseconds"])
            for entry in entries
        }
        for problem, choice in found.items():
            for index in _indices(problem.device):
                _C.set_measured_kernel(index, problem.for_table, choice.kernel)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path is {str(path)!r}, must be a file of autotune: {error}") from None
    _choices.update(found)


def _save(path: Path) -> None:
    entries = [
        {"problem": problem._asdict(), **choice._asdict()} for problem, choice in _choices.items()
    ]
    lines = ",\n".join(map(json.dumps, entries))  # a line a problem
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_text(f'{{"problems": [\n{lines}\n]}}\n')
    unfinished.replace(path)
