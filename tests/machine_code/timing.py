"""Cycles of one warp that has the multiprocessor to itself, by the control codes of its trace.

An instruction is issued once the scoreboards that it waits for are free; its stall count passes
before the next one. A scoreboard is released when the latency of what holds it has passed. Stall
counts are the compiler's own; latencies here are estimates for an H100, none measured by this
project. No contention between warps, no misses of the instruction caches: a lower bound.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .execute import Executed
from .sass import NO_BARRIER, Code, Instruction

MEMORY_CYCLES = 600
# From a store in one block until another has the value, where the data are their own flag:
# estimated as one and a half trips to L2, and as one of distributed shared memory
L2_EXCHANGE_CYCLES = 650
CLUSTER_EXCHANGE_CYCLES = 250
GIGAHERTZ = 1.755  # the boost clock of an H100 PCIe; others go to 1.98
TAKEN_BRANCH_CYCLES = 6
OPERAND_CYCLES = 15  # at most, until a memory access has read its operands
OTHER_CYCLES = 20
CYCLES = {
    "LDG": MEMORY_CYCLES,
    "LD": 40,  # generic: taken to be of shared memory
    "LDGSTS": MEMORY_CYCLES,
    "LDS": 30,
    "LDSM": 33,
    "LDL": 35,
    "LDC": 38,
    "LDCU": 38,
    "MUFU": 26,
    "S2R": 25,
    "S2UR": 25,
    "FCHK": 26,
    "HMMA": 33,
    "SHFL": 25,
    "STS": 12,
    "STG": 12,
    "ST": 12,
    "STAS": 12,
    "REDG": 12,
    "RED": 12,
    "R2UR": 12,
    "BAR": 25,
    "DEPBAR": 2,
    "MEMBAR": 0,  # counted, not timed: how long it waits is the stores' affair
}
MEMORY_LOADS = frozenset({"LDG", "LD", "LDGSTS"})


def exchange_of(one: Instruction, ahead: bool = False) -> int:
    """What a wait for other blocks takes; 0 if the instruction is none.

    ahead: strong loads are of what others stored some steps ago, so that memory alone takes time.
    """
    if one.opcode in MEMORY_LOADS and "STRONG" in one.modifiers:
        return 0 if ahead else L2_EXCHANGE_CYCLES
    phase = one.opcode == "SYNCS" and "PHASECHK" in one.modifiers
    return CLUSTER_EXCHANGE_CYCLES if phase or one.opcode == "UCGABAR_WAIT" else 0


def cycles_of(one: Instruction, memory_cycles: int, ahead: bool = False) -> int:
    if one.opcode in MEMORY_LOADS and exchange_of(one, ahead):
        return 0
    if one.opcode in ("LDG", "LDGSTS"):
        return memory_cycles
    return CYCLES.get(one.opcode, OTHER_CYCLES)


@dataclass
class Timed:
    """When each instruction of a trace was issued, and what was waited for."""

    reached: list[int] = field(default_factory=list)
    """When the one before it had been issued and its stall count had passed."""
    issued: list[int] = field(default_factory=list)
    waited: list[int] = field(default_factory=list)
    """Cycles that each was held by scoreboards."""
    end: int = 0


def time_trace(
    code: Code,
    trace: Sequence[Executed],
    *,
    memory_cycles: int = MEMORY_CYCLES,
    steps: Collection[int] = (),
    ahead: bool = False,
) -> Timed:
    """`steps`: positions in the trace, from each of which on a wait for other blocks takes time."""
    timed, now = Timed(), 0
    exchanged: set[int] = set()
    free = [0] * NO_BARRIER  # when each scoreboard is
    for position, executed in enumerate(trace):
        one = code.instructions[executed.index]
        control = one.control
        timed.reached.append(now)
        if position in steps:
            exchanged = set()
        exchange = exchange_of(one, ahead)
        if steps and executed.active and exchange not in exchanged:
            exchanged.add(exchange)
            now += exchange
        ready = max((free[i] for i in range(6) if control.wait_mask >> i & 1), default=0)
        timed.waited.append(max(0, ready - now))
        now = max(now, ready)
        timed.issued.append(now)
        if executed.active:
            latency = cycles_of(one, memory_cycles, ahead)
            if control.write_barrier < 6:
                free[control.write_barrier] = max(free[control.write_barrier], now + latency)
            if control.read_barrier < 6:
                read = now + min(latency, OPERAND_CYCLES)
                free[control.read_barrier] = max(free[control.read_barrier], read)
            if one.opcode == "DEPBAR":
                now = max(now, free[0])
        now += max(control.stall, 1) + TAKEN_BRANCH_CYCLES * executed.taken
    timed.end = now
    return timed


def distances_to_use(
    code: Code, trace: Sequence[Executed], steps: Collection[int], ahead: bool = False
) -> dict[int, int]:
    """Of each load from memory, by its address: least cycles between its issue and its first wait.

    Memory answers at once here, so that only what the warp does meanwhile counts, and how long it
    waits for other blocks. A load whose scoreboard nothing waits for in the trace is not listed.
    """
    timed = time_trace(code, trace, memory_cycles=0, steps=steps, ahead=ahead)
    pending: dict[int, list[tuple[int, int]]] = {}
    found: dict[int, int] = {}
    for executed, issued in zip(trace, timed.issued, strict=True):
        one = code.instructions[executed.index]
        for i in range(6):
            if one.control.wait_mask >> i & 1:
                for address, since in pending.pop(i, []):
                    found[address] = min(found.get(address, issued - since), issued - since)
        is_load = executed.active and one.opcode in MEMORY_LOADS and not exchange_of(one, ahead)
        if is_load and one.control.write_barrier < 6:
            pending.setdefault(one.control.write_barrier, []).append((one.address, issued))
    return found
