"""Builds fused_lstm._C against the PyTorch that is already installed.

Environment variables: FUSED_LSTM_CUDA=0 or 1 builds without or with CUDA whatever is found;
CUDA_HOME and TORCH_CUDA_ARCH_LIST mean what they mean to PyTorch; FUSED_LSTM_KERNEL_STATS=1
prints what registers and stack each CUDA kernel takes; MAX_JOBS limits parallel compilers;
FUSED_LSTM_WHEEL=1 names torch and CUDA in the version, as in 0.1.0+torch2.13.cpu, for a wheel that
is built here and installed elsewhere.
"""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "fused_lstm/__init__.py").read_text())[1]


def fail(message):
    sys.exit(f"fused_lstm: {message}")


def output_of(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr


def import_torch():
    # pip's isolated build hides the environment that it builds for. Its folders go last, so that
    # nothing in them can shadow the build's own setuptools and ninja.
    folders = site.getsitepackages()
    if sys.prefix == sys.base_prefix:
        folders.append(site.getusersitepackages())
    for folder in folders:
        if folder not in sys.path:
            site.addsitedir(folder)
    try:
        import torch
    except ImportError as error:
        fail(
            f"PyTorch cannot be imported ({error}): type `pip install torch` first; if it is "
            "installed already, `pip install --no-build-isolation .`"
        )
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        fail(f"PyTorch is {torch.__version__}, must be 2.11 or later: type `pip install -U torch`")
    return torch


def find_toolkit():
    """(folder, include folder) of the CUDA toolkit; None if there is no sign of one."""
    given = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    folders = [given or "/usr/local/cuda"]
    if nvcc and not given:
        # torch takes the folder above nvcc's, which is wrong if this nvcc is a wrapper script;
        # nvcc itself knows better.
        top = re.findall(r"TOP=(.+)", output_of(nvcc, "--dryrun", "x.cu"))
        folders = [Path(nvcc).parents[1], *top, *folders]
    for folder in map(Path, folders):
        for include in ("include", "targets/*/include"):
            header = next(folder.glob(f"{include}/cuda_runtime.h"), None)
            if header and (folder / "bin/nvcc").exists():
                return folder.resolve(), header.parent
    if given or nvcc:
        fail(
            f"{f'CUDA_HOME={given}' if given else nvcc} leads to no folder with bin/nvcc and "
            "include/cuda_runtime.h: set CUDA_HOME to the CUDA toolkit's folder, or "
            "FUSED_LSTM_CUDA=0 to build without CUDA"
        )
    return None


def prepare_cuda(torch):
    """The include folders that CUDA sources need, in order; None to build without CUDA."""
    wish = os.environ.get("FUSED_LSTM_CUDA", "")
    if wish not in ("", "0", "1"):
        fail(f"FUSED_LSTM_CUDA is {wish!r}, must be 0 or 1")
    if wish == "1" and torch.version.cuda is None:
        fail(f"FUSED_LSTM_CUDA=1, but PyTorch {torch.__version__} is a build without CUDA")
    if wish == "0" or torch.version.cuda is None:
        return None
    toolkit = find_toolkit()
    if toolkit is None:
        if wish == "1":
            fail("FUSED_LSTM_CUDA=1, but there is no CUDA toolkit: put nvcc on PATH")
        return None
    home, include = toolkit
    os.environ["CUDA_HOME"] = str(home)  # for torch.utils.cpp_extension

    nvcc = str(home / "bin/nvcc")
    version = re.search(r"release (\d+)\.\d+", output_of(nvcc, "--version"))
    major = torch.version.cuda.split(".")[0]
    if version is None or version[1] != major:
        fail(
            f"{nvcc} is of {version[0] if version else 'an unknown release'}, must be of {major}.x "
            f"like PyTorch's CUDA: set CUDA_HOME, or FUSED_LSTM_CUDA=0 to build without CUDA"
        )
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if archs in ("", "native") and torch.cuda.device_count() == 0:
        # The newest that both nvcc and PyTorch know, as PTX too. PTX only runs on what is newer,
        # so the 10.x between needs 9.0's.
        known = set(re.findall(r"compute_(\d+)\b", output_of(nvcc, "--list-gpu-arch")))
        known &= set(re.findall(r"sm_(\d+)\b", torch._C._cuda_getArchFlags() or ""))
        newest = max(map(int, known), default=90)
        archs = "8.0;9.0+PTX" + (f";{newest // 10}.{newest % 10}+PTX" if newest > 90 else "")
        os.environ["TORCH_CUDA_ARCH_LIST"] = archs

    includes = [include]
    if not (include / "cublas_v2.h").exists():
        # A toolkit of the compiler alone: the headers of the libraries, which PyTorch's own
        # include, come with its wheels. They go last: cuda_runtime.h must be nvcc's own.
        includes += sorted((Path(torch.__file__).parents[1] / "nvidia").glob("*/include"))
    return [str(folder) for folder in includes]


def make_extension(cpp_extension, cuda_includes):
    with_cuda = cuda_includes is not None
    sources = {*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu")}
    sources -= set(ROOT.glob("csrc/library/**/*"))  # a library of its own, by CMake
    if not with_cuda:
        sources -= set(ROOT.glob("csrc/cuda/**/*"))
    # Without -fopenmp at::parallel_for is serial; Apple's compiler does not know the flag.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    nvcc_flags = ["-O3", "-lineinfo", "-Xcompiler=-fvisibility=hidden"]
    if os.environ.get("FUSED_LSTM_KERNEL_STATS") == "1":
        nvcc_flags.append("-Xptxas=-v")
    make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    extension = make(
        "fused_lstm._C",
        sorted(str(path.relative_to(ROOT)) for path in sources),
        include_dirs=[str(ROOT / "csrc")],
        define_macros=[("FUSED_LSTM_WITH_CUDA", None)] if with_cuda else [],
        extra_compile_args={
            "cxx": ["-O3", "-g0", "-fvisibility=hidden", *openmp],
            "nvcc": nvcc_flags,
        },
        extra_link_args=openmp,
    )
    extension.include_dirs += cuda_includes or []
    return extension


def make_build_command(torch, cpp_extension, minor, cuda):
    class BuildExtension(cpp_extension.BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # One lasting folder for every way to build, so that each compiles only what changed.
            self.build_temp = f"build/{sys.implementation.cache_tag}-torch-{torch.__version__}"

        def build_extensions(self):
            # The default drops the suffix: x.cpp and x.cu would both become x.o.
            self.compiler.object_filenames = lambda sources, strip_dir=False, output_dir="": [
                os.path.join(output_dir, f"{source}.o") for source in sources
            ]
            try:
                super().build_extensions()
            except (RuntimeError, ValueError, OSError) as error:
                fail(error)

        def run(self):
            super().run()
            # What fused_lstm/_extension.py compares with the torch that is imported
            facts = f'"""Written by setup.py."""\n\nTORCH = {minor!r}\nCUDA = {cuda!r}\n'
            Path(self.get_ext_fullpath("fused_lstm._C")).with_name("_build.py").write_text(facts)

    return BuildExtension


def setup_binary():
    torch = import_torch()
    if int(setuptools.__version__.split(".")[0]) < 77:
        fail(
            f"setuptools is {setuptools.__version__}, must be 77 or later: type "
            "`pip install -U setuptools ninja`"
        )
    cuda_includes = prepare_cuda(torch)
    # A ninja from PyPI lies beside python, also where that folder is not on PATH.
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
    from torch.utils import cpp_extension  # it reads CUDA_HOME when imported

    minor = ".".join(torch.__version__.split(".")[:2])
    cuda = None if cuda_includes is None else torch.version.cuda
    tag = f"+torch{minor}.{'cu' + cuda.replace('.', '') if cuda else 'cpu'}"
    setuptools.setup(
        version=VERSION + (tag if os.environ.get("FUSED_LSTM_WHEEL") == "1" else ""),
        install_requires=[f"torch=={minor}.*"],
        ext_modules=[make_extension(cpp_extension, cuda_includes)],
        cmdclass={"build_ext": make_build_command(torch, cpp_extension, minor, cuda)},
    )


if {"egg_info", "sdist"}.isdisjoint(sys.argv):
    setup_binary()
else:  # of a source distribution, which is not for one torch and is made without any
    setuptools.setup(version=VERSION, install_requires=["torch>=2.11"])
