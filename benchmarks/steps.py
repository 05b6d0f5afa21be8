"""What one time step costs with each CUDA kernel: python -m benchmarks.steps

A step is the difference between two lengths, divided by their difference: the launch, the weights'
way into the chip and what else a call costs once drop out. H 32 is nearly nothing but the exchange
between blocks: the floor of its kernel. Beside each step stands the plan's estimate of it, which
these figures are to correct (csrc/plan_gpu.cpp). "both" is forward and backward together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import torch

from benchmarks.timing import Contest
from fused_lstm import FusedLSTM, explain, use_kernel

KERNELS = ("block", "cluster", "grid", "streamed")
LENGTHS = (256, 1024)


def estimated(
    module: FusedLSTM, batch: int, kernel: str, training: bool, device: str | None = None
) -> float | None:
    """Microseconds of a step as the plan sees it; None where `kernel` cannot take the layer."""
    total = 0.0
    for line in explain(module, batch, LENGTHS[1], device=device).splitlines():
        name, _, said = line.strip().partition(": ")
        if name == kernel:
            if said.startswith("cannot"):
                return None
            total += float(said.split()[0])
            if not training:
                break
    return total


def measured(module: FusedLSTM, batch: int, training: bool, budget: float) -> float:
    """Microseconds of a step."""

    def call(length: int) -> Callable[[], object]:
        weight = next(module.parameters())
        x = torch.randn(length, batch, module.input_size, device=weight.device, dtype=weight.dtype)
        gradient = torch.ones(length, batch, module.hidden_size).to(weight)

        def forward() -> None:
            with torch.no_grad():
                module(x)

        def both() -> None:
            torch.autograd.grad(module(x)[0], list(module.parameters()), gradient)

        return both if training else forward

    contest = Contest({str(length): call(length) for length in LENGTHS}, "cuda", budget)
    contest.run()
    short, long = (contest.spreads[str(length)].median for length in LENGTHS)
    return (long - short) / (LENGTHS[1] - LENGTHS[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 64, 128, 256, 512, 768, 1024])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    parser.add_argument("--budget", type=float, default=0.3, help="seconds a figure")
    options = parser.parse_args()
    print(torch.cuda.get_device_name())
    for dtype, batch, hidden in product(options.dtype, options.batch, options.hidden):
        module = FusedLSTM(hidden, hidden, device="cuda", dtype=getattr(torch, dtype))
        for training, kernel in product((False, True), KERNELS):
            estimate = estimated(module, batch, kernel, training)
            if estimate is None:
                continue
            with use_kernel(kernel):
                step = measured(module, batch, training, options.budget)
            print(
                f"{dtype:9} B {batch:<4} H {hidden:<5} {'both' if training else 'forward':8}"
                f"{kernel:9} {step:7.2f} us a step, estimated {estimate:5.1f}"
            )


if __name__ == "__main__":
    main()
