"""``python -m fused_lstm demo``: trains three models on FusedLSTM and nn.LSTM, side by side."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import torch
from torch import distributed, nn

from fused_lstm.demo import frozen, table
from fused_lstm.demo.tasks import TASKS
from fused_lstm.demo.train import Comparison, compare, processes
from fused_lstm.frozen import CPU_FORMATS
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
    """The path of the report; raises OSError before training if it cannot be written."""
    path = Path(name)
    if path.is_dir():
        path /= REPORT
    real = path.resolve()
    folder = next(parent for parent in real.parents if parent.exists())
    # _write replaces a regular file by one beside it, and writes into a device or a pipe.
    written = [real] if real.exists() else []
    written += [] if written and not real.is_file() else [folder]
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    if not all(os.access(each, os.W_OK) for each in written):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def _check_save(parser: argparse.ArgumentParser, name: str) -> None:
    """Before training."""
    try:
        import safetensors.torch  # noqa: F401
    except ImportError as error:
        parser.error(f"argument --save: {error} (pip install 'fused_lstm[interchange]')")
    try:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        parser.error(f"argument --save: {name!r} cannot be written: {error.strerror}")


def _write(path: Path, text: str) -> None:
    """Writes the whole file; if that fails or is interrupted, the previous file stays."""
    path = path.resolve()
    if path.exists() and not path.is_file():  # a device or a pipe, which must not be replaced
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
        "same seed, prints how they compare and writes a report (with matplotlib: pip install "
        "'fused_lstm[demo]'). Exit status: 0 if both agree up to rounding on all tasks, 1 if they "
        "do not, 2 for a wrong option.",
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
    parser.add_argument(
        "--save",
        metavar="DIR",
        help="a folder for the models, frozen: TASK.safetensors, and TASK.csv with an example; "
        "prints the scores before and after freezing in each format (pip install "
        "'fused_lstm[interchange]')",
    )
    parser.add_argument(
        "--weights",
        choices=list(CPU_FORMATS),
        default="float32",
        help="the format of --save (default: %(default)s)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Runs the demo.

    Args:
        argv: The options.

    Returns:
        The exit status: 0 for parity, 1 for none, 2 for a wrong option or a report that cannot be
        written, 130 after Ctrl-C.
    """
    try:
        parser = _parser()
        options = parser.parse_args(argv)
        try:
            options.out = _report(options.out)
        except OSError as error:
            parser.error(f"argument --out: {options.out!r} cannot be written: {error.strerror}")
        if options.save is not None:
            _check_save(parser, options.save)
    except SystemExit as end:  # from argparse, for --help and for a wrong option
        return int(end.code or 0)
    try:
        if distributed.is_torchelastic_launched():  # torchrun
            distributed.init_process_group("gloo")
        status = _run(options)
        if distributed.is_initialized():
            distributed.barrier()  # torch aborts some of the processes that end first.
        return status
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _run(options: argparse.Namespace) -> int:
    facts = _facts(options)
    _print(" | ".join(facts))
    page = _page()
    start = time.perf_counter()
    comparisons: list[Comparison] = []
    names = list(dict.fromkeys(options.task or TASKS))
    for number, name in enumerate(names, 1):
        task = TASKS[name](options.device, DTYPES[options.dtype])
        _print(f"\n[{number}/{len(names)}] {name}: {task.data}")
        steps = options.steps or task.steps
        with _progress(steps) as after_step:
            result = compare(task, FusedLSTM, nn.LSTM, options.seed, steps, after_step)
        comparisons.append(result)
        fused, reference = result.fused, result.reference
        _print(
            f"  step {steps}   loss: FusedLSTM {fused.losses[-1]:.5f} "
            f"nn.LSTM {reference.losses[-1]:.5f} difference {result.losses[-1].difference:.1e}   "
            f"time: {sum(fused.seconds):.1f} s, {sum(reference.seconds):.1f} s"
        )
    _print("\n" + table.text(comparisons))
    if options.save is not None and _first():
        _print("\n" + frozen.text([frozen.Scores.of(each) for each in comparisons]))
        for each in comparisons:
            frozen.save(each, Path(options.save), options.weights)
        _print(f"Frozen, in {options.weights}: {options.save}")
    parity = all(comparison.parity for comparison in comparisons)
    verdict = "Parity on all tasks" if parity else "PARITY IS BROKEN"
    written = f" Report: {options.out}" if page else ""
    _print(f"\n{verdict}, after {time.perf_counter() - start:.0f} s.{written}")
    if page and _first():
        try:
            _write(options.out, page(comparisons, facts))
        except OSError as error:
            where = f"report {str(options.out)!r} cannot be written"
            print(f"python -m fused_lstm demo: {where}: {error.strerror}", file=sys.stderr)
            return 2
    return 0 if parity else 1


def _page() -> Callable[[list[Comparison], list[str]], str] | None:
    """``report.page``, or None without matplotlib."""
    # Its import warns that it builds a font cache, or that it cannot write one.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        from fused_lstm.demo import report
    except ImportError as error:
        _print(f"No report: {error} (pip install 'fused_lstm[demo]')")
        return None
    return report.page


@contextmanager
def _progress(steps: int) -> Iterator[Callable[[float, float], None]]:
    """A progress bar if stderr is a terminal and tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda fused, reference: None
        return
    # disable=None: unless it is a terminal
    with tqdm(total=steps, unit="step", leave=False, disable=None if _first() else True) as bar:

        def after_step(fused: float, reference: float) -> None:
            bar.set_postfix_str(f"loss {fused:.4f}, nn.LSTM {reference:.4f}", refresh=False)
            bar.update()

        yield after_step


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
    """Whether this process prints and writes: one of several, whose results are the same."""
    return processes() == 1 or distributed.get_rank() == 0


def _print(line: str) -> None:
    if _first():
        print(line, flush=True)
