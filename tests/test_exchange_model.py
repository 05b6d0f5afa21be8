"""The protocols by which blocks of the persistent kernels exchange operands, in all orders.

A protocol is a start and the steps that can follow a state; `explore` visits all states that any
order of steps reaches. It proves, for a few blocks, warps and versions, that no reader takes data
of a version that it does not await, that nothing is overwritten which a warp has yet to read, and
that no order of events ends in a wait for ever. Each protocol is also given faults, which must be
found.

A state has the place of each warp; the version of each word of data, which the kernels do not know;
and the phase bits and barriers by which they tell versions apart. Memory is as follows:

    grid     A relaxed load returns any value of its word that is not older than what this warp has
             loaded from it before, however long ago it was replaced. Words are in no order. Since a
             load may return an old value, the loads of all words of one pass of `receive` are one
             step, and passes that find nothing new are none.
    cluster  What store_async stores arrives, with its bytes at the barrier, at any time later, in
             no order. So a warp may send in the very step in which it reads.
    block    Shared memory is in order. A step that reads all parts of an operand may come at any
             time: if a part is overwritten during the reading, there is such a step that sees it.

Not modelled: arithmetic, addresses and sizes, the lanes of a warp, launches, and the cluster's
barriers at the start and at the end. tests/emulator watches those in the kernels themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import pytest

NOTHING = -1  # version of memory that has not been written


class Violation(Exception):
    pass


Steps = Iterator[tuple[str, Any]]  # what happens, the state after it


class Model(Protocol):
    def start(self) -> Any: ...
    def steps(self, state: Any) -> Steps: ...
    def done(self, state: Any) -> bool: ...


def explore(model: Model) -> int:
    """The number of states that can be reached. Raises Violation, with the shortest history."""
    start = model.start()
    came_from: dict[Any, tuple[Any, str] | None] = {start: None}

    def history(state: Any) -> str:
        events = []
        while (before := came_from[state]) is not None:
            state, event = before
            events.append(event)
        return "\n".join(reversed(events))

    layer = [start]
    while layer:
        following = []
        for state in layer:
            stuck = True
            try:
                for event, after in model.steps(state):
                    stuck = False
                    if after not in came_from:
                        came_from[after] = (state, event)
                        following.append(after)
            except Violation as violation:
                raise Violation(f"{violation}, after\n{history(state)}") from None
            if stuck and not model.done(state):
                raise Violation(f"waits for ever, after\n{history(state)}")
        layer = following
    return len(came_from)


def put(nested: tuple, value: Any, at: int, *path: int) -> tuple:
    """`nested` with `value` at nested[at][path[0]] .."""
    if path:
        value = put(nested[at], value, *path)
    return (*nested[:at], value, *nested[at + 1 :])


def filled(value: Any, *shape: int) -> Any:
    """A nested tuple of that shape."""
    for size in reversed(shape):
        value = (value,) * size
    return value


def await_version(version: int, versions: Iterable[int], what: str) -> None:
    found = list(versions)
    if any(its != version for its in found):
        raise Violation(f"{what} of version {version} reads {sorted(set(found))}")


class Warp(NamedTuple):
    version: int  # its iteration
    place: str  # what it does next


# The grid: exchange.h, grid_forward.h.


class GridState(NamedTuple):
    warps: tuple[tuple[Warp, ...], ...]  # [block][warp]
    words: tuple  # [block][warp][buffer]: the versions that its word had, one after the other
    views: tuple  # [block][warp][block][warp][buffer]: which of them the first one has seen last
    partials: tuple  # [block][buffer][warp]


def phase_of(version: int) -> bool:
    return (version - 1) // 2 % 2 == 0


def load_words(
    words: list[tuple[int, ...]], views: list[int], has_phase: Callable[[int], bool]
) -> Iterator[tuple[list[int], list[int] | None]]:
    """What a pass of `receive` may see of words that had those versions: the views after it, and
    the versions, or None if a word does not have the phase. A pass that sees nothing new is left
    out."""
    choices = []
    for at, (versions, view) in enumerate(zip(words, views, strict=True)):
        choices.append([i for i in range(view, len(versions)) if has_phase(versions[i])])
        for i in range(view + 1, len(versions)):
            if i not in choices[-1]:
                yield [*views[:at], i, *views[at + 1 :]], None
    for after in itertools.product(*choices):
        yield list(after), [versions[i] for versions, i in zip(words, after, strict=True)]


@dataclass(frozen=True)
class Grid:
    """Iteration v of a warp: receives its words of version v, which it multiplies into its partial
    sums; meets the block's other warps; adds up the sums of all warps, and stores a word of version
    v + 1. Version 0 needs no exchange."""

    blocks: int
    warps: int
    versions: int  # that are exchanged: one iteration less than the kernel's
    split: bool = False  # warp w reads the words of blocks w, w + warps, .. alone, not of all
    buffers: int = 2
    phase: Callable[[int], bool] = phase_of
    launch_phase: bool = False  # of the words at the launch: zero
    barrier: str = "before the store"  # "after the store", "never"
    partial_buffers: int = 2
    second_barrier: bool = False  # after the store, too, as grid_forward.h with one partial buffer

    def start(self) -> GridState:
        shape = self.blocks, self.warps
        return GridState(
            filled(Warp(0, "receive"), *shape),
            filled((0,), *shape, self.buffers),  # the version of what no warp has stored
            filled(0, *shape, *shape, self.buffers),
            filled(NOTHING, self.blocks, self.partial_buffers, self.warps),
        )

    def done(self, state: GridState) -> bool:
        return all(place == "done" for block in state.warps for _, place in block)

    def steps(self, state: GridState) -> Steps:
        for block, warp in itertools.product(range(self.blocks), range(self.warps)):
            version, place = state.warps[block][warp]
            if place == "receive":
                yield from self.receive(state, block, warp, version)
            elif place == "store":
                yield from self.store(state, block, warp, version)
        for block, its in enumerate(state.warps):  # barriers of a block's threads
            if len(set(its)) == 1 and its[0].place in ("barrier", "second barrier"):
                version, place = its[0]
                after = self.after_barrier(version) if place == "barrier" else self.next(version)
                all_after = filled(after, self.warps)
                yield (
                    f"block {block} meets",
                    state._replace(warps=put(state.warps, all_after, block)),
                )

    def next(self, version: int) -> Warp:
        return Warp(version + 1, "receive") if version < self.versions else Warp(version, "done")

    def after_barrier(self, version: int) -> Warp:
        return self.next(version) if self.barrier == "after the store" else Warp(version, "store")

    def phase_in(self, version: int) -> bool:
        return self.launch_phase if version == 0 else self.phase(version)

    def receive(self, state: GridState, block: int, warp: int, version: int) -> Steps:
        name, buffer = f"block {block} warp {warp}", version % self.buffers
        blocks = range(warp, self.blocks, self.warps) if self.split else range(self.blocks)
        sources = list(itertools.product(blocks, range(self.warps))) if version > 0 else []
        seen = state.views[block][warp]
        for loaded, found in load_words(
            [state.words[source][other][buffer] for source, other in sources],
            [seen[source][other][buffer] for source, other in sources],
            lambda v: self.phase_in(v) == self.phase(version),
        ):
            views = state.views
            for (source, other), view in zip(sources, loaded, strict=True):
                views = put(views, view, block, warp, source, other, buffer)
            if found is None:
                yield f"{name} sees another version", state._replace(views=views)
                continue
            await_version(version, found, f"{name}: receive")
            after = "barrier" if self.barrier == "before the store" else "store"
            partials_at = block, version % self.partial_buffers, warp
            yield (
                f"{name} receives version {version}",
                state._replace(
                    warps=put(state.warps, Warp(version, after), block, warp),
                    views=views,
                    partials=put(state.partials, version, *partials_at),
                ),
            )

    def store(self, state: GridState, block: int, warp: int, version: int) -> Steps:
        name = f"block {block} warp {warp}"
        if self.barrier == "before the store":  # else its sums are nonsense in any case
            sums = state.partials[block][version % self.partial_buffers]
            await_version(version, sums, f"{name}: the sum of partials")
        words = state.words
        if version < self.versions:
            buffer = (version + 1) % self.buffers
            values = (*words[block][warp][buffer], version + 1)
            words = put(words, values, block, warp, buffer)
        after = self.next(version)
        if self.second_barrier:
            after = Warp(version, "second barrier")
        elif self.barrier == "after the store":
            after = Warp(version, "barrier")
        warps = put(state.warps, after, block, warp)
        yield f"{name} stores version {version + 1}", state._replace(warps=warps, words=words)


# The cluster: forward.h, backward.h; a barrier in shared memory as PTX's mbarrier.


class Barrier(NamedTuple):
    phases: int = 0  # that have ended
    arrived: bool = False  # its one arrival of this phase
    bytes: int = 0  # announced less those that have come: of these some may be early

    def expect(self, announced: int) -> Barrier:
        if self.arrived:
            raise Violation("a second arrival in one phase")
        return self._replace(arrived=True, bytes=self.bytes + announced).ended()

    def come(self) -> Barrier:
        return self._replace(bytes=self.bytes - 1).ended()

    def ended(self) -> Barrier:
        return Barrier(self.phases + 1) if self.arrived and self.bytes == 0 else self

    def lets_pass(self, parity: int) -> bool:
        return self.phases % 2 != parity


def parity_of(version: int, buffers: int) -> int:
    return (version - 1) // buffers % 2  # versions 1 .. buffers: the first phase


class ForwardState(NamedTuple):
    warps: tuple[tuple[Warp, ...], ...]  # [block][warp]
    operand: tuple  # [block][buffer][source block][source warp]
    barriers: tuple[tuple[Barrier, ...], ...]  # [block][buffer]
    sent: frozenset[tuple[int, int, int, int]]  # to block, source block, source warp, version


@dataclass(frozen=True)
class ClusterForward:
    """Iteration v of a warp: multiplies all of version v of the operand, sends its part of version
    v + 1 to every block, waits for version v + 1. Warp 0 then arms the barrier for v + 3."""

    blocks: int
    warps: int
    versions: int  # that are exchanged
    idle: bool = False  # whether the last warp of the last block has no rows, and leaves
    idle_reads: bool = False  # whether it takes part nevertheless
    buffers: int = 2
    rearms: bool = True
    miscounted: int = 0  # parts that are announced beyond those sent

    def has_rows(self, block: int, warp: int) -> bool:
        return not (self.idle and (block, warp) == (self.blocks - 1, self.warps - 1))

    def parts(self) -> list[tuple[int, int]]:
        everyone = itertools.product(range(self.blocks), range(self.warps))
        return [its for its in everyone if self.has_rows(*its)]

    def announced(self) -> int:
        return len(self.parts()) + self.miscounted

    def start(self) -> ForwardState:
        warps = filled(Warp(0, "multiply"), self.blocks, self.warps)
        if self.idle and not self.idle_reads:
            warps = put(warps, Warp(0, "done"), self.blocks - 1, self.warps - 1)
        operand = filled(NOTHING, self.blocks, self.buffers, self.blocks, self.warps)
        initial = filled(0, self.blocks, self.warps)
        for block in range(self.blocks):
            operand = put(operand, initial, block, 0)
        armed = Barrier().expect(self.announced())
        return ForwardState(warps, operand, filled(armed, self.blocks, self.buffers), frozenset())

    def done(self, state: ForwardState) -> bool:
        return not state.sent and all(its.place == "done" for block in state.warps for its in block)

    def steps(self, state: ForwardState) -> Steps:
        for block, warp in itertools.product(range(self.blocks), range(self.warps)):
            version, place = state.warps[block][warp]
            if place == "multiply":
                yield self.multiply(state, block, warp, version)
            elif place == "wait":  # for the version of the next iteration
                barrier = state.barriers[block][version % self.buffers]
                if barrier.lets_pass(parity_of(version, self.buffers)):
                    after = Warp(version, "expect" if warp == 0 and self.rearms else "multiply")
                    event = f"block {block} warp {warp} has waited for version {version}"
                    yield event, state._replace(warps=put(state.warps, after, block, warp))
            elif place == "expect":
                buffer = version % self.buffers
                barrier = state.barriers[block][buffer].expect(self.announced())
                yield (
                    f"block {block} arms the barrier of buffer {buffer}",
                    state._replace(
                        warps=put(state.warps, Warp(version, "multiply"), block, warp),
                        barriers=put(state.barriers, barrier, block, buffer),
                    ),
                )
        for part in sorted(state.sent):
            yield self.arrive(state, part)

    def multiply(
        self, state: ForwardState, block: int, warp: int, version: int
    ) -> tuple[str, ForwardState]:
        operand = state.operand[block][version % self.buffers]
        found = [operand[source][other] for source, other in self.parts()]
        await_version(version, found, f"block {block} warp {warp}: the operand")
        sent, after = state.sent, Warp(version, "done")
        if version < self.versions:
            after = Warp(version + 1, "wait")
            if self.has_rows(block, warp):
                sent |= {(to, block, warp, version + 1) for to in range(self.blocks)}
        warps = put(state.warps, after, block, warp)
        event = f"block {block} warp {warp} multiplies version {version} and sends the next"
        return event, state._replace(warps=warps, sent=sent)

    def arrive(
        self, state: ForwardState, part: tuple[int, int, int, int]
    ) -> tuple[str, ForwardState]:
        to, source, warp, version = part
        buffer = version % self.buffers
        return (
            f"version {version} of block {source} warp {warp} comes to block {to}",
            state._replace(
                operand=put(state.operand, version, to, buffer, source, warp),
                barriers=put(state.barriers, state.barriers[to][buffer].come(), to, buffer),
                sent=state.sent - {part},
            ),
        )


class BackwardState(NamedTuple):
    warps: tuple[tuple[Warp, ...], ...]  # [block][warp]
    operand: tuple  # [block][buffer][warp]: what the threads of that warp have stored
    received: tuple  # [block][buffer][source block]
    barriers: tuple[tuple[Barrier, ...], ...]  # [block][buffer]
    sent: frozenset[tuple[int, int, int]]  # to block, source block, version


@dataclass(frozen=True)
class ClusterBackward:
    """Iteration v of a warp: stores its part of version v of the block's operand; meets the block's
    other warps; multiplies the operand, and sends the sums of its rows to the blocks that own them;
    waits for the sums of version v from all blocks, whereupon warp 0 arms the barrier for v + 2;
    reads them."""

    blocks: int
    warps: int  # warp w has the rows of blocks w, w + warps, .., if there are any
    versions: int
    operands: int = 2  # buffers
    buffers: int = 2  # of sums received
    barrier: bool = True
    rearms: bool = True

    def start(self) -> BackwardState:
        return BackwardState(
            filled(Warp(1, "store"), self.blocks, self.warps),
            filled(NOTHING, self.blocks, self.operands, self.warps),
            filled(NOTHING, self.blocks, self.buffers, self.blocks),
            filled(Barrier().expect(self.blocks), self.blocks, self.buffers),
            frozenset(),
        )

    def done(self, state: BackwardState) -> bool:
        return not state.sent and all(its.place == "done" for block in state.warps for its in block)

    def steps(self, state: BackwardState) -> Steps:
        for block, warp in itertools.product(range(self.blocks), range(self.warps)):
            its = state.warps[block][warp]
            if its.place not in ("barrier", "done"):
                yield from getattr(self, its.place)(state, block, warp, its.version)
        for block, warps in enumerate(state.warps):
            if {warp.place for warp in warps} == {"barrier"}:
                after = tuple(Warp(warp.version, "multiply") for warp in warps)
                yield f"block {block} meets", state._replace(warps=put(state.warps, after, block))
        for part in sorted(state.sent):
            to, source, version = part
            buffer = version % self.buffers
            yield (
                f"the sums of version {version} of block {source} come to block {to}",
                state._replace(
                    received=put(state.received, version, to, buffer, source),
                    barriers=put(state.barriers, state.barriers[to][buffer].come(), to, buffer),
                    sent=state.sent - {part},
                ),
            )

    def store(self, state: BackwardState, block: int, warp: int, version: int) -> Steps:
        operand = put(state.operand, version, block, version % self.operands, warp)
        after = Warp(version, "barrier" if self.barrier else "multiply")
        warps = put(state.warps, after, block, warp)
        event = f"block {block} warp {warp} stores its operand of version {version}"
        yield event, state._replace(warps=warps, operand=operand)

    def multiply(self, state: BackwardState, block: int, warp: int, version: int) -> Steps:
        name = f"block {block} warp {warp}"
        operand = state.operand[block][version % self.operands]
        await_version(version, operand, f"{name}: the operand")
        sums = {(to, block, version) for to in range(warp, self.blocks, self.warps)}
        warps = put(state.warps, Warp(version, "wait"), block, warp)
        event = f"{name} multiplies version {version} and sends its sums"
        yield event, state._replace(warps=warps, sent=state.sent | sums)

    def wait(self, state: BackwardState, block: int, warp: int, version: int) -> Steps:
        barrier = state.barriers[block][version % self.buffers]
        if barrier.lets_pass(parity_of(version, self.buffers)):
            after = Warp(version, "expect" if warp == 0 and self.rearms else "read")
            event = f"block {block} warp {warp} has waited for the sums of version {version}"
            yield event, state._replace(warps=put(state.warps, after, block, warp))

    def expect(self, state: BackwardState, block: int, warp: int, version: int) -> Steps:
        buffer = version % self.buffers
        barrier = state.barriers[block][buffer].expect(self.blocks)
        barriers = put(state.barriers, barrier, block, buffer)
        warps = put(state.warps, Warp(version, "read"), block, warp)
        event = f"block {block} arms the barrier of buffer {buffer}"
        yield event, state._replace(warps=warps, barriers=barriers)

    def read(self, state: BackwardState, block: int, warp: int, version: int) -> Steps:
        name, received = f"block {block} warp {warp}", state.received[block]
        await_version(version, received[version % self.buffers], f"{name}: the sums")
        more = version < self.versions
        after = Warp(version + 1, "store") if more else Warp(version, "done")
        warps = put(state.warps, after, block, warp)
        yield f"{name} reads the sums of version {version}", state._replace(warps=warps)


# Backward on the grid: grid_backward.h.


class GridBackwardState(NamedTuple):
    warps: tuple[tuple[Warp, ...], ...]  # [block][warp]
    words: tuple  # [block][warp][gate][buffer]: the versions that its words had
    views: tuple  # [block][warp][block][warp][buffer], of the words of the first block's gate
    partials: tuple  # [block][buffer][warp]
    received: tuple  # [block][buffer][gate]
    barriers: tuple[tuple[Barrier, ...], ...]  # [block][buffer]
    sent: frozenset[tuple[int, int, int]]  # to block, from gate, version


@dataclass(frozen=True)
class GridBackward:
    """Iteration v of a warp of the block of gate g: stores its words of version v of all gates;
    receives those of gate g from blocks w, w + warps, ..; meets the block's other warps; adds up
    the partial sums of all warps for blocks w, w + warps, .. of its cluster, and sends them; waits
    for the sums of all gates, whereupon warp 0 arms the barrier for v + 2; reads them."""

    clusters: int
    gates: int  # blocks of a cluster
    warps: int
    versions: int
    words: int = 2  # buffers
    phase: Callable[[int], bool] = phase_of
    partial_buffers: int = 2
    second_barrier: bool = False  # after the sums are sent
    buffers: int = 2  # of sums received
    barrier: bool = True
    rearms: bool = True

    def start(self) -> GridBackwardState:
        shape = self.clusters * self.gates, self.warps
        armed = Barrier().expect(self.gates)
        return GridBackwardState(
            filled(Warp(1, "store"), *shape),
            filled((0,), *shape, self.gates, self.words),
            filled(0, *shape, *shape, self.words),
            filled(NOTHING, shape[0], self.partial_buffers, self.warps),
            filled(NOTHING, shape[0], self.buffers, self.gates),
            filled(armed, shape[0], self.buffers),
            frozenset(),
        )

    def done(self, state: GridBackwardState) -> bool:
        return not state.sent and all(its.place == "done" for block in state.warps for its in block)

    def steps(self, state: GridBackwardState) -> Steps:
        for block, warp in itertools.product(range(len(state.warps)), range(self.warps)):
            its = state.warps[block][warp]
            if its.place not in ("barrier", "second barrier", "done"):
                yield from getattr(self, its.place)(state, block, warp, its.version)
        for block, warps in enumerate(state.warps):
            for place, following in ("barrier", "send"), ("second barrier", "wait"):
                if {warp.place for warp in warps} == {place}:
                    after = tuple(Warp(warp.version, following) for warp in warps)
                    all_after = put(state.warps, after, block)
                    yield f"block {block} meets", state._replace(warps=all_after)
        for part in sorted(state.sent):
            to, gate, version = part
            buffer = version % self.buffers
            yield (
                f"the sums of version {version} of gate {gate} come to block {to}",
                state._replace(
                    received=put(state.received, version, to, buffer, gate),
                    barriers=put(state.barriers, state.barriers[to][buffer].come(), to, buffer),
                    sent=state.sent - {part},
                ),
            )

    def store(self, state: GridBackwardState, block: int, warp: int, version: int) -> Steps:
        words, buffer = state.words, version % self.words
        for gate in range(self.gates):
            versions = (*words[block][warp][gate][buffer], version)
            words = put(words, versions, block, warp, gate, buffer)
        warps = put(state.warps, Warp(version, "receive"), block, warp)
        event = f"block {block} warp {warp} stores version {version}"
        yield event, state._replace(warps=warps, words=words)

    def receive(self, state: GridBackwardState, block: int, warp: int, version: int) -> Steps:
        name, buffer = f"block {block} warp {warp}", version % self.words
        blocks = range(warp, len(state.warps), self.warps)
        sources = list(itertools.product(blocks, range(self.warps)))
        seen = state.views[block][warp]
        for loaded, found in load_words(
            [state.words[source][other][block % self.gates][buffer] for source, other in sources],
            [seen[source][other][buffer] for source, other in sources],
            lambda v: (v > 0 and self.phase(v)) == self.phase(version),
        ):
            views = state.views
            for (source, other), view in zip(sources, loaded, strict=True):
                views = put(views, view, block, warp, source, other, buffer)
            if found is None:
                yield f"{name} sees another version", state._replace(views=views)
                continue
            await_version(version, found, f"{name}: receive")
            after = Warp(version, "barrier" if self.barrier else "send")
            partials_at = block, version % self.partial_buffers, warp
            yield (
                f"{name} receives version {version}",
                state._replace(
                    warps=put(state.warps, after, block, warp),
                    views=views,
                    partials=put(state.partials, version, *partials_at),
                ),
            )

    def send(self, state: GridBackwardState, block: int, warp: int, version: int) -> Steps:
        name = f"block {block} warp {warp}"
        partials = state.partials[block][version % self.partial_buffers]
        await_version(version, partials, f"{name}: the sum of partials")
        cluster, gate = block // self.gates * self.gates, block % self.gates
        sent = {(cluster + to, gate, version) for to in range(warp, self.gates, self.warps)}
        after = Warp(version, "second barrier" if self.second_barrier else "wait")
        warps = put(state.warps, after, block, warp)
        event = f"{name} sends its sums of version {version}"
        yield event, state._replace(warps=warps, sent=state.sent | sent)

    def wait(self, state: GridBackwardState, block: int, warp: int, version: int) -> Steps:
        barrier = state.barriers[block][version % self.buffers]
        if barrier.lets_pass(parity_of(version, self.buffers)):
            after = Warp(version, "expect" if warp == 0 and self.rearms else "read")
            event = f"block {block} warp {warp} has waited for the sums of version {version}"
            yield event, state._replace(warps=put(state.warps, after, block, warp))

    def expect(self, state: GridBackwardState, block: int, warp: int, version: int) -> Steps:
        buffer = version % self.buffers
        barrier = state.barriers[block][buffer].expect(self.gates)
        barriers = put(state.barriers, barrier, block, buffer)
        warps = put(state.warps, Warp(version, "read"), block, warp)
        event = f"block {block} arms the barrier of buffer {buffer}"
        yield event, state._replace(warps=warps, barriers=barriers)

    def read(self, state: GridBackwardState, block: int, warp: int, version: int) -> Steps:
        name, received = f"block {block} warp {warp}", state.received[block]
        await_version(version, received[version % self.buffers], f"{name}: the sums")
        warps = put(state.warps, self.next(version), block, warp)
        yield f"{name} reads the sums of version {version}", state._replace(warps=warps)

    def next(self, version: int) -> Warp:
        return Warp(version + 1, "store") if version < self.versions else Warp(version, "done")


# Backward on the grid without clusters: scatter_backward.h; of several groups: batched_backward.h.


class ScatterState(NamedTuple):
    warps: tuple[tuple[Warp, ...], ...]  # [block][warp]; version: the item
    operand: tuple  # [block][buffer][warp]: the item whose part that warp has stored
    words: tuple  # [receiver][sender][group][buffer]: the items that its words came from
    views: tuple  # [block][warp][sender][group][buffer]: which of them the warp has seen last


@dataclass(frozen=True)
class Scatter:
    """Item n of a warp, version v of a group g, groups one after another: stores its part of the
    block's operand; meets the block's other warps; multiplies the operand, and stores the sums of
    its rows for the blocks that own them; receives the sums of item n + 1 - groups from all blocks,
    of the group that is next. That these are loaded ahead is as if a load returned an old value."""

    blocks: int
    warps: int  # warp w has the rows of blocks w, w + warps, .., if there are any
    versions: int
    groups: int = 1
    idle: bool = False  # whether the last warp has no units, and receives nothing
    operands: int = 2  # buffers
    buffers: int = 2  # of sums
    phase: Callable[[int], bool] = phase_of
    launch_phase: bool = False  # of the words at the launch: zero
    barrier: bool = True
    awaits_others: bool = True  # not only the block's own sums
    phase_of_sums: Callable[[int], bool] | None = None  # that the senders give them; None: the same
    group_buffers: int = 0  # that the groups have; 0: each its own
    awaits_next: int = 1  # items ahead, of the group that is received

    def start(self) -> ScatterState:
        buffers = self.group_buffers or self.groups, self.buffers
        return ScatterState(
            filled(Warp(1, "store"), self.blocks, self.warps),
            filled(NOTHING, self.blocks, self.operands, self.warps),
            filled((0,), self.blocks, self.blocks, *buffers),
            filled(0, self.blocks, self.warps, self.blocks, *buffers),
        )

    def group_and_version(self, item: int) -> tuple[int, int]:
        return (item - 1) % self.groups, (item - 1) // self.groups + 1

    def buffer_of(self, item: int) -> tuple[int, int]:
        group, version = self.group_and_version(item)
        return group % (self.group_buffers or self.groups), version % self.buffers

    def done(self, state: ScatterState) -> bool:
        return all(place == "done" for block in state.warps for _, place in block)

    def steps(self, state: ScatterState) -> Steps:
        for block, warp in itertools.product(range(self.blocks), range(self.warps)):
            its = state.warps[block][warp]
            if its.place not in ("barrier", "done"):
                yield from getattr(self, its.place)(state, block, warp, its.version)
        for block, warps in enumerate(state.warps):
            if {warp.place for warp in warps} == {"barrier"}:
                after = tuple(Warp(warp.version, "multiply") for warp in warps)
                yield f"block {block} meets", state._replace(warps=put(state.warps, after, block))

    def store(self, state: ScatterState, block: int, warp: int, version: int) -> Steps:
        operand = put(state.operand, version, block, version % self.operands, warp)
        after = Warp(version, "barrier" if self.barrier else "multiply")
        warps = put(state.warps, after, block, warp)
        event = f"block {block} warp {warp} stores its operand of version {version}"
        yield event, state._replace(warps=warps, operand=operand)

    def multiply(self, state: ScatterState, block: int, warp: int, item: int) -> Steps:
        name = f"block {block} warp {warp}"
        group, buffer = self.buffer_of(item)
        operand = state.operand[block][item % self.operands]
        await_version(item, operand, f"{name}: the operand")
        words = state.words
        for to in range(warp, self.blocks, self.warps):
            sent = (*words[to][block][group][buffer], item)
            words = put(words, sent, to, block, group, buffer)
        after = Warp(item, "receive")
        if self.idle and warp == self.warps - 1:
            after = self.next(item)
        event = f"{name} multiplies item {item} and stores its sums"
        yield event, state._replace(warps=put(state.warps, after, block, warp), words=words)

    def phase_in(self, version: int) -> bool:
        return self.launch_phase if version == 0 else (self.phase_of_sums or self.phase)(version)

    def receive(self, state: ScatterState, block: int, warp: int, item: int) -> Steps:
        name = f"block {block} warp {warp}"
        after = self.next(item)
        sent = item + 1 - self.groups
        if sent < 1:  # before the group's first version
            yield f"{name} goes on", state._replace(warps=put(state.warps, after, block, warp))
            return
        version = self.group_and_version(sent)[1]
        group, buffer = self.buffer_of(sent + self.awaits_next - 1)
        senders = list(range(self.blocks)) if self.awaits_others else [block]
        seen = state.views[block][warp]
        for loaded, found in load_words(
            [state.words[block][sender][group][buffer] for sender in senders],
            [seen[sender][group][buffer] for sender in senders],
            lambda item: self.phase_in(self.group_and_version(item)[1]) == self.phase(version),
        ):
            views = state.views
            for sender, view in zip(senders, loaded, strict=True):
                views = put(views, view, block, warp, sender, group, buffer)
            if found is None:
                yield f"{name} sees another version", state._replace(views=views)
                continue
            for sender in set(range(self.blocks)) - set(senders):
                its = seen[sender][group][buffer]
                found.append(state.words[block][sender][group][buffer][its])
            await_version(sent, found, f"{name}: receive")
            yield (
                f"{name} receives version {version} of group {group}",
                state._replace(warps=put(state.warps, after, block, warp), views=views),
            )

    def next(self, item: int) -> Warp:
        items = self.versions * self.groups
        if item < items:
            return Warp(item + 1, "store")
        # The last sums of all groups
        return Warp(item + 1, "receive") if item + 1 < items + self.groups else Warp(item, "done")


PROTOCOLS: dict[str, Any] = {
    "grid": Grid(blocks=2, warps=2, versions=9),
    "grid, a warp reads one block": Grid(blocks=2, warps=2, versions=9, split=True),
    "grid of 3 blocks": Grid(blocks=3, warps=2, versions=5),
    "grid of 4 blocks of a warp": Grid(blocks=4, warps=1, versions=9),
    "grid, one buffer of partials": Grid(
        blocks=2, warps=2, versions=9, split=True, partial_buffers=1, second_barrier=True
    ),
    "cluster": ClusterForward(blocks=2, warps=2, versions=6),
    "cluster with an idle warp": ClusterForward(blocks=2, warps=2, versions=6, idle=True),
    "cluster of 3 blocks": ClusterForward(blocks=3, warps=1, versions=5),
    "cluster backward": ClusterBackward(blocks=2, warps=2, versions=6),
    "cluster backward with idle warps": ClusterBackward(blocks=2, warps=3, versions=5),
    "cluster of 3 blocks backward": ClusterBackward(blocks=3, warps=2, versions=2),
    "cluster of 3 blocks of a warp backward": ClusterBackward(blocks=3, warps=1, versions=5),
    "grid backward, 2 clusters of 2": GridBackward(clusters=2, gates=2, warps=1, versions=6),
    "grid backward, a cluster": GridBackward(clusters=1, gates=2, warps=2, versions=6),
    "grid backward, clusters of 1": GridBackward(clusters=2, gates=1, warps=2, versions=6),
    "grid backward, one buffer of partials": GridBackward(
        clusters=1, gates=2, warps=2, versions=6, partial_buffers=1, second_barrier=True
    ),
    # More than the kernel relies on: a block sends sums when all blocks have read those before.
    "grid backward, one buffer of sums": GridBackward(
        clusters=1, gates=2, warps=2, versions=6, buffers=1
    ),
}

PROTOCOLS |= {
    "scatter": Scatter(blocks=2, warps=2, versions=9),
    "scatter, a warp without units": Scatter(blocks=2, warps=2, versions=7, idle=True),
    "scatter, a warp without rows": Scatter(blocks=2, warps=3, versions=5),
    "scatter of 3 blocks": Scatter(blocks=3, warps=2, versions=5),
    "scatter of 4 blocks of a warp": Scatter(blocks=4, warps=1, versions=7),
    "scatter of a block": Scatter(blocks=1, warps=3, versions=7),
    "scatter of 2 groups": Scatter(blocks=2, warps=2, versions=5, groups=2),
    "scatter of 3 groups": Scatter(blocks=2, warps=1, versions=6, groups=3),
    "scatter of 2 groups, 3 blocks": Scatter(blocks=3, warps=1, versions=5, groups=2),
    "scatter of 2 groups, a block": Scatter(blocks=1, warps=3, versions=5, groups=2),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_no_order_of_events_breaks(name):
    explore(PROTOCOLS[name])


def alternating(version: int) -> bool:
    return version % 2 == 1


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    # The grid. In one buffer versions 1 and 2 have one phase
    "one buffer": ("grid", {"buffers": 1}, "receive of version 2 reads"),
    # and with a phase that differs, a block that is ahead replaces what another has yet to read.
    "one buffer, phases alternate": ("grid", {"buffers": 1, "phase": alternating}, "for ever"),
    # Version 2 has the phase of zero words, or version 3 that of version 1.
    "phases alternate": ("grid", {"phase": alternating}, r"receive of version 2 reads \[0\]"),
    "one phase": ("grid", {"phase": lambda version: True}, r"receive of version 3 reads \[1\]"),
    "words are not zero": ("grid", {"launch_phase": True}, "receive of version 1 reads"),
    "the phase of zero is the first one's": (
        "grid",
        {"phase": lambda version: not phase_of(version)},
        "receive of version 1 reads",
    ),
    "no barrier of the block": ("grid, a warp reads one block", {"barrier": "never"}, "for ever"),
    "a warp stores when it alone has received": (
        "grid, a warp reads one block",
        {"barrier": "after the store"},
        "for ever",
    ),
    "one buffer of partials and one barrier": (
        "grid, a warp reads one block",
        {"partial_buffers": 1},
        "the sum of partials",
    ),
    # The cluster.
    "an idle warp reads": ("cluster with an idle warp", {"idle_reads": True}, "the operand of"),
    "one operand": ("cluster", {"buffers": 1}, "the operand of version"),
    "the barrier is not armed again": ("cluster", {"rearms": False}, "for ever"),
    "too few bytes are announced": ("cluster", {"miscounted": -1}, "the operand of version"),
    "too many bytes are announced": ("cluster", {"miscounted": 1}, "for ever"),
    "one operand backward": ("cluster backward", {"operands": 1}, "the operand of version"),
    "one buffer of sums": ("cluster backward", {"buffers": 1}, "the sums of version"),
    "no barrier of the block backward": ("cluster backward", {"barrier": False}, "the operand of"),
    "the barrier is not armed again backward": ("cluster backward", {"rearms": False}, "for ever"),
    # Backward on the grid.
    "one buffer of words": ("grid backward, a cluster", {"words": 1}, "receive of version 2"),
    "phases alternate backward": (
        "grid backward, a cluster",
        {"phase": alternating},
        "receive of version 2",
    ),
    "no barrier on the grid backward": (
        "grid backward, a cluster",
        {"barrier": False},
        "the sum of partials",
    ),
    "one buffer of partials on the grid backward": (
        "grid backward, clusters of 1",
        {"partial_buffers": 1},
        "the sum of partials",
    ),
    "the barrier is not armed again on the grid": (
        "grid backward, a cluster",
        {"rearms": False},
        "for ever",
    ),
    # Backward on the grid without clusters.
    "one buffer of scattered sums": ("scatter", {"buffers": 1}, "receive of version 2 reads"),
    "one buffer of scattered sums, phases alternate": (
        "scatter",
        {"buffers": 1, "phase": alternating},
        "for ever",
    ),
    "phases of scattered sums alternate": (
        "scatter",
        {"phase": alternating},
        r"receive of version 2 reads \[0\]",
    ),
    "one phase of scattered sums": ("scatter", {"phase": lambda version: True}, "receive of vers"),
    "words of scattered sums are not zero": (
        "scatter",
        {"launch_phase": True},
        "receive of version 1 reads",
    ),
    "scattered sums have another phase": (
        "scatter",
        {"phase_of_sums": lambda version: not phase_of(version)},
        "for ever",
    ),
    "one operand of scattered sums": ("scatter", {"operands": 1}, "the operand of version"),
    "no barrier before scattered sums": ("scatter", {"barrier": False}, "the operand of version"),
    "one operand of 2 groups": ("scatter of 2 groups", {"operands": 1}, "the operand of version"),
    "no barrier of 2 groups": ("scatter of 2 groups", {"barrier": False}, "the operand of version"),
    "one buffer of 2 groups' sums": ("scatter of 2 groups", {"buffers": 1}, r"reads \[1, 3\]"),
    "groups share their words": (
        "scatter of 2 groups",
        {"group_buffers": 1},
        r"receive of version 1 reads \[1, 2\]",
    ),
    "the sums of the group after are awaited": (
        "scatter of 2 groups",
        {"awaits_next": 2},
        r"receive of version 1 reads \[2\]",
    ),
    "only the block's own sums are awaited": (
        "scatter",
        {"awaits_others": False},
        r"receive of version 1 reads \[0, 1\]",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name):
    protocol, fault, message = FAULTS[name]
    with pytest.raises(Violation, match=message):
        explore(replace(PROTOCOLS[protocol], **fault))
