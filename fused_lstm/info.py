"""`python -m fused_lstm info`: the build, the devices, and the kernel that a shape will take."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

import fused_lstm
from fused_lstm import _C


def main(argv: list[str]) -> int:
    """Prints the facts that a bug report needs."""
    parser = argparse.ArgumentParser(prog="python -m fused_lstm info", description=__doc__)
    parser.parse_args(argv)
    build = _C.build_info()
    rows = [
        ("fused_lstm", f"{fused_lstm.__version__} in {Path(fused_lstm.__file__).parent}"),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, built against {build['torch_version']}"),
        ("compiler", f"{build['compiler']}, C++{build['cxx_standard']}"),
        ("CPU kernels", f"{_C.cpu_instruction_set()}, {torch.get_num_threads()} threads"),
        ("OpenMP", "yes" if build["openmp"] else "no: kernels run on one thread"),
        ("CUDA kernels", ", ".join(build["cuda_architectures"]) if build["cuda"] else "not built"),
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        rows.append(
            (f"cuda:{index}", f"{device.name}, compute capability {device.major}.{device.minor}")
        )
    for label, value in rows:
        print(f"{label:14}{value}")
    print("\nKernel for      B    T     H")
    for batch, length, hidden in [(1, 1, 64), (1, 100, 512), (32, 20, 64), (128, 500, 1024)]:
        shape = {
            "length": length,
            "batch": batch,
            "input": hidden,
            "hidden": hidden,
            "projection": hidden,
        }
        for cuda in [False, True] if build["cuda"] else [False]:
            threads = torch.get_num_threads()
            plan = _C.plan(cuda=cuda, threads=threads, team=True, directions=1, **shape)
            where = "CUDA" if cuda else "CPU"
            shared = "".join(
                f", {plan[f'{what}_slices']} slices of the {name}"
                for what, name in (("batch", "batch"), ("unit", "hidden units"))
                if plan[f"{what}_slices"] > 1
            )
            print(f"{where:12}{batch:5}{length:5}{hidden:6}   {plan['kernel']}{shared}")
    return 0
