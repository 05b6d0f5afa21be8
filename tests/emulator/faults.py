"""The persistent kernels with faults planted: python faults.py EMULATED FOLDER.

EMULATED is what build.py made. FOLDER then holds the same package, whose persistent kernels have
the fault that EMULATOR_FAULT numbers, and none without it. test_faults.py sees each.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import instrument
from instrument import CSRC

# What is wrong; the file of csrc/cuda/persistent, its text, and the text with the fault, in which
# faulty() stands for "this one is asked for".
FAULTS = [
    (
        "sums are read before all warps have written them",
        "persistent_kernel.cu",
        "partials + first * layout.partial_stride);\n      __syncthreads();",
        "partials + first * layout.partial_stride);\n      if (!faulty()) __syncthreads();",
    ),
    (
        "a block reads its own buffer before all threads have sent",
        "exchange.h",
        "if (kernel == Kernel::block) {\n      __syncthreads();\n    } else if",
        "if (kernel == Kernel::block) {\n      if (!faulty()) __syncthreads();\n    } else if",
    ),
    (
        "a block of the grid does not wait for the last of the others",
        "exchange.h",
        "load_acquire(arrived) < sent * blocks",
        "load_acquire(arrived) < sent * blocks - faulty()",
    ),
    (
        "threads do not wait for the one that waits for the grid",
        "exchange.h",
        "      __syncthreads();\n    }\n    const char* const buffer",
        "      if (!faulty()) __syncthreads();\n    }\n    const char* const buffer",
    ),
    (
        "a block says that it has sent before all its threads have",
        "exchange.h",
        "__syncthreads();\n      if (threadIdx.x == 0) add_release(arrived, 1);",
        "if (!faulty()) __syncthreads();\n      if (threadIdx.x == 0) add_release(arrived, 1);",
    ),
    (
        "copies are not waited for",
        "exchange.h",
        "wait_for_copies();\n    __syncthreads();",
        "if (!faulty()) wait_for_copies();\n    __syncthreads();",
    ),
    (
        "one buffer instead of two",
        "exchange.h",
        "shared + (sent & 1) * shared_bytes",
        "shared + ((sent + faulty()) & 1) * shared_bytes",
    ),
    (
        "a block sends to a cluster whose blocks have not begun",
        "exchange.h",
        "cluster_arrive();\n      cluster_wait();\n    } else {",
        "if (!faulty()) cluster_arrive();\n      if (!faulty()) cluster_wait();\n    } else {",
    ),
    (
        "a block of the cluster is never waited for",
        "exchange.h",
        "rank < blocks; ++rank",
        "rank < blocks - faulty(); ++rank",
    ),
    (
        "an index off by one",
        "warp_gemm.h",
        "[lane / 4 + 8 * (i >> 1)] = sums[i]",
        "[lane / 4 + (8 - faulty()) * (i >> 1)] = sums[i]",
    ),
    (
        "an output that is never written",
        "persistent_kernel.cu",
        "p.grad_cell[b * p.hidden_size + j] = state.grad_cell;",
        "if (!faulty()) p.grad_cell[b * p.hidden_size + j] = state.grad_cell;",
    ),
    (
        "the grid waits for ever",
        "exchange.h",
        "if (threadIdx.x == 0) add_release",
        "if (threadIdx.x == 0 && !faulty()) add_release",
    ),
]


# Read before any kernel runs: what threads read of it, none of them has written.
PRELUDE = """#include <cstdlib>
namespace {
const char* const fault = std::getenv("EMULATOR_FAULT");
const int faulty_number = fault ? std::atoi(fault) : 0;
inline bool faulty(int number) { return number == faulty_number; }
}  // namespace
"""


def build(emulated: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    sources = folder / "csrc"
    shutil.copytree(CSRC, sources)
    for number, (what, name, text, faulty) in enumerate(FAULTS, 1):
        path = sources / "cuda/persistent" / name
        before = path.read_text()
        assert before.count(text) == 1, f"{what}: {name} has {before.count(text)} times {text!r}"
        path.write_text(before.replace(text, faulty.replace("faulty()", f"faulty({number})")))
    instrument.build(emulated, folder, sources, PRELUDE)


if __name__ == "__main__":
    build(*(Path(argument).resolve() for argument in sys.argv[1:]))
