"""The table of steps, and what in it is over a limit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from . import cubin, step
from .launches import Pass, Recorded
from .shapes import LEAST_DISTANCE, LISTED_MASK_BYTES, MASK_BYTES


@dataclass(frozen=True)
class Row:
    one: Pass
    recorded: Recorded | None
    step: step.Step | None
    """None where the plan chooses no persistent kernel."""

    @property
    def name(self) -> str:
        return f"{self.one.direction} {self.one.shape.name}"


_HEAD = (
    f"{'':40} {'kernel':8} {'grid':>5} {'instr':>6} {'kB':>5} {'cycles':>6} {'late':>5} "
    f"{'use':>5} {'start':>6} {'branch':>6} {'byte':>5} {'fence':>5} {'us':>6} {'plan':>6}"
)
_LEGEND = """\
instr, kB, cycles: a step's instructions, lines of code, cycles of a warp without exchange and with
all earlier loads arrived; late: cycles that those loads hold it in addition; use: fewest cycles
from a load to its use; start: cycles before the loop; branch, byte, fence: taken branches, byte
accesses, MEMBARs a step; us: (cycles + late + exchange) / clock; plan: the plan's estimate"""


def format_rows(rows: Iterable[Row], *, waits: bool = False) -> str:
    lines = [_LEGEND, _HEAD]
    for row in rows:
        measured, one = row.step, row.one
        if measured is None or row.recorded is None:
            lines.append(f"{row.name:40} {one.kernel:8}")
            continue
        use = "-" if measured.least_distance is None else str(measured.least_distance)
        lines.append(
            f"{row.name:40} {one.kernel:8} {row.recorded.launch.grid:5} "
            f"{measured.instructions:6.0f} {measured.code_bytes / 1024:5.1f} "
            f"{measured.cycles:6.0f} {measured.late_cycles:5.0f} {use:>5} "
            f"{measured.prologue_cycles:6} {measured.taken_branches:6.1f} "
            f"{measured.byte_accesses:5.0f} {measured.fences:5.0f} "
            f"{measured.microseconds:6.2f} {one.microseconds:6.2f}"
        )
        if waits:
            lines += [f"    {cycles:6.0f} cycles at {text}" for cycles, text in measured.waits]
            lines += [f"    taken: {text}" for text in measured.branches]
    return "\n".join(lines)


@dataclass(frozen=True)
class Excess:
    """Something over its limit; for a distance, under it."""

    subject: str
    what: str
    value: float
    limit: float
    least: bool = False

    def __str__(self) -> str:
        bound = "least" if self.least else "most"
        digits = 2 if self.what.startswith("us") else 0
        return (
            f"{self.subject}: {self.value:.{digits}f} {self.what} "
            f"(at {bound} {self.limit:.{digits}f})"
        )

    def is_known(self, known: dict[str, dict[str, float]]) -> bool:
        """Whether it is no worse than what is known of it, but for a compiler's whims."""
        value = known.get(self.subject, {}).get(self.what)
        if value is None:
            return False
        return self.value >= value / 1.02 if self.least else self.value <= value * 1.02


def complaints(rows: Iterable[Row]) -> Iterator[Excess]:
    """What of each step is over its limit."""
    for row in rows:
        yield from _over_limit(row)


def _over_limit(row: Row) -> Iterator[Excess]:
    limit, measured = row.one.shape.limit(row.one.direction), row.step
    if limit is None:
        return
    if measured is None:
        yield Excess(row.name, "persistent kernels that the plan chooses", 0, 1, least=True)
        return
    masks = row.one.shape.boundaries == "resets"
    for what, value, most in (
        ("instructions", measured.instructions, limit.instructions),
        ("kB of code", measured.code_bytes / 1024, limit.kilobytes),
        ("cycles", measured.cycles, limit.cycles),
        ("taken branches", measured.taken_branches, 0),
        ("byte accesses", measured.byte_accesses, MASK_BYTES if masks else 0),
        ("MEMBARs", measured.fences, 0),
        ("accesses to local memory", measured.local_accesses, 0),
    ):
        if value > most:
            yield Excess(row.name, what, value, most)
    least = measured.least_distance
    if least is not None and least < LEAST_DISTANCE:
        yield Excess(row.name, "cycles from a load to its use", least, LEAST_DISTANCE, least=True)
    if row.one.microseconds < measured.microseconds:
        plan = row.one.microseconds
        yield Excess(row.name, "us a step that the plan says", plan, measured.microseconds, True)


def unsound(kernels: Iterable[cubin.Kernel]) -> Iterator[Excess]:
    """What no persistent kernel's code may have, on any architecture."""
    listings = [(kernel, step.listing(kernel.code)) for kernel in kernels]
    found = [(kernel, listing) for kernel, listing in listings if listing]
    names = cubin.demangle([kernel.code.name for kernel, _ in found])
    for (kernel, listing), name in zip(found, names, strict=True):
        for what, count, most in (
            ("accesses to local memory", listing.local_accesses, 0),
            ("MEMBARs in its loop", listing.fences, 0),
            ("loads of bytes in its loop", listing.byte_loads, LISTED_MASK_BYTES),
            ("stores of bytes in its loop", listing.byte_stores, 0),
        ):
            if count > most:
                yield Excess(f"sm_{kernel.architecture} {name}", what, count, most)
