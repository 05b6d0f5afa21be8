"""Builds fused_lstm with its CUDA sources compiled for the host: python build.py FOLDER.

FOLDER then holds a package fused_lstm that runs the CUDA path, csrc/cuda unmodified, for tensors
on the CPU. With FOLDER first on PYTHONPATH the test suite runs on it. machine.cpp says how kernels
run.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from unittest import mock

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
HERE = Path(__file__).resolve().parent


def package(folder: Path, sources: list[Path], cflags: list[str], ldflags: list[str]) -> None:
    """Puts fused_lstm, made of other sources, into `folder`; compiles only what changed."""
    target, objects = folder / "fused_lstm", folder / "build"
    shutil.copytree(
        ROOT / "fused_lstm",
        target,
        ignore=shutil.ignore_patterns("_C.*", "__pycache__"),
        dirs_exist_ok=True,
    )
    objects.mkdir(parents=True, exist_ok=True)
    for old in set(objects.glob("*.o")) - {objects / f"{path.stem}.o" for path in sources}:
        old.unlink()  # of a source that is no more
    with mock.patch.object(torch.ops, "load_library"):  # it is built for another process
        library = cpp_extension.load(
            name="_C",
            sources=[str(path) for path in sources],
            extra_cflags=[*cflags, f"-I{CSRC}"],
            extra_ldflags=ldflags,
            build_directory=str(objects),
            is_python_module=False,
            verbose=True,
        )
    shutil.copy2(library, target / "_C.so")


def sources(folder: Path) -> list[Path]:
    """The package's sources with the CUDA path in place of the CPU's; some are written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    kernels = []
    for source in sorted(CSRC.rglob("*.cu")):  # a .cu would go to nvcc
        kernels.append(folder / f"{source.stem}.cpp")
        if not kernels[-1].exists():
            kernels[-1].write_text(f'#include "{source.relative_to(CSRC)}"\n')
    replaced = {CSRC / "cpu" / "launch.cpp", CSRC / "device" / "pool.cpp"}
    replaced |= set((CSRC / "library").rglob("*"))
    return [*sorted(set(CSRC.rglob("*.cpp")) - replaced), *sorted(HERE.glob("*.cpp")), *kernels]


# The emulated headers come before torch's own.
FLAGS = [f"-I{HERE / 'include'}", "-DFUSED_LSTM_WITH_CUDA", "-fopenmp", "-Wno-unknown-pragmas"]


def build(folder: Path) -> None:
    package(folder, sources(folder), ["-O2", *FLAGS], ["-fopenmp"])


if __name__ == "__main__":
    build(Path(sys.argv[1]))
