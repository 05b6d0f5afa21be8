"""What one time step costs with each CUDA kernel: python -m benchmarks.steps

A step is the difference of two lengths' times over that of the lengths, so that the other costs of
a call cancel. H 64 and 768 come first; H 32 is nearly only the exchange between blocks. Beside each
step stands the plan's estimate, to be corrected by it (csrc/plan/plan_cuda.cpp).
"both" is forward and backward together.
"""

import argparse
from itertools import product

import torch

from benchmarks.timing import Call, alternate
from fused_lstm import FusedLSTM, explain, use_kernel
from fused_lstm.explain import Gpu

KERNELS = ("block", "cluster", "grid", "stepwise")
LENGTHS = (256, 1024)
EMULATED = Gpu(90, 12, 227 * 1024, 8)  # tests/emulator/include/cuda_runtime_api.h


def estimated(
    module: FusedLSTM, batch: int, kernel: str, training: bool, device: str | Gpu | None = None
) -> float | None:
    """The plan's microseconds of a step; None where `kernel` cannot run the layer."""
    (plan,) = explain(module, batch, LENGTHS[1], device=device)
    passes = (plan.forward, plan.backward)[: 1 + training]
    candidates = [one.candidates[kernel] for one in passes]
    runs = all(candidate.obstacle is None for candidate in candidates)
    return sum(candidate.microseconds for candidate in candidates) if runs else None


def measured(
    module: FusedLSTM, batch: int, training: bool, lengths: tuple[int, int] = LENGTHS
) -> float:
    """Microseconds of a step."""
    parameters = list(module.parameters())

    def call(length: int) -> Call:
        x = torch.randn(length, batch, module.input_size).to(parameters[0])  # [T, B, D]
        grad_output = torch.ones(length, batch, module.hidden_size).to(x)  # [T, B, H]
        if training:
            return lambda: torch.autograd.grad(module(x)[0], parameters, grad_output)
        return torch.no_grad()(lambda: module(x))

    calls = {str(length): call(length) for length in lengths}
    short, long = (
        found.median for found in alternate(calls, parameters[0].device.type, budget=0.3).values()
    )
    return 1e6 * (long - short) / (lengths[1] - lengths[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--hidden", type=int, nargs="+", default=[64, 768, 32, 128, 256, 512, 1024])
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rehearse", action="store_true", help="tiny, on an emulated GPU")
    options = parser.parse_args()
    if options.rehearse:
        options.batch, options.hidden = [3], [20]
        device, gpu, lengths = "cpu", EMULATED, (2, 4)
    else:
        device, gpu, lengths = "cuda", None, LENGTHS
        print(torch.cuda.get_device_name())
    axes = (options.batch, options.hidden, options.dtype, (False, True), KERNELS)
    for batch, hidden, dtype, training, kernel in product(*axes):
        module = FusedLSTM(hidden, hidden, device=device, dtype=getattr(torch, dtype))
        estimate = estimated(module, batch, kernel, training, gpu)
        if estimate is not None:
            with use_kernel(kernel):
                step = measured(module, batch, training, lengths)
            what = f"{dtype:9} B {batch:<4} H {hidden:<5} {'both' if training else 'forward':8}"
            print(f"{what}{kernel:9} {step:7.2f} us a step, estimated {estimate:5.1f}", flush=True)


if __name__ == "__main__":
    main()
