"""What one time step costs with each CUDA kernel: python -m benchmarks.steps

A step is the difference of two lengths' times over that of the lengths, so that the other costs of
a call cancel. H 32 is nearly only the exchange between blocks. Beside each step stands the plan's
estimate, to be corrected by it (csrc/plan/plan_cuda.cpp). "both" is forward and backward together.
"""

import argparse
from itertools import product

import torch

from benchmarks.timing import Call, alternate
from fused_lstm import FusedLSTM, explain, use_kernel

KERNELS = ("block", "cluster", "grid", "stepwise")
LENGTHS = (256, 1024)


def estimated(
    module: FusedLSTM, batch: int, kernel: str, training: bool, device: str | None = None
) -> float | None:
    """The plan's microseconds of a step; None where `kernel` cannot run the layer."""
    (plan,) = explain(module, batch, LENGTHS[1], device=device)
    passes = (plan.forward, plan.backward)[: 1 + training]
    candidates = [one.candidates[kernel] for one in passes]
    runs = all(candidate.obstacle is None for candidate in candidates)
    return sum(candidate.microseconds for candidate in candidates) if runs else None


def measured(module: FusedLSTM, batch: int, training: bool) -> float:
    """Microseconds of a step."""
    parameters = list(module.parameters())

    def call(length: int) -> Call:
        x = torch.randn(length, batch, module.input_size).to(parameters[0])  # [T, B, D]
        grad_output = torch.ones(length, batch, module.hidden_size).to(x)  # [T, B, H]
        if training:
            return lambda: torch.autograd.grad(module(x)[0], parameters, grad_output)
        return torch.no_grad()(lambda: module(x))

    calls = {str(length): call(length) for length in LENGTHS}
    short, long = (found.median for found in alternate(calls, "cuda", budget=0.3).values())
    return 1e6 * (long - short) / (LENGTHS[1] - LENGTHS[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps")
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 64, 128, 256, 512, 768, 1024])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"])
    options = parser.parse_args()
    print(torch.cuda.get_device_name())
    axes = (options.dtype, options.batch, options.hidden, (False, True), KERNELS)
    for dtype, batch, hidden, training, kernel in product(*axes):
        module = FusedLSTM(hidden, hidden, device="cuda", dtype=getattr(torch, dtype))
        estimate = estimated(module, batch, kernel, training)
        if estimate is not None:
            with use_kernel(kernel):
                step = measured(module, batch, training)
            what = f"{dtype:9} B {batch:<4} H {hidden:<5} {'both' if training else 'forward':8}"
            print(f"{what}{kernel:9} {step:7.2f} us a step, estimated {estimate:5.1f}")


if __name__ == "__main__":
    main()
