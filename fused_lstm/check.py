"""`python -m fused_lstm check`: whether every kernel computes the right thing, and how fast."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

import fused_lstm
from fused_lstm import _C, FusedLSTM, reference
from fused_lstm.explain import Gpu, explain, gpu_of, use_kernel
from fused_lstm.lstm import run

UNIT_ROUNDOFF = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "tf32": 2.0**-11,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}
TOLERANCE = 16
"""Unit roundoffs that a result may be away from the reference, by the relative norm. Rounding takes
it some 3 away in so few steps, a wrong index or a missing barrier thousands (16 bits: dozens)."""
SECONDS = 0.1
"""Of calls to time, for a kernel, a dtype, a shape and a pass."""


class Shape(NamedTuple):
    """Sizes of a layer and of its calls."""

    batch: int
    length: int
    """Of calls that are timed."""
    hidden: int
    checked_length: int = 9
    """Of calls that are checked: the reference takes its time for a step."""
    input: int = 40
    layers: int = 1
    """Of one direction, at once where the kernel takes them so."""


class Times(NamedTuple):
    """Microseconds of a step."""

    forward: float
    """Without gradients."""
    training: float
    """Forward and backward."""


SHAPES = {
    "cpu": (Shape(1, 1, 64, 1), Shape(1, 20, 64, 20), Shape(32, 20, 128, 20)),
    "cuda": (Shape(16, 512, 64), Shape(16, 512, 512), Shape(16, 512, 256, layers=2)),
}


@dataclass(frozen=True)
class Row:
    """What was found of one kernel in one precision at one shape."""

    precision: str
    shape: Shape
    kernel: str
    chosen: bool
    """By the plan, for a forward pass of `shape.length` steps."""
    obstacle: str | None = None
    """Why it cannot run; None if it can."""
    fault: str | None = None
    """What is wrong; None if nothing is."""
    ours: Times | None = None
    peer: Times | None = None
    """nn.LSTM's, where it runs."""

    def __str__(self) -> str:
        verdict = "WRONG" if self.fault else "-" if self.obstacle else "right"
        B, T, H, layers = (getattr(self.shape, n) for n in ("batch", "length", "hidden", "layers"))
        line = f"{self.precision:9}{B:4}{T:5}{H:5}{layers:3}  "
        line += f"{self.kernel + '*' * self.chosen:10}{verdict:7}"
        for pass_ in Times._fields if self.ours else ():
            us = getattr(self.ours, pass_)
            line += f"{us:9.2f}"
            line += f"{getattr(self.peer, pass_) / us:7.2f}x" if self.peer else f"{'-':>8}"
        return f"{line}  {self.fault or self.obstacle or ''}".rstrip()


HEADER = (
    f"{'B':>13}{'T':>5}{'H':>5}{'L':>3}  {'kernel':17}{'forward us, ratio':>17}{'training':>17}"
)


@contextmanager
def as_precision(precision: str) -> Iterator[torch.dtype]:
    """The dtype; inside, float32 means TF32 or not."""
    rnn: Any = torch.backends.cudnn.rnn
    before = rnn.fp32_precision
    rnn.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield torch.float32 if precision == "tf32" else getattr(torch, precision)
    finally:
        rnn.fp32_precision = before


def results(
    module: nn.RNNBase,
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    call: Callable[..., Any],
    **options: Any,
) -> dict[str, Tensor]:
    """All results of a call and the gradients of everything that went in, by name.

    Incoming gradients are those of the sum of squares.
    """
    leaves = {"input": x, "h_0": hx[0], "c_0": hx[1]}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    leaves |= dict(module.named_parameters())
    output, (h_n, c_n) = call(leaves["input"], (leaves["h_0"], leaves["c_0"]), **options)
    found = {"output": output, "h_n": h_n, "c_n": c_n}
    incoming = [2 * tensor.detach() for tensor in found.values()]
    gradients = torch.autograd.grad(list(found.values()), list(leaves.values()), incoming)
    found |= {f"the gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {name: tensor.detach() for name, tensor in found.items()}


def fault_of(precision: str, dtype: torch.dtype, shape: Shape, device: str) -> str | None:
    """What differs from the reference in float64: padded, then two directions, or several layers,
    with `lengths` and `reset`. None if nothing does."""
    T, B, D, H = shape.checked_length, shape.batch, shape.input, shape.hidden
    generator = torch.Generator().manual_seed(0)
    limit = TOLERANCE * UNIT_ROUNDOFF[precision]
    for ragged in (False, True):
        layers, two = shape.layers, ragged and shape.layers == 1
        module = FusedLSTM(D, H, layers, bidirectional=two, device=device, dtype=dtype)
        wide = FusedLSTM(D, H, layers, bidirectional=two, device=device, dtype=torch.float64)
        states = layers * (1 + two)
        for parameter in module.parameters():
            values = (2 * torch.rand(parameter.shape, generator=generator) - 1) * H**-0.5
            parameter.data.copy_(values)
        wide.load_state_dict(module.state_dict())

        def random(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(sizes, generator=generator).to(device, dtype)

        x = random(T, B, D)
        hx = (random(states, B, H), random(states, B, H))
        options = {}
        if ragged:
            lengths = torch.randint(1, T + 1, (B,), generator=generator)
            reset = torch.rand(T, B, generator=generator) < 0.2
            options = {"lengths": lengths.to(device), "reset": reset.to(device)}
        found = results(module, x, hx, module, **options)
        wide_hx = (hx[0].double(), hx[1].double())
        expected = results(
            wide,
            x.double(),
            wide_hx,
            lambda *call, wide=wide, **options: run(wide, reference.layer, *call, **options),
            **options,
        )
        for name, truth in expected.items():
            error = float((found[name].double() - truth).norm())
            if not error <= limit * float(truth.norm()):  # NaN, too
                error /= float(truth.norm()) or 1.0
                many = f"{states} {'directions' if two else 'layers'}"
                where = f", {many} with lengths and resets" if ragged else ""
                return f"{name} is {error:.1e} away, must be within {limit:.1e}{where}"
    return None


def times(module: nn.RNNBase, shape: Shape) -> Times:
    parameters = list(module.parameters())
    x = torch.randn(shape.length, shape.batch, shape.input).to(parameters[0])

    def forward() -> None:
        with torch.no_grad():
            module(x)

    def training() -> None:
        output = module(x)[0]
        torch.autograd.grad(output, parameters, output.detach())

    threads = torch.get_num_threads()  # else Timer takes one
    timers = [
        Timer("call()", globals={"call": c}, num_threads=threads) for c in (forward, training)
    ]
    medians = [timer.blocked_autorange(min_run_time=SECONDS).median for timer in timers]
    return Times(*(1e6 * median / shape.length for median in medians))


def rows(device: str, gpu: Gpu | None, shapes: Iterable[Shape], timed: bool) -> Iterator[Row]:
    """A row for each precision, shape and kernel.

    Args:
        device: where the tensors are.
        gpu: the GPU whose kernels run there; None for a CPU.
        shapes: what is checked, and timed if `timed`.
    """
    for precision in UNIT_ROUNDOFF:
        if precision == "tf32" and gpu is None:
            continue
        for shape in shapes:
            with as_precision(precision) as dtype:
                yield from _rows(precision, dtype, device, gpu, shape, timed)


def _rows(
    precision: str, dtype: torch.dtype, device: str, gpu: Gpu | None, shape: Shape, timed: bool
) -> Iterator[Row]:
    sizes = (shape.input, shape.hidden, shape.layers)
    module = FusedLSTM(*sizes, device=device, dtype=dtype)
    where = device if gpu is None else gpu
    plan = explain(module, shape.batch, shape.length, device=where)[0]
    peer = None
    if timed:
        with suppress(RuntimeError):  # a dtype that it lacks
            peer = times(nn.LSTM(*sizes, device=device, dtype=dtype), shape)
    for kernel in plan.forward.candidates or (plan.forward.kernel,):
        chosen = kernel == plan.forward.kernel
        passes = [one.candidates[kernel] for one in (plan.forward, plan.backward) if gpu]
        obstacle = next((one.obstacle for one in passes if one.obstacle), None)
        fault, ours = None, None
        if not obstacle:
            with use_kernel(kernel) if gpu else nullcontext():
                try:
                    fault = fault_of(precision, dtype, shape, device)
                    if timed and not fault:
                        ours = times(module, shape)
                except RuntimeError as error:
                    fault = str(error).splitlines()[0]
            if gpu and torch.device(device).type == "cuda":  # the driver may have refused it
                again = explain(module, shape.batch, shape.length, device=device)[0]
                obstacle = again.forward.candidates[kernel].obstacle
        yield Row(precision, shape, kernel, chosen, obstacle, fault, ours, peer)


def main(argv: list[str]) -> int:
    """Prints a line for each kernel as it is found.

    Returns:
        1 if a kernel computes something wrong, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m fused_lstm check", description=__doc__)
    cuda = torch.cuda.is_available() and _C.build_info()["cuda"]
    device = "cuda" if cuda else "cpu"
    parser.add_argument("--device", default=device, help="cpu, or a CUDA device (%(default)s)")
    parser.add_argument("--no-times", action="store_true", help="check only")
    options = parser.parse_args(argv)
    try:
        kind = torch.device(options.device).type
        gpu = gpu_of(options.device)
    except (RuntimeError, ValueError) as error:
        parser.error(f"argument --device: {str(error).splitlines()[0]}")
    name = torch.cuda.get_device_name(options.device) if gpu else _C.cpu_instruction_set()
    print(f"fused_lstm {fused_lstm.__version__}, torch {torch.__version__}, {name}")
    print("Results and gradients against the reference in float64; * the plan's choice; a ratio is")
    print("nn.LSTM's time over ours. Times are of a step, training is forward + backward.")
    print(HEADER, flush=True)
    wrong = 0
    for row in rows(options.device, gpu, SHAPES[kind], timed=not options.no_times):
        wrong += row.fault is not None
        print(row, flush=True)
    print(f"{wrong} wrong" if wrong else "All right.")
    return int(wrong > 0)
