"""Builds fused_lstm with its CUDA sources compiled for the host: python build.py FOLDER.

FOLDER then holds a package fused_lstm that takes the CUDA path, csrc/cuda/device.cpp and
csrc/cuda/kernels.cu unmodified, for tensors on the CPU. With FOLDER first on PYTHONPATH the test
suite runs on it; kernels see memory in the order in which a GPU's threads would ask for it, one
after the other.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).resolve().parent


def build(folder: Path) -> None:
    """Puts the package into `folder`; compiles only what changed since the last time."""
    package, objects = folder / "fused_lstm", folder / "build"
    shutil.copytree(
        ROOT / "fused_lstm",
        package,
        ignore=shutil.ignore_patterns("_C.*", "__pycache__"),
        dirs_exist_ok=True,
    )
    objects.mkdir(parents=True, exist_ok=True)
    kernels = objects / "cuda_kernels.cpp"  # a .cu would go to nvcc
    if not kernels.exists():
        kernels.write_text('#include "cuda/kernels.cu"\n')
    sources = [
        *sorted(CSRC.glob("*.cpp")),
        *sorted(set((CSRC / "cpu").glob("*.cpp")) - {CSRC / "cpu" / "device.cpp"}),
        CSRC / "cuda" / "device.cpp",
        HERE / "route.cpp",
    ]
    library = cpp_extension.load(
        name="_C",
        sources=[str(path) for path in (*sources, kernels)],
        # The emulated headers come before torch's own.
        extra_cflags=["-O2", "-fopenmp", f"-I{HERE / 'include'}", f"-I{CSRC}"],
        extra_ldflags=["-fopenmp"],
        build_directory=str(objects),
        is_python_module=False,
        verbose=True,
    )
    shutil.copy2(library, package / "_C.so")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
