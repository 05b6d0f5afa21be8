"""Tests on a build with sanitizers: python run.py address|emulated|thread FOLDER [TESTS ...].

`address` looks for memory errors and undefined behaviour (AddressSanitizer, UBSan), `emulated` for
the same in the CUDA sources on the emulator, `thread` for data races (ThreadSanitizer). Python and
torch themselves are not instrumented: what they allocate is watched, what they do with it is not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from emulator import build as emulator
from emulator.build import CSRC, ROOT, package

HERE = Path(__file__).resolve().parent
# -O2 multiplies and adds in one rounding, as the kernels' accuracy is measured; -O1 does not.
COMMON = ["-O2", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
# vptr needs the type information of classes that torch hides
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fopenmp"]
FLAGS = {
    "address": ADDRESS,
    "emulated": [*ADDRESS, *emulator.FLAGS],
    "thread": ["-fsanitize=thread", "-DINTRA_OP_PARALLEL", f"-include{HERE / 'threads.h'}"],
}
RUNTIMES = {
    "address": ["libasan.so", "libubsan.so"],
    "emulated": ["libasan.so", "libubsan.so"],
    "thread": ["libtsan.so"],
}
OPTIONS = {
    # Python and torch keep much until they exit.
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Or torch's own threads, whose waiting it cannot see, would be taken for races.
    "TSAN_OPTIONS": "halt_on_error=1:ignore_noninstrumented_modules=1"
    f":suppressions={HERE / 'torch.supp'}",
}
# The emulator's fibers; it tells AddressSanitizer of each switch.
EXPECTED = "ASan doesn't fully support makecontext/swapcontext"


def main(kind: str, folder: Path, tests: list[str]) -> int:
    if kind == "emulated":
        sources = emulator.sources(folder)
        os.environ["FUSED_LSTM_EMULATED"] = "1"
    else:
        others = {*(CSRC / "cuda").rglob("*"), *(CSRC / "library").rglob("*")}
        sources = sorted(set(CSRC.rglob("*.cpp")) - others)
    flags = [*COMMON, *FLAGS[kind]]
    package(folder, sources, flags, [f for f in flags if f.startswith(("-fsan", "-fopenmp"))])
    compiler = os.environ.get("CXX", "c++")
    found = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in RUNTIMES[kind]
    ]
    for old in folder.glob("report.*"):
        old.unlink()
    # Into files: pytest, and tests that start a process, would swallow what goes to stderr.
    options = {name: f"{value}:log_path={folder / 'report'}" for name, value in OPTIONS.items()}
    environment = os.environ | options | {"OMP_NUM_THREADS": "4"}
    environment["LD_PRELOAD"] = " ".join(done.stdout.strip() for done in found)
    environment["PYTHONPATH"] = str(folder)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    status = subprocess.run(command, env=environment, cwd=folder).returncode
    reports = [
        [line for line in report.read_text(errors="replace").splitlines() if EXPECTED not in line]
        for report in sorted(folder.glob("report.*"))
    ]
    reports = [report for report in reports if any(report)]
    for report in reports:
        print("\n".join(report))
    return status or len(reports)


if __name__ == "__main__":
    kind, folder, *tests = sys.argv[1:]
    paths = [str(ROOT / test) if test.startswith("tests/") else test for test in tests]
    sys.exit(main(kind, Path(folder).resolve(), paths))
