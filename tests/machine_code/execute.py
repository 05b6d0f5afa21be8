"""Executes one thread of a kernel: integers, predicates, addresses and branches as the GPU would.

It stands for its warp: a vote is its own predicate, a shuffle its own value. Floating-point values
are approximate, for no branch of a kernel that is to be timed may depend on them; tensor cores
yield zeros. Memory is what the launch's recording has; elsewhere zero.

A wait ends at once. A poll, that is, a strong load which is repeated before the next barrier, is
executed again from its first load with another value until it is not repeated; the failed attempts
are no part of what the thread executed. An mbarrier's phase is always complete.
"""

from __future__ import annotations

import math
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .sass import Code, Instruction

MASK = 0xFFFFFFFF
_POLLED = (0x7FFFFFFF, 0, 0xFFFFFFFF, 0x40004000, 1, 0x80000001)
"""What polls are answered with, in this order: a counter that is high enough, then words with a
phase or a flag in the highest or the lowest bits set, clear, or one of them set."""
_SHARED_BYTES = 1 << 18
_LOCAL_BYTES = 1 << 20
# On the path of one thread and on its addresses
# fmt: off
_NO_EFFECT = frozenset((
    "ACQBULK", "BAR", "BMOV", "BREAK", "BSSY", "BSYNC", "CCTL", "CGAERRBAR", "DEPBAR",
    "ENDCOLLECTIVE", "ERRBAR", "FENCE", "LDGDEPBAR", "LDGSTS", "MEMBAR", "NANOSLEEP", "NOP",
    "PREEXIT", "RED", "REDAS", "REDG", "ST", "STAS", "STG", "UBLKCP", "UCGABAR_ARV",
    "UCGABAR_WAIT", "WARPSYNC", "YIELD",
))
# fmt: on
BARRIERS = frozenset({"BAR", "UCGABAR_WAIT"})
_LONGEST_POLL = 2000  # instructions between a poll's first load and its repetition
_EXIT = -1  # what an instruction returns, instead of an index, at the thread's end

Run = Callable[[], "int | None"]
"""Executes an instruction; returns the index of the next, None for the following one."""
Get = Callable[[], int]
Put = Callable[[int], None]


class UnknownInstruction(Exception):
    """An opcode or an operand that is executed and that this file has no meaning for."""


@dataclass(frozen=True)
class Launch:
    """What a kernel is launched with."""

    grid: int
    block: int
    cluster: int
    shared_memory: int
    parameters: bytes
    regions: Mapping[int, bytes] = field(default_factory=dict)
    """Global memory by address."""


@dataclass(frozen=True)
class Executed:
    """One instruction of a trace."""

    index: int
    active: bool
    """Whether its guard let it have an effect."""
    taken: bool
    """Whether the next one was not the one that follows it."""


def signed(x: int) -> int:
    return x - (1 << 32) if x & 0x80000000 else x


def float_bits(x: float) -> int:
    try:
        return int(struct.unpack("<I", struct.pack("<f", x))[0])
    except OverflowError:
        return 0x7F800000 if x > 0 else 0xFF800000


def bits_float(x: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", x & MASK))[0])


def _half_bits(x: float) -> int:
    try:
        return int(struct.unpack("<H", struct.pack("<e", x))[0])
    except OverflowError:
        return 0x7C00 if x > 0 else 0xFC00


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "LT": lambda x, y: x < y,
    "LE": lambda x, y: x <= y,
    "GT": lambda x, y: x > y,
    "GE": lambda x, y: x >= y,
    "EQ": lambda x, y: x == y,
    "NE": lambda x, y: x != y,
    "T": lambda x, y: True,
    "F": lambda x, y: False,
    "NUM": lambda x, y: True,
    "NAN": lambda x, y: False,
}
_COMBINE: dict[str, Callable[[bool, bool], bool]] = {
    "AND": lambda x, y: x and y,
    "OR": lambda x, y: x or y,
    "XOR": lambda x, y: x != y,
}
_PREDICATE = re.compile(r"!?U?P(T|\d+)")
_FLOAT = re.compile(r"[-+|]*(\d*\.?\d+(e[-+]?\d+)?|INF|QNAN|SNAN)\|?$", re.IGNORECASE)


@dataclass
class _Poll:
    """The thread before the first of the strong loads that may turn out to be a poll."""

    index: int
    length: int
    """Of the trace."""
    files: list[list[int]]
    """Registers and predicates."""
    addresses: set[int]
    """That have been loaded since."""
    attempt: int = 0


class Thread:
    """One thread of a launch, and the trace of what it has executed."""

    def __init__(
        self, code: Code, launch: Launch, parameters_at: int, *, thread: int = 0, block: int = 0
    ) -> None:
        self.code = code
        self.trace: list[Executed] = []
        self.finished = False
        self._launch = launch
        self._thread, self._block = thread, block
        self._registers = [0] * 257  # the last one is written for RZ
        self._uniform = [0] * 257
        self._predicates: list[int] = [False] * 9  # and PT
        self._uniform_predicates: list[int] = [False] * 9
        self._constants = bytearray(parameters_at) + launch.parameters + bytearray(1 << 16)
        dimensions = (launch.block, 1, 1, launch.grid, 1, 1)
        struct.pack_into("<6I", self._constants, 0, *dimensions)
        if parameters_at >= 0x380:  # since 12.0 they lie before the parameters too
            struct.pack_into("<6I", self._constants, 0x360, *dimensions)
        self._shared = bytearray(_SHARED_BYTES)
        self._local = bytearray(_LOCAL_BYTES)
        self._region_starts = sorted(launch.regions)
        self._addresses = {one.address: i for i, one in enumerate(code.instructions)}
        self._compiled: list[tuple[Get | None, bool, Run, bool] | None]
        self._compiled = [None] * len(code.instructions)
        self._executed = [  # of each instruction: skipped, executed, executed and then elsewhere
            (Executed(i, False, False), Executed(i, True, False), Executed(i, True, True))
            for i in range(len(code.instructions))
        ]
        self._poll: _Poll | None = None  # the strong loads since the last barrier

    def run(self, limit: int) -> None:
        """Executes until the thread exits or `limit` instructions are in the trace."""
        index = 0
        trace, compiled, executed = self.trace, self._compiled, self._executed
        while len(trace) < limit:
            entry = compiled[index]
            if entry is None:
                entry = compiled[index] = self._compile(self.code.instructions[index])
            guard, negated, run, is_poll = entry
            if guard is not None and bool(guard()) == negated:
                trace.append(executed[index][0])
                index += 1
                continue
            if is_poll:
                restored = self._begin_poll(index)
                if restored is not None:
                    index = restored
                    continue
            following = run()
            if following is None:
                trace.append(executed[index][1])
                index += 1
            elif following == _EXIT:
                trace.append(executed[index][1])
                self.finished = True
                return
            else:
                trace.append(executed[index][1 + (following != index + 1)])
                index = following

    # Polls

    def _begin_poll(self, index: int) -> int | None:
        """Before a strong load; the index to go on at, if it repeats one that failed."""
        poll, address = self._poll, self._address(self.code.instructions[index].operands[-1])()
        if poll is None or len(self.trace) - poll.length > _LONGEST_POLL:
            files = (self._registers, self._uniform, self._predicates, self._uniform_predicates)
            self._poll = _Poll(index, len(self.trace), [file[:] for file in files], {address})
            return None
        if address not in poll.addresses:
            poll.addresses.add(address)
            return None
        poll.attempt += 1
        if poll.attempt == len(_POLLED):
            raise UnknownInstruction(
                f"{self.code.instructions[index].text}: no value that is known here ends the poll"
            )
        self._registers[:], self._uniform[:] = poll.files[0], poll.files[1]
        self._predicates[:], self._uniform_predicates[:] = poll.files[2], poll.files[3]
        del self.trace[poll.length :]
        poll.addresses.clear()
        return poll.index

    def _end_poll(self) -> None:
        self._poll = None

    # Operands

    def _register(self, name: str) -> tuple[list[int], int]:
        """The file that has it, and its number there; that of RZ is 256."""
        found = re.fullmatch(r"(U?)R(\d+|Z)|(S)RZ", name)
        if not found:
            raise UnknownInstruction(f"the operand {name}")
        file = self._uniform if found[1] else self._registers
        number = 256 if found[2] in ("Z", None) else int(found[2])
        return file, number

    def _get(self, operand: str) -> Get:
        """Reads 32 bits of an integer operand."""
        text, negate, invert, absolute = operand, False, False, False
        while text and text[0] in "-~|":
            negate, invert = negate or text[0] == "-", invert or text[0] == "~"
            absolute = absolute or text[0] == "|"
            text = text[1:]
        text = text.rstrip("|")
        text = re.sub(r"\.(H0_H0|H1_H1|H0|H1|B[0-3]|X\d+|64|U32|F32|ROW|COL)$", "", text)
        if text.startswith("c["):
            read = self._constant(text)
        elif re.match(r"\d|0x", text):
            number = (int(text, 16) if text.startswith("0x") else int(text)) & MASK
            if not (negate or invert or absolute):
                return lambda: number
            read = lambda: number  # noqa: E731
        else:
            file, index = self._register(text)
            read = (lambda: 0) if index == 256 else (lambda: file[index])
        if not (negate or invert or absolute):
            return read

        def modified() -> int:
            x = read()
            if absolute:
                x &= 0x7FFFFFFF
            if invert:
                x = ~x
            return (-x if negate else x) & MASK

        return modified

    def _get64(self, operand: str) -> Get:
        if operand.startswith("c["):
            low = self._constant(operand)
            at = self._constant_offset(operand)
            constants = self._constants
            return lambda: int(struct.unpack_from("<Q", constants, at())[0])
        if re.match(r"-?0x|-?\d", operand):
            low = self._get(operand)
            return lambda: signed(low()) & ((1 << 64) - 1)
        file, index = self._register(operand.lstrip("-~").removesuffix(".64"))
        if index == 256:
            return lambda: 0
        return lambda: file[index] | file[index + 1] << 32

    def _constant_offset(self, operand: str) -> Get:
        found = re.fullmatch(r"c\[(\S+)\]\s*\[(.*)\]", operand)
        if not found:
            raise UnknownInstruction(f"the operand {operand}")
        if found[1] != "0x0":  # constants of the module: none decides a branch
            return lambda: len(self._constants) - 16
        terms = [self._address_term(term) for term in found[2].split("+")]
        if len(terms) == 1:
            return terms[0]
        return lambda: sum(term() for term in terms) & 0xFFFF

    def _constant(self, operand: str) -> Get:
        at, constants = self._constant_offset(operand), self._constants
        return lambda: int(struct.unpack_from("<I", constants, at())[0])

    def _address_term(self, term: str) -> Get:
        negative, term = term.startswith("-"), term.lstrip("-")
        scale = 1
        if found := re.search(r"\.X(\d+)$", term):
            scale, term = int(found[1]), term[: found.start()]
        wide = term.endswith(".64")
        term = term.removesuffix(".64").removesuffix(".U32")
        if re.match(r"0x|\d", term):
            number = int(term, 16)
            return lambda: -number if negative else number
        file, index = self._register(term)
        if index == 256:
            return lambda: 0
        if wide:
            return lambda: file[index] | file[index + 1] << 32
        return lambda: file[index] * scale

    def _address(self, operand: str) -> Get:
        """Of a memory operand: `[R2+0x10]` or `desc[UR4][R2.64+UR6]`."""
        inner = re.search(r"\[([^\[\]]*)\]$", operand)
        if not inner:
            raise UnknownInstruction(f"the address {operand}")
        terms = [self._address_term(term) for term in inner[1].split("+") if term]
        if len(terms) == 1:
            return terms[0]
        if len(terms) == 2:
            first, second = terms
            return lambda: first() + second()
        return lambda: sum(term() for term in terms)

    def _float(self, operand: str) -> Callable[[], float]:
        if _FLOAT.match(operand):
            text = operand.strip("|").lstrip("+")
            number = math.nan if "NAN" in text else float(text)
            return lambda: number
        negate, absolute = operand.startswith("-"), "|" in operand
        read = self._get(operand.lstrip("-").strip("|"))
        if not (negate or absolute):
            return lambda: bits_float(read())

        def modified() -> float:
            x = bits_float(read())
            x = abs(x) if absolute else x
            return -x if negate else x

        return modified

    def _put(self, operand: str) -> Put:
        file, index = self._register(operand.removesuffix(".64"))

        def put(x: int) -> None:
            file[index] = x & MASK

        return put

    def _put64(self, operand: str) -> Put:
        file, index = self._register(operand.removesuffix(".64"))
        if index == 256:
            return lambda x: None

        def put(x: int) -> None:
            file[index], file[index + 1] = x & MASK, x >> 32 & MASK

        return put

    def _predicate(self, operand: str) -> Get:
        found = re.fullmatch(r"(!?)(U?)P(T|\d+)", operand)
        if not found:
            raise UnknownInstruction(f"the predicate {operand}")
        negated = bool(found[1])
        if found[3] == "T":
            return lambda: not negated
        file, index = self._uniform_predicates if found[2] else self._predicates, int(found[3])
        if negated:
            return lambda: not file[index]
        return lambda: file[index]

    def _put_predicate(self, operand: str) -> Put:
        found = re.fullmatch(r"(U?)P(T|\d+)", operand)
        if not found:
            raise UnknownInstruction(f"the predicate {operand}")
        file = self._uniform_predicates if found[1] else self._predicates
        index = 8 if found[2] == "T" else int(found[2])

        def put(x: int) -> None:
            file[index] = bool(x)

        return put

    # Instructions

    def _compile(self, one: Instruction) -> tuple[Get | None, bool, Run, bool]:
        guard = None
        if one.guard and one.guard not in ("PT", "UPT"):
            guard = self._predicate(one.guard)
        elif one.guard and one.negated:  # @!PT: never
            guard = lambda: True  # noqa: E731
        is_poll = one.opcode in ("LDG", "LD") and "STRONG" in one.modifiers
        try:
            run = self._meaning(one)
        except (UnknownInstruction, ValueError, KeyError, IndexError) as error:
            raise UnknownInstruction(f"{one.address:#x} {one.text}: {error}") from error
        return guard, one.negated, run, is_poll

    def _meaning(self, one: Instruction) -> Run:
        opcode = one.opcode
        if opcode in _NO_EFFECT:
            if opcode in BARRIERS:
                return self._end_poll
            return lambda: None
        # UISETP is ISETP on the uniform registers, and so on
        is_uniform = opcode.startswith("U") and f"_op_{opcode[1:].lower()}" in _MEANINGS
        plain = opcode[1:] if is_uniform else opcode
        name = f"_op_{plain.lower()}"
        if name not in _MEANINGS:
            raise UnknownInstruction(f"no meaning of {opcode}")
        run: Run = getattr(self, name)(one)
        return run

    def _op_imad(self, one: Instruction) -> Run:
        modifiers, operands = one.modifiers, list(one.operands)
        if len(operands) == 2:  # IMAD.MOV of some releases
            return self._op_mov(one)
        to = operands.pop(0)
        carry_out = None
        if _PREDICATE.fullmatch(operands[0]):
            carry_out = self._put_predicate(operands.pop(0))
        carry: Get = lambda: 0  # noqa: E731
        if _PREDICATE.fullmatch(operands[-1]):
            carry = self._predicate(operands.pop())
        x, y = self._get(operands[0]), self._get(operands[1])
        wide, high, unsigned = "WIDE" in modifiers, "HI" in modifiers, "U32" in modifiers
        if wide or high:
            z = self._get64(operands[2]) if wide else self._get(operands[2])
            put = self._put64(to) if wide else self._put(to)
            invert = operands[2].startswith("~")

            def multiply_wide() -> None:
                a, b = x(), y()
                product = a * b if unsigned else signed(a) * signed(b)
                if not wide:
                    put((product >> 32) + z())
                    return
                added = ~z() & ((1 << 64) - 1) if invert else z()
                total = (product & ((1 << 64) - 1)) + added + carry()
                put(total)
                if carry_out:
                    carry_out(total >> 64)

            return multiply_wide
        z, put = self._get(operands[2]), self._put(to)
        return lambda: put(x() * y() + z() + carry())

    def _op_iadd3(self, one: Instruction) -> Run:
        operands = list(one.operands)
        put = self._put(operands.pop(0))
        carries_out = []
        while _PREDICATE.fullmatch(operands[0]):
            carries_out.append(self._put_predicate(operands.pop(0)))
        carries = []
        while _PREDICATE.fullmatch(operands[-1]):
            carries.append(self._predicate(operands.pop()))
        if "X" not in one.modifiers:
            carries = []
        terms = []
        constant = 0
        for operand in operands:
            if operand.startswith("-"):  # as ~x + 1, for the carries
                constant += 1
                terms.append(self._get(f"~{operand[1:]}"))
            else:
                terms.append(self._get(operand))
        if len(terms) == 2 and not carries and not carries_out:
            first, second = terms
            return lambda: put(first() + second() + constant)

        def add() -> None:
            total = sum(term() for term in terms) + constant + sum(c() for c in carries)
            put(total)
            for i, carry_out in enumerate(carries_out):
                carry_out(total >> 32 > i)

        return add

    def _op_iadd(self, one: Instruction) -> Run:
        if "64" not in one.modifiers:
            return self._op_iadd3(one)
        put = self._put64(one.operands[0])
        x, y = (self._get64(operand) for operand in one.operands[1:3])
        sign = -1 if one.operands[2].startswith("-") else 1
        return lambda: put(x() + sign * y())

    _op_viadd = _op_iadd3

    def _op_mov(self, one: Instruction) -> Run:
        if "64" in one.modifiers:
            put, get = self._put64(one.operands[0]), self._get64(one.operands[1])
        else:
            put, get = self._put(one.operands[0]), self._get(one.operands[1])
        return lambda: put(get())

    _op_r2ur = _op_mov

    def _op_lop3(self, one: Instruction) -> Run:
        operands = list(one.operands)
        predicate = None
        if _PREDICATE.fullmatch(operands[0]):
            predicate = self._put_predicate(operands.pop(0))
        put = self._put(operands[0])
        x, y, z = (self._get(operand) for operand in operands[1:4])
        table = int(operands[4], 16)
        terms = [k for k in range(8) if table >> k & 1]

        def combine() -> None:
            a, b, c = x(), y(), z()
            result = 0
            for k in terms:
                result |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
            result &= MASK
            put(result)
            if predicate:
                predicate(result != 0)

        return combine

    def _op_plop3(self, one: Instruction) -> Run:
        tos = [self._put_predicate(operand) for operand in one.operands[:2]]
        froms = [self._predicate(operand) for operand in one.operands[2:5]]
        tables = [int(operand, 16) for operand in one.operands[5:7]]

        def combine() -> None:
            x, y, z = (bool(get()) for get in froms)
            k = x << 2 | y << 1 | z
            for put, table in zip(tos, tables, strict=True):
                put(table >> k & 1)

        return combine

    def _op_shf(self, one: Instruction) -> Run:
        modifiers = one.modifiers
        put = self._put(one.operands[0])
        low, count, high = (self._get(operand) for operand in one.operands[1:4])
        wide = bool({"U64", "S64", "64"} & set(modifiers))
        arithmetic = bool({"S32", "S64"} & set(modifiers))
        left, upper = "L" in modifiers, "HI" in modifiers
        limit = 63 if wide else 32

        def shift() -> None:
            by = min(count() & (63 if wide else MASK), limit)
            value = high() << 32 | low()
            if left:
                shifted = value << by
                put(shifted >> 32 if upper else shifted)
                return
            if arithmetic and value >> 63:
                value -= 1 << 64
            shifted = value >> by
            put(shifted >> 32 if upper else shifted)

        return shift

    def _op_lea(self, one: Instruction) -> Run:
        operands = list(one.operands)
        put = self._put(operands.pop(0))
        carry_out = None
        if _PREDICATE.fullmatch(operands[0]):
            carry_out = self._put_predicate(operands.pop(0))
        carry: Get = lambda: 0  # noqa: E731
        if _PREDICATE.fullmatch(operands[-1]):
            last = self._predicate(operands.pop())
            if "X" in one.modifiers:
                carry = last
        x, y, by = self._get(operands[0]), self._get(operands[1]), int(operands[-1], 16)
        if "HI" in one.modifiers:
            extend = "SX32" in one.modifiers
            high = self._get(operands[2]) if len(operands) == 4 and not extend else self._get("RZ")

            def shifted() -> int:
                value = signed(x()) if extend else high() << 32 | x()
                return value << by >> 32 & MASK

        else:

            def shifted() -> int:
                return x() << by & MASK

        def add() -> None:
            total = shifted() + y() + carry()
            put(total)
            if carry_out:
                carry_out(total >> 32 & 1)

        return add

    def _op_isetp(self, one: Instruction) -> Run:
        modifiers, operands = one.modifiers, one.operands
        compare = _COMPARE[modifiers[0]]
        combine = next(_COMBINE[each] for each in modifiers if each in _COMBINE)
        unsigned, extended = "U32" in modifiers or "U64" in modifiers, "EX" in modifiers
        put, put_other = self._put_predicate(operands[0]), self._put_predicate(operands[1])
        if "64" in modifiers or "U64" in modifiers or "S64" in modifiers:
            x, y = self._get64(operands[2]), self._get64(operands[3])
        else:
            x, y = self._get(operands[2]), self._get(operands[3])
        with_ = self._predicate(operands[4])
        lower = self._predicate(operands[5]) if extended else None
        equality = modifiers[0] in ("EQ", "NE")

        def test() -> None:
            a, b = x(), y()
            if not unsigned:
                a, b = signed(a), signed(b)
            result = compare(a, b)
            if lower is not None and a == b and not (equality and modifiers[0] == "NE" and result):
                result = bool(lower())
            other = bool(with_())
            put(combine(result, other))
            put_other(combine(not result, other))

        return test

    def _op_fsetp(self, one: Instruction) -> Run:
        modifiers, operands = one.modifiers, one.operands
        name = modifiers[0]
        unordered = name.endswith("U") and name != "NU"
        compare = _COMPARE[name.removesuffix("U") if unordered else name]
        combine = next(_COMBINE[each] for each in modifiers if each in _COMBINE)
        put, put_other = self._put_predicate(operands[0]), self._put_predicate(operands[1])
        x, y, with_ = (
            self._float(operands[2]),
            self._float(operands[3]),
            self._predicate(operands[4]),
        )
        is_nan = name == "NAN"

        def test() -> None:
            a, b = x(), y()
            nan = a != a or b != b
            result = nan if is_nan else unordered if nan else compare(a, b)
            other = bool(with_())
            put(combine(result, other))
            put_other(combine(not result, other))

        return test

    def _op_sel(self, one: Instruction) -> Run:
        put, condition = self._put(one.operands[0]), self._predicate(one.operands[3])
        x, y = self._get(one.operands[1]), self._get(one.operands[2])
        return lambda: put(x() if condition() else y())

    def _op_fsel(self, one: Instruction) -> Run:
        put, condition = self._put(one.operands[0]), self._predicate(one.operands[3])
        x, y = self._float(one.operands[1]), self._float(one.operands[2])
        return lambda: put(float_bits(x() if condition() else y()))

    def _op_prmt(self, one: Instruction) -> Run:
        put = self._put(one.operands[0])
        x, selector, y = (self._get(operand) for operand in one.operands[1:4])

        def permute() -> None:
            value, chosen, result = y() << 32 | x(), selector(), 0
            for k in range(4):
                nibble = chosen >> 4 * k & 15
                byte = value >> 8 * (nibble & 7) & 255
                if nibble & 8:
                    byte = 255 if byte & 128 else 0
                result |= byte << 8 * k
            put(result)

        return permute

    def _op_cs2r(self, one: Instruction) -> Run:
        put = self._put(one.operands[0]) if "32" in one.modifiers else self._put64(one.operands[0])
        return lambda: put(0)

    def _op_ldc(self, one: Instruction) -> Run:
        at, constants = self._constant_offset(one.operands[1]), self._constants
        return self._load(one, one.operands[0], lambda: (constants, at()))

    _op_ldcu = _op_ldc

    def _op_s2r(self, one: Instruction) -> Run:
        known = {
            "SR_TID.X": self._thread,
            "SR_CTAID.X": self._block,
            "SR_LANEID": self._thread % 32,
            "SR_CgaCtaId": self._block % self._launch.cluster,
            "SR_CgaSize": self._launch.cluster,
        }
        value, put = known.get(one.operands[1], 0), self._put(one.operands[0])
        return lambda: put(value)

    _op_s2ur = _op_s2r

    # Memory

    def _load(
        self, one: Instruction, to: str, source: Callable[[], tuple[bytes | bytearray, int]]
    ) -> Run:
        width = one.width
        file, index = self._register(to)
        form = "<" + {1: "B", 2: "H", 4: "I", 8: "2I", 16: "4I"}[width]
        if {"S8", "S16"} & set(one.modifiers):
            form = form.lower()
        unpack = struct.Struct(form).unpack_from

        def load() -> None:
            data, at = source()
            if at + width > len(data):
                data, at = bytes(16), 0
            if index != 256:
                for i, word in enumerate(unpack(data, at)):
                    file[index + i] = word & MASK

        return load

    def _global(self, address: int) -> tuple[bytes | bytearray, int]:
        at = bisect_right(self._region_starts, address) - 1
        if at < 0:
            return b"", 1
        start = self._region_starts[at]
        return self._launch.regions[start], address - start

    def _op_ldg(self, one: Instruction) -> Run:
        to = next(each for each in one.operands if re.fullmatch(r"R(\d+|Z)", each))
        address = self._address(one.operands[-1])
        if "STRONG" not in one.modifiers:
            return self._load(one, to, lambda: self._global(address()))

        def polled() -> tuple[bytes | bytearray, int]:
            attempt = self._poll.attempt if self._poll else 0
            return struct.pack("<I", _POLLED[attempt]) * 4, 0

        return self._load(one, to, polled)

    _op_ld = _op_ldg

    def _op_lds(self, one: Instruction) -> Run:
        address = self._address(one.operands[1])
        return self._load(
            one, one.operands[0], lambda: (self._shared, address() & (_SHARED_BYTES - 1))
        )

    def _op_ldl(self, one: Instruction) -> Run:
        address = self._address(one.operands[1])
        return self._load(
            one, one.operands[0], lambda: (self._local, address() & (_LOCAL_BYTES - 1))
        )

    def _store(self, one: Instruction, data: bytearray) -> Run:
        address, width, size = self._address(one.operands[0]), one.width, len(data)
        file, index = self._register(one.operands[1])

        def store() -> None:
            at = address() & (size - 1)
            words = [0] * 4 if index == 256 else file[index : index + 4]
            data[at : at + width] = struct.pack("<4I", *(words + [0] * 4)[:4])[:width]
            del data[size:]

        return store

    def _op_sts(self, one: Instruction) -> Run:
        return self._store(one, self._shared)

    def _op_stl(self, one: Instruction) -> Run:
        return self._store(one, self._local)

    def _op_ldsm(self, one: Instruction) -> Run:
        return self._zero(one, 4)

    def _op_hmma(self, one: Instruction) -> Run:
        return self._zero(one, 4)

    def _zero(self, one: Instruction, count: int) -> Run:
        file, index = self._register(one.operands[0])

        def zero() -> None:
            for i in range(min(count, 256 - index)):
                file[index + i] = 0

        return zero

    def _op_atomg(self, one: Instruction) -> Run:
        put = self._put(next(each for each in one.operands if re.fullmatch(r"R(\d+|Z)", each)))
        return lambda: put(0x80000000)

    _op_atom = _op_atomg
    _op_atoms = _op_atomg

    # Floating point

    def _arithmetic(self, one: Instruction, function: Callable[..., float], count: int) -> Run:
        put = self._put(one.operands[0])
        values = [self._float(operand) for operand in one.operands[1 : 1 + count]]

        def compute() -> None:
            try:
                put(float_bits(function(*(value() for value in values))))
            except (ArithmeticError, ValueError):
                put(0)

        return compute

    def _op_fadd(self, one: Instruction) -> Run:
        return self._arithmetic(one, lambda x, y: x + y, 2)

    def _op_fmul(self, one: Instruction) -> Run:
        return self._arithmetic(one, lambda x, y: x * y, 2)

    def _op_ffma(self, one: Instruction) -> Run:
        return self._arithmetic(one, lambda x, y, z: x * y + z, 3)

    def _op_fmnmx(self, one: Instruction) -> Run:
        take_min = self._predicate(one.operands[3])
        return self._arithmetic(one, lambda x, y: min(x, y) if take_min() else max(x, y), 2)

    def _op_mufu(self, one: Instruction) -> Run:
        functions: dict[str, Callable[[float], float]] = {
            "RCP": lambda x: 1 / x,
            "EX2": lambda x: 2.0**x,
            "LG2": math.log2,
            "RSQ": lambda x: x**-0.5,
            "SQRT": math.sqrt,
            "TANH": math.tanh,
            "SIN": math.sin,
            "COS": math.cos,
        }
        function = next((functions[m] for m in one.modifiers if m in functions), lambda x: 0.0)
        return self._arithmetic(one, function, 1)

    def _op_fchk(self, one: Instruction) -> Run:
        put = self._put_predicate(one.operands[0])  # whether a division needs its slow path
        return lambda: put(False)

    def _op_i2f(self, one: Instruction) -> Run:
        put, get = self._put(one.operands[0]), self._get(one.operands[1])
        unsigned = any(each.startswith("U") for each in one.modifiers)
        up = "RP" in one.modifiers

        def convert() -> None:
            x = get() if unsigned else signed(get())
            bits = float_bits(float(x))
            put(bits + (up and bits_float(bits) < x))

        return convert

    _op_i2fp = _op_i2f

    def _op_f2i(self, one: Instruction) -> Run:
        put, get = self._put(one.operands[0]), self._float(one.operands[1])

        def convert() -> None:
            x = get()
            put(math.trunc(x) if math.isfinite(x) else 0)

        return convert

    def _op_hfma2(self, one: Instruction) -> Run:
        put = self._put(one.operands[0])
        if all(operand.lstrip("-") in ("RZ", "URZ") for operand in one.operands[1:3]):
            # A constant: its halves as numbers
            halves = [_half_bits(self._float(operand)()) for operand in one.operands[3:5]]
            value = halves[0] << 16 | halves[1]
            return lambda: put(value)
        return lambda: put(0)

    def _op_hadd2(self, one: Instruction) -> Run:
        put = self._put(one.operands[0])
        return lambda: put(0)

    _op_hmul2 = _op_hadd2
    _op_hmnmx2 = _op_hadd2
    _op_f2f = _op_hadd2

    def _op_f2fp(self, one: Instruction) -> Run:
        put = self._put(one.operands[0])
        high, low = (self._float(operand) for operand in one.operands[1:3])
        if "BF16" in one.modifiers:
            bits: Callable[[float], int] = lambda x: float_bits(x) >> 16  # noqa: E731
        elif "TF32" in one.modifiers:
            return lambda: put(float_bits(low()) & ~0x1FFF)
        else:
            bits = _half_bits
        return lambda: put(bits(high()) << 16 | bits(low()))

    def _op_hsetp2(self, one: Instruction) -> Run:
        puts = [self._put_predicate(operand) for operand in one.operands[:2]]

        def test() -> None:
            puts[0](False)
            puts[1](True)

        return test

    # Other integers

    def _minimum(self, one: Instruction) -> Run:
        put, take_min = self._put(one.operands[0]), self._predicate(one.operands[-1])
        x, y = self._get(one.operands[1]), self._get(one.operands[2])
        unsigned = "U32" in one.modifiers

        def choose() -> None:
            a, b = x(), y()
            if not unsigned:
                a, b = signed(a), signed(b)
            put(min(a, b) if take_min() else max(a, b))

        return choose

    _op_imnmx = _minimum
    _op_vimnmx = _minimum

    def _op_viaddmnmx(self, one: Instruction) -> Run:
        put, take_min = self._put(one.operands[0]), self._predicate(one.operands[-1])
        x, y, z = (self._get(operand) for operand in one.operands[1:4])
        unsigned = "U32" in one.modifiers

        def choose() -> None:
            a, b = (x() + y()) & MASK, z()
            if not unsigned:
                a, b = signed(a), signed(b)
            put(min(a, b) if take_min() else max(a, b))

        return choose

    def _op_iabs(self, one: Instruction) -> Run:
        put, get = self._put(one.operands[0]), self._get(one.operands[1])
        return lambda: put(abs(signed(get())))

    def _op_popc(self, one: Instruction) -> Run:
        put, get = self._put(one.operands[0]), self._get(one.operands[1])
        return lambda: put(get().bit_count())

    def _op_flo(self, one: Instruction) -> Run:
        operands = [each for each in one.operands if not _PREDICATE.fullmatch(each)]
        put, get = self._put(operands[0]), self._get(operands[1])
        return lambda: put(get().bit_length() - 1)

    def _op_brev(self, one: Instruction) -> Run:
        put, get = self._put(one.operands[0]), self._get(one.operands[1])
        return lambda: put(int(f"{get():032b}"[::-1], 2))

    def _op_p2r(self, one: Instruction) -> Run:
        put, get, mask = self._put(one.operands[0]), *map(self._get, one.operands[2:4])
        predicates = self._predicates

        def pack() -> None:
            bits = sum(1 << i for i in range(7) if predicates[i])
            put(get() & ~mask() | bits & mask())

        return pack

    def _op_r2p(self, one: Instruction) -> Run:
        get, mask = (self._get(operand) for operand in one.operands[1:3])
        predicates = self._predicates

        def unpack() -> None:
            bits, chosen = get(), mask()
            for i in range(7):
                if chosen >> i & 1:
                    predicates[i] = bool(bits >> i & 1)

        return unpack

    # The warp, and synchronization

    def _op_vote(self, one: Instruction) -> Run:
        condition = self._predicate(one.operands[-1])
        puts = [self._put_predicate(e) for e in one.operands[:-1] if _PREDICATE.fullmatch(e)]
        masks = [self._put(e) for e in one.operands[:-1] if not _PREDICATE.fullmatch(e)]

        def vote() -> None:
            value = bool(condition())
            for put in puts:
                put(value)
            for put in masks:
                put(MASK if value else 0)

        return vote

    _op_voteu = _op_vote

    def _op_shfl(self, one: Instruction) -> Run:
        predicate, operands = self._put_predicate(one.operands[0]), one.operands
        put, get = self._put(operands[1]), self._get(operands[2])

        def shuffle() -> None:
            put(get())
            predicate(True)

        return shuffle

    def _op_redux(self, one: Instruction) -> Run:
        put, get = self._put(one.operands[0]), self._get(one.operands[1])
        return lambda: put(get())

    def _op_elect(self, one: Instruction) -> Run:
        elected = self._thread % 32 == 0
        puts = [self._put_predicate(each) for each in one.operands if _PREDICATE.fullmatch(each)]

        def elect() -> None:
            for put in puts[:1]:
                put(elected)

        return elect

    def _op_syncs(self, one: Instruction) -> Run:
        first = one.operands[0]
        if _PREDICATE.fullmatch(first):
            complete = self._put_predicate(first)
            return lambda: complete(True)
        if first.startswith("["):
            return lambda: None
        put = self._put(first)
        return lambda: put(0)

    def _op_qspc(self, one: Instruction) -> Run:
        put = self._put_predicate(one.operands[0])  # whether an address is one of shared memory
        return lambda: put(False)

    # Branches

    def _op_bra(self, one: Instruction) -> Run:
        if "DIV" in one.modifiers:  # taken where the warp's lanes have parted
            return lambda: None
        if one.target is None:
            raise UnknownInstruction("a branch without a label")
        target = self.code.labels[one.target]
        conditions = [self._predicate(e) for e in one.operands if _PREDICATE.fullmatch(e)]
        if not conditions:
            return lambda: target
        return lambda: target if all(condition() for condition in conditions) else None

    _op_jmp = _op_bra

    def _op_call(self, one: Instruction) -> Run:
        return self._op_bra(one)

    def _op_ret(self, one: Instruction) -> Run:
        get, addresses = self._get(one.operands[0].split()[0]), self._addresses
        return lambda: addresses[get()]

    def _op_exit(self, one: Instruction) -> Run:
        return lambda: _EXIT

    def _op_bpt(self, one: Instruction) -> Run:
        raise UnknownInstruction("the kernel traps")


_MEANINGS = frozenset(name for name in vars(Thread) if name.startswith("_op_"))
