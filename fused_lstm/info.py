"""`python -m fused_lstm info`: the build, the devices, and the kernel that a shape will run."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

import fused_lstm
from fused_lstm import _C

# What _C.machine() has twice; the other figures are as FUSED_LSTM_MACHINE takes them.
LISTS = ("cache_bytes", "read_gbps")


def main(argv: list[str]) -> int:
    """Prints the facts that a bug report needs."""
    parser = argparse.ArgumentParser(prog="python -m fused_lstm info", description=__doc__)
    parser.parse_args(argv)
    build = _C.build_info()
    threads = torch.get_num_threads()
    rows = [
        ("fused_lstm", f"{fused_lstm.__version__} in {Path(fused_lstm.__file__).parent}"),
        ("Python", platform.python_version()),
        ("torch", f"{torch.__version__}, built against {build['torch_version']}"),
        ("compiler", f"{build['compiler']}, C++{build['cxx_standard']}"),
        ("CPU kernels", f"{_C.cpu_instruction_set()}, {threads} thread{'s' * (threads != 1)}"),
        ("machine", ", ".join(f"{k}={v:.9g}" for k, v in _C.machine().items() if k not in LISTS)),
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
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for batch, length, hidden in [(1, 1, 64), (1, 100, 512), (32, 20, 64), (128, 500, 1024)]:
        layer = fused_lstm.FusedLSTM(hidden, hidden, device="meta")
        for where in devices if build["cuda"] else devices[:1]:
            print(f"\n{where}, B {batch}, T {length}, H {hidden}")
            print(fused_lstm.explain(layer, batch, length, device=where))
    return 0
