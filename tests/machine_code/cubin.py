"""Compiles CUDA sources for one architecture and disassembles them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import site
import struct
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import sass

FLAGS = ("-O3", "-std=c++17", "-lineinfo")  # the build's, but for those of the host's compiler


@dataclass(frozen=True)
class Kernel:
    """One kernel of a cubin."""

    architecture: int
    """90 for compute capability 9.0."""
    code: sass.Code
    parameters_at: int
    """Where the parameter block begins in constant bank 0."""


class NotInstalled(RuntimeError):
    """A tool of the CUDA toolkit is not there."""


def find_nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin/nvcc") if home else shutil.which("nvcc")
    if not nvcc:
        raise NotInstalled("nvcc is not on PATH: install the CUDA toolkit, or set CUDA_HOME")
    return nvcc


def find_nvdisasm() -> str:
    """The toolkit's own, or that of the wheel nvidia-cuda-nvdisasm."""
    if path := shutil.which("nvdisasm"):
        return path
    for folder in site.getsitepackages():
        for found in sorted(Path(folder).glob("nvidia/**/bin/nvdisasm")):
            return str(found)
    raise NotInstalled(
        "nvdisasm is not there: it comes with the CUDA toolkit, or by "
        "`pip install nvidia-cuda-nvdisasm`"
    )


def _key(source: Path, include: Path | None, architecture: int, nvcc: str) -> str:
    """Of all that decides the cubin: the source, all headers, flags and compiler."""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(f"{FLAGS} {architecture} {version}".encode())
    files = [source]
    if include:
        files += sorted(path for path in include.rglob("*") if path.suffix in (".h", ".cuh", ".cu"))
    for path in files:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:20]


def compile_and_disassemble(
    source: Path, architecture: int, folder: Path, include: Path | None = None
) -> tuple[bytes, str]:
    """The cubin of `source` and what nvdisasm prints of it; both are kept in `folder`."""
    nvcc, nvdisasm = find_nvcc(), find_nvdisasm()
    key = _key(source, include, architecture, nvcc)
    cubin = folder / f"{source.stem}-{architecture}-{key}.cubin"
    text = cubin.with_suffix(".sass")
    if not text.exists():
        folder.mkdir(parents=True, exist_ok=True)
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        includes = [f"-I{include}"] if include else []
        subprocess.run(
            [nvcc, *FLAGS, target, *includes, "-cubin", "-o", str(cubin), str(source)], check=True
        )
        done = subprocess.run(
            [nvdisasm, "-hex", "-c", str(cubin)], capture_output=True, text=True, check=True
        )
        text.with_suffix(".part").write_text(done.stdout)
        text.with_suffix(".part").rename(text)
    return cubin.read_bytes(), text.read_text()


def sections(elf: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit ELF file by name."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<3H", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    strings = headers[names][4]
    found = {}
    for name, kind, _, _, offset, length in headers:
        end = elf.index(b"\0", strings + name)
        no_bits = kind == 8
        found[elf[strings + name : end].decode()] = b"" if no_bits else elf[offset:][:length]
    return found


def parameters_at(info: bytes) -> int:
    """The offset of the parameter block in constant bank 0, from a section .nv.info.KERNEL.

    It is a list of attributes: a byte of format, a byte of kind, two of size or value.
    """
    at = 0
    while at + 4 <= len(info):
        form, kind, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != 4:  # the value lies in the size's place
            continue
        if kind == 0x0A:  # EIATTR_PARAM_CBANK: symbol, then offset and size of 16 bits
            return int(struct.unpack_from("<IHH", info, at)[1])
        at += size
    raise ValueError("the cubin does not say where the parameters lie")


def kernels_of(
    source: Path, architecture: int, folder: Path, include: Path | None = None
) -> list[Kernel]:
    elf, text = compile_and_disassemble(source, architecture, folder, include)
    infos = sections(elf)
    return [
        Kernel(architecture, code, parameters_at(infos[f".nv.info.{name}"]))
        for name, code in sass.parse(text).items()
        if f".nv.info.{name}" in infos
    ]


def all_kernels(
    sources: Iterable[Path], architectures: Iterable[int], folder: Path, include: Path
) -> list[Kernel]:
    jobs = [(source, architecture) for source in sources for architecture in architectures]
    workers = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda job: kernels_of(job[0], job[1], folder, include), jobs)
        return [kernel for kernels in found for kernel in kernels]


def same_everywhere(mangled: str) -> str:
    """A mangled name in which the anonymous namespace has no file's name.

    nvcc names it after the file, g++ does not; all else of a mangled name is the C++ ABI's.
    """
    while found := re.search(r"(\d+)_GLOBAL__N_", mangled):
        length, start = int(found[1]), found.end(1)
        mangled = f"{mangled[: found.start()]}<anonymous>{mangled[start + length :]}"
    return mangled


def demangle(names: list[str]) -> list[str]:
    """As a reader knows them; as they are where there is no c++filt."""
    if not shutil.which("c++filt"):
        return names
    text = "\n".join(names)
    done = subprocess.run(["c++filt", "-p"], input=text, capture_output=True, text=True, check=True)
    return [
        re.sub(r"\(anonymous namespace\)::|fused_lstm::(cuda::)?", "", line)
        for line in done.stdout.splitlines()
    ]
