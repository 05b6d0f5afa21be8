"""One step of a kernel's loop over time, found in a trace, and what it costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .execute import BARRIERS, Executed
from .sass import LINE_BYTES, Code, Instruction
from .timing import GIGAHERTZ, distances_to_use, exchange_of, time_trace

LOCAL_MEMORY = frozenset({"LDL", "STL"})
GLOBAL_MEMORY = frozenset({"LDG", "STG", "LD", "ST", "LDGSTS"})
_MIN_ITERATIONS = 4


class NoLoop(Exception):
    """The trace has no loop that goes on to its end."""


@dataclass(frozen=True)
class Step:
    """What one step of the loop over time costs one thread."""

    instructions: float
    code_bytes: int
    """Of the cache lines that the instructions of a step lie in."""
    cycles: float
    """Of its warp, from free scoreboards: loads of the steps before have arrived. Waits for other
    blocks are left out."""
    late_cycles: float
    """Those that loads of the steps before hold the warp in addition, where memory takes
    `timing.MEMORY_CYCLES` and other blocks are waited for as long as an exchange takes."""
    exchange_cycles: int
    """What the waits for other blocks take in addition."""
    prologue_cycles: int
    taken_branches: float
    """But for the loop's own, and those out of a poll."""
    byte_accesses: float
    fences: float
    local_accesses: float
    barriers: float
    least_distance: int | None
    """Cycles from a load from memory to the first wait for it: the shortest. None: no loads."""
    opcodes: Counter[str] = field(default_factory=Counter)
    """Executed, over all the iterations that were looked at."""
    waits: tuple[tuple[float, str], ...] = ()
    """The longest, in cycles a step, with the instruction that waits."""
    branches: tuple[str, ...] = ()
    """All that are taken, the loop's own too."""
    gigahertz: float = GIGAHERTZ

    @property
    def microseconds(self) -> float:
        return (self.cycles + self.late_cycles + self.exchange_cycles) / (1000 * self.gigahertz)


def iterations_of(code: Code, trace: Sequence[Executed]) -> list[int]:
    """Where in the trace each iteration of the loop over time begins.

    Of all targets of backward branches it is the one whose iterations take up most of the trace; of
    a loop and the one around it, the outer.
    """
    heads: dict[int, list[int]] = {}
    for position in range(len(trace) - 1):
        following = trace[position + 1].index
        if trace[position].taken and following <= trace[position].index:
            heads.setdefault(following, [])
    for position, executed in enumerate(trace):
        if executed.index in heads:
            heads[executed.index].append(position)
    best: list[int] = []
    for positions in heads.values():
        if len(positions) < _MIN_ITERATIONS:
            continue
        span = positions[-1] - positions[0]
        best_span = best[-1] - best[0] if best else 0
        longer = span / len(positions) > (best_span / len(best) if best else 0)
        if span > 1.1 * best_span or (span > 0.9 * best_span and longer):
            best = positions
    if not best:
        raise NoLoop(f"{code.name}: no loop was executed {_MIN_ITERATIONS} times")
    return best


def is_byte_access(one: Instruction) -> bool:
    return one.opcode in GLOBAL_MEMORY and one.width == 1


def _branches(code: Code, trace: Sequence[Executed]) -> Counter[str]:
    """Taken branches, but for those whose predicate an mbarrier's test has just set."""
    taken: Counter[str] = Counter()
    waited: set[str] = set()
    for executed in trace:
        one = code.instructions[executed.index]
        if one.opcode == "SYNCS" and executed.active:
            waited.update(each for each in one.operands if re.fullmatch(r"U?P\d", each))
        elif executed.taken:
            conditions = {one.guard, *(each.lstrip("!") for each in one.operands)}
            if not waited & conditions:
                taken[f"{one.address:#x} {one.text}"] += 1
        elif executed.active and one.operands and one.operands[0] in waited:
            waited.discard(one.operands[0])
    return taken


def measure(
    code: Code,
    trace: Sequence[Executed],
    *,
    finished: bool,
    steps: int | None = None,
    gigahertz: float = GIGAHERTZ,
    ahead: bool = False,
) -> Step:
    """The step of a trace.

    Args:
        finished: whether the trace goes to the thread's end.
        steps: of the whole launch, for a loop that takes several in an iteration, or several
            iterations for one: groups of sequences, whose work hides their exchange.
        ahead: what the step loads of other blocks they stored some steps ago: layers of a stack.
    """
    starts = iterations_of(code, trace)
    share = steps / len(starts) if finished and steps else 1
    each, turns = max(1, round(share)), max(1, round(1 / share))
    starts = starts[::turns]
    # Iterations in the middle: neither the first loads nor the last step's
    first = len(starts) // 2
    count = min(4, len(starts) - 1 - first)
    begin, end = starts[first], starts[first + count]
    steady = trace[begin:end]
    divisor = count * each

    counted: Counter[str] = Counter()
    byte_accesses = 0
    for executed in steady:
        one = code.instructions[executed.index]
        if executed.active:
            counted[one.opcode] += 1
            byte_accesses += is_byte_access(one)
    once = trace[begin : starts[first + 1]]
    lines = {code.instructions[e.index].address // LINE_BYTES for e in once}

    alone = time_trace(code, once)
    exchange = sum({exchange_of(code.instructions[e.index], ahead) for e in once if e.active})
    # Timed with the iteration before them, whose loads they wait for
    lead = starts[first - 1]
    inside = frozenset(start - lead for start in starts[first - 1 : first + count])
    timed = time_trace(code, trace[lead:end], steps=inside, ahead=ahead)
    in_flight = timed.end - timed.reached[begin - lead] - count * exchange
    distances = distances_to_use(code, trace[lead:end], inside, ahead)
    branches = _branches(code, steady)
    waits = Counter[str]()
    for executed, waited in zip(steady, timed.waited[begin - lead :], strict=True):
        one = code.instructions[executed.index]
        waits[f"{one.address:#x} {one.text}"] += waited
    return Step(
        instructions=len(steady) / divisor,
        code_bytes=len(lines) * LINE_BYTES,
        cycles=alone.end / each,
        late_cycles=max(0.0, in_flight / divisor - alone.end / each),
        exchange_cycles=exchange if turns == 1 else 0,
        prologue_cycles=time_trace(code, trace[: starts[0]]).end,
        taken_branches=(branches.total() - count * turns) / divisor,
        byte_accesses=byte_accesses / divisor,
        fences=counted["MEMBAR"] / divisor,
        local_accesses=sum(counted[opcode] for opcode in LOCAL_MEMORY) / divisor,
        barriers=sum(counted[opcode] for opcode in BARRIERS) / divisor,
        least_distance=min(distances.values(), default=None),
        opcodes=counted,
        waits=tuple((n / divisor, text) for text, n in waits.most_common(12) if n),
        branches=tuple(branches),
        gigahertz=gigahertz,
    )


@dataclass(frozen=True)
class Listing:
    """What a kernel's code has, executed or not."""

    local_accesses: int
    """Anywhere: registers that have been spilled, or arrays that are not in registers."""
    fences: int
    """In the loop over time."""
    byte_loads: int
    """There too; masks are of bytes."""
    byte_stores: int


def _successors(code: Code, index: int) -> tuple[int, ...]:
    one = code.instructions[index]
    following = (index + 1,) if index + 1 < len(code.instructions) else ()
    target = code.labels.get(one.target or "")
    conditional = one.guard is not None or bool(one.operands[:-1]) or "DIV" in one.modifiers
    if one.opcode in ("EXIT", "RET"):
        return following if one.guard else ()
    if one.opcode in ("BRA", "JMP") and target is not None:
        return (target, *following) if conditional else (target,)
    return following


def _loops(code: Code) -> list[set[int]]:
    """The strongly connected parts of the control flow, by Tarjan's algorithm."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found = []
    for root in range(len(code.instructions)):
        if root in order:
            continue
        pending = [(root, iter(_successors(code, root)))]
        while pending:
            node, successors = pending[-1]
            if node not in order:
                order[node] = low[node] = len(order)
                stack.append(node)
                on_stack.add(node)
            for following in successors:
                if following not in order:
                    pending.append((following, iter(_successors(code, following))))
                    break
                if following in on_stack:
                    low[node] = min(low[node], order[following])
            else:
                pending.pop()
                if pending:
                    low[pending[-1][0]] = min(low[pending[-1][0]], low[node])
                if low[node] == order[node]:
                    at = stack.index(node)
                    found.append(set(stack[at:]))
                    on_stack.difference_update(stack[at:])
                    del stack[at:]
    return found


def _with_calls(code: Code, loop: set[int]) -> set[int]:
    """A loop, and the subroutines that are called from it."""
    reached = set(loop)
    calls = [
        code.labels[one.target]
        for one in map(code.instructions.__getitem__, loop)
        if one.opcode == "CALL" and one.target in code.labels
    ]
    while calls:
        index = calls.pop()
        if index in reached:
            continue
        reached.add(index)
        calls += _successors(code, index)
        one = code.instructions[index]
        if one.opcode == "CALL" and one.target in code.labels:
            calls.append(code.labels[one.target])
    return reached


def loop_over_time(code: Code) -> list[Instruction] | None:
    """The largest loop with tensor cores' products and a barrier; None where a kernel has none."""
    best: set[int] = set()
    for loop in (_with_calls(code, loop) for loop in _loops(code) if len(loop) > 1):
        opcodes = {code.instructions[i].opcode for i in loop}
        if opcodes & {*BARRIERS, "SYNCS"} and opcodes & {"HMMA", "HGMMA"}:
            best = max(best, loop, key=len)
    return [code.instructions[i] for i in sorted(best)] or None


def listing(code: Code) -> Listing | None:
    """None where the kernel has no loop over time."""
    loop = loop_over_time(code)
    if loop is None:
        return None
    loads = sum(is_byte_access(one) and one.opcode.startswith("LD") for one in loop)
    return Listing(
        sum(one.opcode in LOCAL_MEMORY for one in code.instructions),
        sum(one.opcode == "MEMBAR" for one in loop),
        loads,
        sum(map(is_byte_access, loop)) - loads,
    )
