"""The facts of the machine and the build that a figure is meaningless without."""

from __future__ import annotations

import importlib
import os
import platform
import re
import subprocess
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks import onnx_lstm

ROOT = Path(__file__).resolve().parent.parent


def collect(device: str) -> dict[str, Any]:
    """What ran where: for the results file of a run on ``device`` ("cpu" or "cuda")."""
    facts = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": instruction_set(),
        "onnxruntime": onnx_lstm.version(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        **commit(),
    }
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        facts |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "compute_capability": f"{major}.{minor}",
            "tf32": tf32(),
        }
    return facts


def machine_name(facts: dict[str, Any]) -> str:
    """The name of a machine's results file: its device, in letters, digits and dashes."""
    name = facts["device"]
    if name == facts["cpu"]:  # the model alone does not tell a slice of a server from all of it
        name += f" {facts['cores']} cores"
    name = re.sub(r"\((R|TM)\)", "", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def instruction_set() -> str | None:
    """The instruction set that the CPU kernels use; None where the extension is not built."""
    try:
        extension = importlib.import_module("fused_lstm._C")
    except ImportError:
        return None
    return str(extension.cpu_instruction_set())


def tf32() -> dict[str, Any]:
    """The switches that decide whether cuDNN's float32 is TF32; those this torch has."""
    found: dict[str, Any] = {}
    cudnn: Any = torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found["cudnn.allow_tf32"] = cudnn.allow_tf32
        except RuntimeError:  # refused once the successors below were set apart from it
            found["cudnn.allow_tf32"] = None
    if hasattr(getattr(cudnn, "rnn", None), "fp32_precision"):
        found["cudnn.rnn.fp32_precision"] = cudnn.rnn.fp32_precision
    return found


def commit() -> dict[str, Any]:
    """The commit measured, and whether the tree differed from it.

    Where the tree travelled without its history, the environment variable BENCHMARK_COMMIT
    says it (with ``-dirty`` behind it where that holds).
    """
    try:
        head = _git("rev-parse", "HEAD")
        # A run's own results do not make it another program.
        dirty = bool(_git("status", "--porcelain", "--", ".", ":!benchmarks/results"))
    except (OSError, subprocess.CalledProcessError):
        told = os.environ.get("BENCHMARK_COMMIT", "")
        head, dirty = told.removesuffix("-dirty"), told.endswith("-dirty")
        return {"commit": head or None, "dirty": dirty if head else None}
    return {"commit": head, "dirty": dirty}


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
