"""What is handed out: a source distribution, made without torch, and wheels without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import matplotlib
import pytest
import torch

from fused_lstm import _build, _extension

ROOT = Path(__file__).resolve().parents[1]
KIND = f"torch{_build.TORCH}." + (f"cu{_build.CUDA.replace('.', '')}" if _build.CUDA else "cpu")
PYTHON_TAG = f"cp{sys.version_info[0]}{sys.version_info[1]}"
WHEELS = sorted((ROOT / "dist").glob(f"fused_lstm-*+{KIND}-{PYTHON_TAG}-*.whl"))
needs_wheel = pytest.mark.skipif(
    not WHEELS, reason=f"no wheel for {KIND} and {PYTHON_TAG} in dist/: `make wheels`"
)
# As others run it: without the folders that this run was given
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}


def output_of(*command, where, path=os.environ["PATH"], status=0):
    environment = {**ENVIRONMENT, "PATH": str(path), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(
        list(map(str, command)), cwd=where, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def environment_in(folder):
    """A virtual environment's python, and the folder of its packages."""
    output_of(sys.executable, "-m", "venv", folder, where=folder)
    python = folder / "bin/python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return python, Path(output_of(python, "-c", where, where=folder).strip())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked source distribution, and what making it printed."""
    tree = tmp_path_factory.mktemp("tree") / "fused_lstm"
    made = shutil.ignore_patterns(".*_cache", ".git", ".venv", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=made)
    (tree.parent / "sdist").mkdir()
    printed = output_of(
        sys.executable,
        "-c",
        "import sys; sys.modules['torch'] = None\n"  # not to be imported
        "from setuptools import build_meta; build_meta.build_sdist('../sdist')",
        where=tree,
    )
    (archive,) = (tree.parent / "sdist").iterdir()
    with tarfile.open(archive) as file:
        file.extractall(tree.parent / "unpacked", filter="data")
    (folder,) = (tree.parent / "unpacked").iterdir()
    return folder, printed


def test_source_distribution_is_made_without_torch(sdist):
    folder, printed = sdist
    assert "warning" not in printed.replace("warning: no previously-included files", "").lower(), (
        printed
    )
    assert "\nRequires-Dist: torch>=2.11\n" in (folder / "PKG-INFO").read_text()
    for part in ["csrc", "fused_lstm", "tests", "benchmarks"]:
        assert files_in(folder / part) == files_in(ROOT / part)
    assert not list(folder.rglob("_build.py")) + list(folder.rglob("*.so"))


def files_in(folder):
    """Those that somebody wrote, not those of a build or of a tool."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    made = {path for path in files if path.name == "_build.py" or path.suffix in (".so", ".pyc")}
    return {path for path in files - made if not any(part.startswith(".") for part in path.parts)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A python, beside which no compiler is on PATH, with torch and the wheel, from its index."""
    folder = tmp_path_factory.mktemp("installed")
    python, packages = environment_in(folder)
    # These are too large to be copied.
    borrowed = {str(Path(module.__file__).parents[1]) for module in (torch, pytest, matplotlib)}
    (packages / "torch.pth").write_text("\n".join(borrowed))
    for tool in ["cc", "c++", "gcc", "g++", "clang", "nvcc", "ninja", "git", "make"]:
        assert shutil.which(tool, path=python.parent) is None
    version = WHEELS[-1].name.split("-")[1]
    index = (ROOT / "dist/simple" / KIND).as_uri()
    # Whatever is installed beside torch
    options = ["--force-reinstall", "--no-deps", "--index-url", index]
    output_of(
        *(python, "-m", "pip", "install", *options, f"fused_lstm=={version}"),
        where=folder,
        path=python.parent,
    )
    assert list(packages.glob("fused_lstm/_C.*.so"))
    return python


@needs_wheel
def test_wheel_needs_no_compiler(installed, tmp_path):
    demo = ["-m", "fused_lstm", "demo", "--device", "cpu", "--steps", "2"]
    printed = output_of(installed, *demo, where=tmp_path, path=installed.parent)
    assert "classifier" in printed
    assert (tmp_path / "fused_lstm_demo.html").stat().st_size


@needs_wheel
def test_tests_of_the_source_distribution_pass_on_the_wheel(installed, sdist, tmp_path):
    tests = sdist[0] / "tests/test_contract.py"
    printed = output_of(
        *(installed, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests),
        where=tmp_path,  # not beside the sources, which are not built
        path=installed.parent,
    )
    assert " passed" in printed


@needs_wheel
def test_pip_refuses_a_wheel_for_another_torch(tmp_path):
    python, packages = environment_in(tmp_path)
    other = packages / "torch-2.99.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.99.0\n")
    printed = output_of(
        python, "-m", "pip", "install", "--no-index", WHEELS[-1], where=tmp_path, status=1
    )
    assert f"torch=={_build.TORCH}.*" in printed


@pytest.mark.parametrize(
    ("built", "imported", "wheel"),
    [
        (("2.13", None), ("2.13.1+cpu", None), None),
        (("2.13", None), ("2.13.0+cu130", "13.0"), None),
        (("2.14", "13.0"), ("2.14.1+cu132", "13.2"), None),
        (("2.13", None), ("2.14.1+cpu", None), "+torch2.14.cpu"),
        (("2.13", None), ("2.14.1", "13.0"), "+torch2.14.cu130"),
        (("2.1", None), ("2.13.0", None), "+torch2.13.cpu"),
        (("2.14", "13.0"), ("2.14.1+cpu", None), "+torch2.14.cpu"),
        (("2.14", "13.0"), ("2.14.1+cu126", "12.6"), "+torch2.14.cu126"),
    ],
)
def test_wheel_that_fits(monkeypatch, built, imported, wheel):
    monkeypatch.setattr(_build, "TORCH", built[0])
    monkeypatch.setattr(_build, "CUDA", built[1])
    printed = _extension._obstacle(*imported)
    assert printed is None if wheel is None else f"version ends in {wheel}, " in printed


def test_import_by_another_torch_is_one_line(tmp_path):
    printed = output_of(
        sys.executable,
        "-c",
        "import torch; torch.__version__ = '2.99.1'\n"
        "try: import fused_lstm\n"
        "except ImportError as error: print(error)",
        where=tmp_path,
    )
    assert len(printed.splitlines()) == 1
    assert "but torch is 2.99.1: install the wheel whose version ends in +torch2.99." in printed
    assert "`pip install --force-reinstall --no-deps .`" in printed
