"""The table of the persistent kernels' steps, and whether they are within their limits."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import cubin, execute, launches, step
from .shapes import BATCH, GPUS, LENGTH, Shape, shapes
from .table import Row, complaints, format_rows, unsound

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = (80, 90, 120)
# What is over its limit and let pass until it is mended: it may not get worse.
KNOWN = Path(__file__).resolve().parent / "known.json"
INSTRUCTIONS = 6_000_000  # of a thread, at most


def row_of(
    one: launches.Pass,
    kernels: dict[tuple[int, str], cubin.Kernel],
    threads: Sequence[int],
    block: int,
) -> Row:
    """The step of the pass's persistent kernel; of several threads, of the one that takes longest.

    Of a stack, of a layer that awaits another: forward the last one, backward the first.
    Without a step where the plan has no persistent kernel.
    """
    gpu = GPUS[one.shape.gpu]
    for recorded in one.launches:
        kernel = kernels.get((gpu.architecture, recorded.kernel))
        if kernel is None:
            raise SystemExit(f"no kernel of the cubins is {recorded.kernel}")
        if step.loop_over_time(kernel.code) is None:
            continue
        of_layer = recorded.launch.grid // one.shape.layers
        awaits = of_layer * (one.shape.layers - 1) if one.direction == "forward" else 0
        measured = []
        for thread in threads:
            running = execute.Thread(
                kernel.code,
                recorded.launch,
                kernel.parameters_at,
                thread=thread,
                block=awaits + block,
            )
            running.run(INSTRUCTIONS)
            measured.append(
                step.measure(
                    kernel.code,
                    running.trace,
                    finished=running.finished,
                    steps=LENGTH,
                    gigahertz=gpu.gigahertz,
                    ahead=one.shape.layers > 1,
                )
            )
        return Row(one, recorded, max(measured, key=lambda each: each.cycles))
    return Row(one, None, None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="machine_code", description=__doc__)
    parser.add_argument("--emulated", type=Path, default=ROOT / "build/emulated")
    parser.add_argument("--build", type=Path, default=ROOT / "build/machine_code")
    parser.add_argument(
        "--architectures", type=int, nargs="+", default=ARCHITECTURES, help="such as 80 90"
    )
    parser.add_argument("--no-limits", action="store_true", help="print, and never fail")
    parser.add_argument("--only", default="", help="part of the shapes' names, such as 'H 768'")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[0, 101], help="which ones are executed"
    )
    parser.add_argument("--block", type=int, default=0, help="of which block")
    parser.add_argument(
        "--waits", action="store_true", help="print where a step waits longest, and its branches"
    )
    parser.add_argument("--record", action="store_true", help="write what is over into known.json")
    options = parser.parse_args(arguments)

    kernels = cubin.all_kernels(
        sorted(ROOT.glob("csrc/cuda/**/*.cu")),
        sorted({*options.architectures, *(gpu.architecture for gpu in GPUS.values())}),
        options.build / "cubins",
        ROOT / "csrc",
    )
    chosen: list[Shape] = [shape for shape in shapes() if options.only in shape.name]
    passes = launches.record(options.emulated, options.build / "launches", chosen)
    by_name = {
        (kernel.architecture, cubin.same_everywhere(kernel.code.name)): kernel for kernel in kernels
    }
    which = " and ".join(map(str, options.threads))
    print(
        f"B {BATCH}, T {LENGTH}, training, an H100's code, unless another is named; "
        f"threads {which} of block {options.block}"
    )
    rows = [row_of(one, by_name, options.threads, options.block) for one in passes]
    print(format_rows(rows, waits=options.waits))
    over = [*complaints(rows), *unsound(kernels)]
    if options.record:
        known: dict[str, dict[str, float]] = {}
        for each in over:
            known.setdefault(each.subject, {})[each.what] = round(each.value, 3)
        KNOWN.write_text(json.dumps(known, indent=1) + "\n")
    known = json.loads(KNOWN.read_text())
    for each in over:
        print(f"{each}{', known' if each.is_known(known) else ''}")
    failed = [each for each in over if not each.is_known(known)]
    return int(bool(failed) and not options.no_limits)


if __name__ == "__main__":
    sys.exit(main())
