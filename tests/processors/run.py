"""Tests on processors that qemu-user emulates: python run.py FOLDER [PYTEST ARGUMENTS ...].

x86-64 processors run the extension that is installed. For aarch64 it is cross-compiled, and run by
Debian's Python and PyPI's torch for aarch64, which FOLDER keeps (7 GB, of which 3 are downloaded).
Nothing outside FOLDER changes. What is missing here is skipped with its reason.

Needs qemu-user, and for aarch64 g++-aarch64-linux-gnu and apt-get.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fused_lstm import _C

COMPILER = "aarch64-linux-gnu-g++"
TESTS = Path(__file__).resolve().parents[1]
CSRC = TESTS.parent / "csrc"

# qemu's names, and the instruction set that the extension has to choose there. qemu emulates AVX2
# from version 7.2 on, and no AVX-512: Skylake-Server reports none here.
X86 = {
    "Nehalem": "portable",  # SSE4.2; numpy and oneDNN do not run on less
    "SandyBridge": "portable",  # AVX without AVX2
    "Haswell": "avx2",
    "EPYC": "avx2",
    "Skylake-Server": "avx2",
}
AARCH64 = {"neoverse-n1": "portable"}  # NEON
# /proc/cpuinfo and MIDR_EL1 of a Neoverse N1, for libraries that would read this machine's
CPUINFO = """processor\t: {}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
MIDR = "0x00000000413fd0c1"

SELECTED = [f"test_{name}.py" for name in ("accuracy", "cell", "lengths", "cpu_kernels")]
# Python emulated by qemu would start other programs, itself too, on the real processor: `emulated`
# is a program that starts qemu again.
RUN = """
import sys
emulated, expected, *arguments = sys.argv[1:]
sys.executable = emulated
from fused_lstm import _C
found = _C.cpu_instruction_set()
assert found == expected, f"instruction set {found} was chosen, must be {expected}"
import pytest
sys.exit(pytest.main(arguments))
"""


def run(*command: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], check=True, **options)


def test(folder: Path, python: list[str], expected: str, arguments: list[str]) -> bool:
    emulated = folder / "python"
    emulated.write_text(f'#!/bin/sh\nexec {shlex.join(python)} "$@"\n')
    emulated.chmod(0o755)
    options = ["-q", "-p", "no:cacheprovider", "-m", "not cuda"]
    # numpy's OpenBLAS does not recognise the emulated Nehalem and takes AVX code.
    old = any("Nehalem" in word for word in python)
    environment = {"OPENBLAS_CORETYPE": "NEHALEM"} if old else {}
    command = [emulated, "-c", RUN, emulated, expected, *options, *(arguments or SELECTED)]
    return not subprocess.run(command, cwd=TESTS, env=os.environ | environment).returncode


def install_aarch64(root: Path, site: Path) -> None:
    """Debian's Python and PyPI's torch, of this torch's version, for aarch64."""
    apt = root.parent / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    facts = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": apt / "cache",
    }
    get = ["apt-get", "-qq", "-y", *(f"-o{name}={value}" for name, value in facts.items())]
    run(*get, "update")
    packages = ["python3", "libpython3-dev", "libstdc++6", "libgomp1"]
    run(*get, "--download-only", "--no-install-recommends", "install", *packages)
    for package in (apt / "cache/archives").glob("*.deb"):
        run("dpkg-deb", "-x", package, root)
    for number in range(os.cpu_count() or 1):
        register = root / f"sys/devices/system/cpu/cpu{number}/regs/identification/midr_el1"
        register.parent.mkdir(parents=True, exist_ok=True)
        register.write_text(MIDR + "\n")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/cpuinfo").write_text("".join(map(CPUINFO.format, range(os.cpu_count() or 1))))

    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 29)]
    run(
        *[sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:"],
        *["--no-compile", "--target", site, "--python-version", version_of(root)],
        *["--platform=manylinux2014_aarch64", *platforms],
        *[f"torch=={torch.__version__.split('+')[0]}", "numpy", "pytest", "hypothesis"],
    )


def version_of(root: Path) -> str:
    return os.readlink(root / "usr/bin/python3").removeprefix("python")


def compile_aarch64(folder: Path, root: Path, site: Path) -> None:
    """fused_lstm for aarch64, into `folder`."""
    package, objects = folder / "fused_lstm", folder / "objects"
    ignored = shutil.ignore_patterns("_C.*", "__pycache__")
    shutil.copytree(TESTS.parent / "fused_lstm", package, ignore=ignored, dirs_exist_ok=True)
    objects.mkdir(exist_ok=True)
    standard = f"-std=c++{_C.build_info()['cxx_standard']}"
    flags = [standard, "-O3", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-Wall"]
    headers = site / "torch/include"
    folders = [headers, headers / "torch/csrc/api/include"]
    folders.append(root / f"usr/include/python{version_of(root)}")
    includes = [f"-isystem{folder}" for folder in folders]
    includes += ["-idirafter", root / "usr/include"]  # after the cross-compiler's C library

    def compile(source: Path) -> Path:
        target = objects / f"{source.stem}.o"
        defines = [f"-I{CSRC}", "-DTORCH_EXTENSION_NAME=_C"]
        run(COMPILER, *flags, *defines, *includes, "-c", source, "-o", target)
        return target

    others = {*(CSRC / "cuda").rglob("*"), *(CSRC / "library").rglob("*")}
    sources = sorted(set(CSRC.rglob("*.cpp")) - others)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(compile, sources))
    libraries = [f"-L{site / 'torch/lib'}", "-ltorch_python", "-ltorch", "-ltorch_cpu", "-lc10"]
    loose = "-Wl,--allow-shlib-undefined"
    run(COMPILER, "-shared", "-fopenmp", *made, *libraries, loose, "-o", package / "_C.so")


def missing(*programs: str) -> str:
    return ", ".join(name for name in programs if not shutil.which(name))


def main(folder: Path, arguments: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {}

    def check(name: str, python: list[str], expected: str) -> None:
        print(f"== {name}, which must choose {expected}", flush=True)
        outcomes[name] = "passed" if test(folder, python, expected, arguments) else "FAILED"

    without = missing("qemu-x86_64")
    if platform.machine() != "x86_64":
        without = f"an x86-64 processor (this is {platform.machine()})"
    for name, expected in X86.items():
        if without:
            outcomes[name] = f"skipped: needs {without}"
        else:
            check(name, ["qemu-x86_64", "-cpu", f"{name},check=off", sys.executable], expected)

    without = missing("qemu-aarch64", COMPILER, "apt-get", "dpkg-deb")
    if not without:
        root, site, package = folder / "root", folder / "site", folder / "package"
        done = folder / f"torch-{torch.__version__}"
        if not done.exists():
            for old in (root, site):
                shutil.rmtree(old, ignore_errors=True)
            install_aarch64(root, site)
            done.touch()
        compile_aarch64(package, root, site)
        os.environ["PYTHONPATH"] = f"{package}:{site}"
    for name, expected in AARCH64.items():
        if without:
            outcomes[name] = f"skipped: needs {without}"
        else:
            python = ["qemu-aarch64", "-cpu", name, "-L", str(root), str(root / "usr/bin/python3")]
            check(f"{name} (aarch64)", python, expected)

    print("\n".join(f"{name}: {outcome}" for name, outcome in outcomes.items()))
    return "FAILED" in outcomes.values()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
