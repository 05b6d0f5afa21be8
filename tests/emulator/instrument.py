"""Kernels that tell the emulator of each access to memory: python instrument.py EMULATED FOLDER.

EMULATED is what build.py made. FOLDER then holds the same package, whose kernels are compiled with
-fsanitize=thread and call instrumented.cpp: EMULATOR_RACES=1 looks for data races, EMULATOR_DELAY=1
delays what blocks store. Without either it computes what EMULATED does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "c++")
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-Wno-unknown-pragmas", f"-I{HERE / 'include'}"]
INSTRUMENTED = [*FLAGS, "-fsanitize=thread", "-x", "c++"]  # and linked without its library


def compile_all(commands: list[list[str]]) -> None:
    """Runs compilers, side by side."""
    running = [(command, subprocess.Popen([COMPILER, *command])) for command in commands]
    for command, process in running:
        if process.wait() != 0:
            raise subprocess.CalledProcessError(process.returncode, command)


def build(
    emulated: Path, folder: Path, csrc: Path = CSRC, name: str = "*", prelude: str = ""
) -> None:
    """Puts the package into `folder`, its kernels `name` made of `csrc` after `prelude`, C++."""
    shutil.rmtree(folder / "fused_lstm", ignore_errors=True)
    shutil.copytree(emulated / "fused_lstm", folder / "fused_lstm")
    kernels = sorted(csrc.rglob(f"{name}.cu"))
    objects = {path.name: path for path in (emulated / "build").glob("*.o")}
    commands = []
    for kernel in kernels:
        source, target = folder / f"{kernel.stem}.cpp", folder / f"{kernel.stem}.o"
        source.write_text(f'{prelude}#include "{kernel}"\n')
        commands.append([*INSTRUMENTED, f"-I{csrc}", "-c", str(source), "-o", str(target)])
        objects[target.name] = target
    compile_all(commands)
    libraries = Path(torch.__file__).parent / "lib"
    options = [f"-L{libraries}", "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", "-fopenmp"]
    library = folder / "fused_lstm" / "_C.so"
    files = [str(path) for _, path in sorted(objects.items())]
    subprocess.check_call([COMPILER, "-shared", *files, *options, "-o", str(library)])


def build_patterns(folder: Path) -> Path:
    """patterns.cu with the machine that runs it, as a program."""
    parts = ["machine", "cluster_barriers", "global_memory", "races", "delays", "instrumented"]
    sources = {HERE / f"{part}.cpp": FLAGS for part in parts}
    sources[HERE / "patterns.cu"] = INSTRUMENTED
    objects = {source: str(folder / f"{source.stem}.o") for source in sources}
    compile_all(
        [
            [*flags, f"-I{CSRC}", "-c", str(source), "-o", objects[source]]
            for source, flags in sources.items()
        ]
    )
    program = folder / "patterns"
    subprocess.check_call([COMPILER, *objects.values(), "-ldl", "-o", str(program)])
    return program


if __name__ == "__main__":
    build(*(Path(argument).resolve() for argument in sys.argv[1:]))
