"""What is kept of a run: the machine's facts and a record a case, in one file a machine."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from torch.utils import collect_env
from torch.utils.benchmark import Measurement

from benchmarks import onnx_lstm
from benchmarks.cases import Case

Record = dict[str, Any]
Run = dict[str, Any]  # {"facts": {...}, "cases": [Record, ...]}; a file's newest is its last

FOLDER = Path(__file__).resolve().parent / "results"


def facts(device: str) -> dict[str, Any]:
    """What a run on ``device`` ("cpu" or "cuda") is meaningless without."""
    from fused_lstm import _C  # here, for the report needs no build

    environment = collect_env.get_env_info()
    model = re.search(r"^Model name: *(.+?) *$", str(environment.cpu_info), re.MULTILINE)
    cpu = model[1] if model else platform.processor() or platform.machine()
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "system": environment.os,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instruction_set": _C.cpu_instruction_set(),
        "onnxruntime": getattr(onnx_lstm.onnxruntime, "__version__", None),
        "date": date.today().isoformat(),
        **commit(),
    }
    if device == "cuda":
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": environment.nvidia_driver_version,
            "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
            "rnn_fp32_precision": torch.backends.cudnn.rnn.fp32_precision,  # "tf32" or not
        }
    return found


def commit() -> dict[str, Any]:
    """The commit, by git or else as ``HASH[-dirty]`` in BENCHMARK_COMMIT; did the tree differ?"""
    head = os.environ.get("BENCHMARK_COMMIT", "")
    git = partial(subprocess.check_output, stderr=subprocess.DEVNULL, text=True, cwd=FOLDER.parent)
    try:
        head = git(["git", "rev-parse", "HEAD"]).strip()
        # A run's own results do not make it another program.
        head += "-dirty" * bool(git(["git", "status", "--porcelain", "..", ":!results"]).strip())
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"commit": head.removesuffix("-dirty") or None, "dirty": head.endswith("-dirty")}


def machine_name(facts: dict[str, Any]) -> str:
    """The name of a machine's results file: its device, in letters, digits and dashes."""
    # A CPU's model does not tell a slice of a server from all of it.
    cores = f" {facts['cores']} cores" if facts["device"] == facts["cpu"] else ""
    return re.sub(r"(\((r|tm)\)|[^a-z0-9])+", "-", (facts["device"] + cores).lower()).strip("-")


def record(case: Case, measured: Mapping[str, Measurement], limit: float | None = None) -> Record:
    """What is kept of one case. Times are microseconds a call: lower quartile, median, upper.

    ``measured`` holds "nn", other implementations, and "fused" as the last. ``limit`` is what the
    machine does at most, in the unit of ``case.limit``: GFLOP/s or GB/s.
    """
    quartiles = partial(quantiles, n=4, method="inclusive")
    us = {name: [1e6 * t for t in quartiles(m.times)] for name, m in measured.items()}
    median = {name: times[1] for name, times in us.items()}
    kept = {
        "name": case.name,
        **asdict(case),
        "mode": case.mode,
        "rounds": len(measured["fused"].times),
        "us": {name: list(map(short, times)) for name, times in us.items()},
        "us_per_step": {name: short(time / case.steps) for name, time in median.items()},
        "gflops": {name: short(case.flops / time / 1e3) for name, time in median.items()},
        # Quartiles that are further apart than a tenth of the median
        "wide": not all(m.meets_confidence(0.1) for m in measured.values()),
    }
    for name in list(measured)[:-1]:
        kept["ratio" if name == "nn" else f"ratio_{name}"] = short(median[name] / median["fused"])
    if limit is not None:
        is_reading = case.limit == "reading"
        reached = (case.weight_bytes if is_reading else case.flops) / median["fused"] / 1e3
        kept["limit"] = {
            "kind": case.limit,
            "unit": "GB/s" if is_reading else "GFLOP/s",
            "at_most": short(limit),
            "reached": short(reached),
            "share": short(reached / limit),
        }
    return kept


def load(path: Path) -> list[Run]:
    """The runs of a results file; ValueError if it is not one."""
    try:
        return list(json.loads(path.read_text())["runs"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a results file of these benchmarks: {error!r}") from None


def save(path: Path, facts: dict[str, Any], records: list[Record]) -> None:
    """Add a run to a machine's file; the cases that it repeats leave the runs before it."""
    again = {r["name"] for r in records}
    runs = []
    for run in load(path) if path.exists() else []:
        kept = [r for r in run["cases"] if r["name"] not in again]
        if run["facts"] == facts:
            records = kept + records
        elif kept:
            runs.append({"facts": run["facts"], "cases": kept})
    texts = []  # with a line a fact and a line a case, so that git shows what changed
    for run in [*runs, {"facts": facts, "cases": records}]:
        lines = json.dumps(run["facts"], indent=2).replace("\n", "\n  ")
        cases = ",\n".join(f"    {json.dumps(r)}" for r in run["cases"])
        texts.append(f'{{\n  "facts": {lines},\n  "cases": [\n{cases}\n  ]\n}}')
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text('{"runs": [' + ",\n".join(texts) + "]}\n")
    unfinished.replace(path)


def short(value: float) -> float:
    """Four digits, which is more than any timing here is good for."""
    return float(f"{value:.4g}")
