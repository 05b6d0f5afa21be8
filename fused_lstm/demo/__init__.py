"""``python -m fused_lstm demo``: three models trained on FusedLSTM and nn.LSTM, side by side."""

from __future__ import annotations

import argparse
import errno
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch
from torch import distributed, nn

from fused_lstm.demo import report, table
from fused_lstm.demo.tasks import TASKS
from fused_lstm.demo.train import Comparison, compare, processes
from fused_lstm.lstm import FusedLSTM

REPORT = "fused_lstm_demo.html"
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, not the whole usage."""
        self.exit(2, f"{self.prog}: {message} (--help for more)\n")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"is {name!r}, must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        seen = torch.cuda.device_count()
        devices = f"{seen} CUDA device{'s' * (seen != 1)}"
        raise argparse.ArgumentTypeError(f"is {name!r}, but this torch sees {devices}")
    return device


def _steps(number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"is {number!r}, must be a whole number from 1 on")
    return int(number)


def _seed(number: str) -> int:
    if not number.isdecimal() or int(number) >= 2**63:
        raise argparse.ArgumentTypeError(f"is {number!r}, must be a whole number below 2**63")
    return int(number)


def _report(name: str) -> Path:
    """The report's path; an OSError, before any work goes into it, if it cannot be written."""
    path = Path(name)
    if path.is_dir():
        path /= REPORT
    real = path.resolve()
    folder = next(parent for parent in real.parents if parent.exists())
    # A regular file is replaced by one that is written beside it, a device or a pipe is not.
    written = [real] if real.exists() else []
    written += [] if written and not real.is_file() else [folder]
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not all(os.access(there, os.W_OK) for there in written):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def _write(path: Path, text: str) -> None:
    """The whole file or, where that fails or is stopped, what was there before."""
    path = path.resolve()
    if path.exists() and not path.is_file():  # a device or a pipe, which nothing must replace
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".fused_lstm-{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        if path.exists():
            shutil.copymode(path, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m fused_lstm demo",
        description="Trains three models on real data, each on FusedLSTM and on nn.LSTM from the "
        "same seed, prints how they compare and writes a report. Exit status: 0 if both agree up "
        "to rounding on all tasks, 1 if they do not, 2 for a wrong option.",
    )
    parser.add_argument(
        "--task",
        action="append",
        choices=list(TASKS),
        help="only this task; may be given more than once (default: all three)",
    )
    parser.add_argument(
        "--device",
        type=_device,
        default="auto",
        help="auto, cpu, cuda or cuda:N (default: auto, a GPU if there is one)",
    )
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="of the models and their input (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, help="of weights and batches (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=_steps,
        help="training steps for each task (default: "
        + ", ".join(f"{task.steps} {name}" for name, task in TASKS.items())
        + ")",
    )
    parser.add_argument(
        "--out",
        default=REPORT,
        metavar="PATH",
        help="the report, an HTML file or the folder to put it in (default: %(default)s)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Runs the demo with the options ``argv``; returns its exit status."""
    try:
        parser = _parser()
        options = parser.parse_args(argv)
        try:
            options.out = _report(options.out)
        except OSError as error:
            parser.error(f"argument --out: {options.out!r} cannot be written: {error.strerror}")
    except SystemExit as end:  # argparse leaves this way for --help and for a wrong option
        return int(end.code or 0)
    try:
        if distributed.is_torchelastic_launched():  # by torchrun
            distributed.init_process_group("gloo")
        status = _run(options)
        if distributed.is_initialized():
            distributed.barrier()  # torch aborts some processes that end before the others
        return status
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _run(options: argparse.Namespace) -> int:
    facts = _facts(options)
    _say(" | ".join(facts))
    start = time.perf_counter()
    comparisons: list[Comparison] = []
    names = list(dict.fromkeys(options.task or TASKS))
    for number, name in enumerate(names, 1):
        task = TASKS[name](options.device, DTYPES[options.dtype])
        _say(f"\n[{number}/{len(names)}] {name}: {task.data}")
        steps = options.steps or task.steps
        comparisons.append(
            compare(task, FusedLSTM, nn.LSTM, options.seed, steps, lambda line: _say("  " + line))
        )
    _say("\n" + table.text(comparisons))
    parity = all(comparison.parity for comparison in comparisons)
    _say(
        f"\n{'Parity on all tasks' if parity else 'PARITY IS BROKEN'}, "
        f"after {time.perf_counter() - start:.0f} s. Report: {options.out}"
    )
    if _first():
        try:
            _write(options.out, report.page(comparisons, facts))
        except OSError as error:
            where = f"report {str(options.out)!r} cannot be written"
            print(f"python -m fused_lstm demo: {where}: {error.strerror}", file=sys.stderr)
            return 2
    return 0 if parity else 1


def _facts(options: argparse.Namespace) -> list[str]:
    device: torch.device = options.device
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU ({platform.machine()}, torch threads: {torch.get_num_threads()})"
    )
    facts = [hardware, options.dtype, f"seed {options.seed}", f"torch {torch.__version__}"]
    return facts if processes() == 1 else [*facts, f"{processes()} processes"]


def _first() -> bool:
    """Of several processes one speaks for all, which have the same results."""
    return processes() == 1 or distributed.get_rank() == 0


def _say(line: str) -> None:
    if _first():
        print(line, flush=True)
