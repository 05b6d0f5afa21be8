"""What nvdisasm prints of a cubin, as instructions.

A line is `/*0cd0*/ @!P0 LDG.E.128.STRONG.GPU R24, desc[UR6][R156.64+0x200] ; /* 0x... */`; the
second 64-bit word of the encoding, on the line after it, ends in the control code, by which the
compiler tells the in-order issue logic when an instruction may go: Jia et al., "Dissecting the
NVIDIA Volta GPU architecture via microbenchmarking" (2018), section 2.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_SECTION = re.compile(r"\.text\.(\S+):")
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/")
_SECOND_WORD = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
_LABEL = re.compile(r"\s*([.$][^\s:]+):")
_PARTS = re.compile(r"(?:@(!?)(U?P[0-9T]+)\s+)?([A-Z0-9_]+)((?:\.[A-Za-z0-9_]+)*)\s*(.*)")

LINE_BYTES = 128  # of the instruction caches
NO_BARRIER = 7


@dataclass(frozen=True)
class Control:
    """When an instruction may be issued, and what it signals."""

    stall: int
    """Cycles until the next instruction of the warp."""
    write_barrier: int
    """The scoreboard, 0 to 5, that is released when the results are written; 7: none."""
    read_barrier: int
    """The one that is released when the operands have been read; 7: none."""
    wait_mask: int
    """Scoreboards, a bit each, that must be free."""


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str
    guard: str | None
    """A predicate, P0 or UP0."""
    negated: bool
    """Whether it is executed where the predicate is false."""
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    control: Control

    @property
    def target(self) -> str | None:
        """The label that a branch goes to."""
        found = re.search(r"`\(([^)]+)\)", self.text)
        return found[1] if found else None

    @property
    def width(self) -> int:
        """Bytes of a memory access."""
        for modifier, width in (("U8", 1), ("S8", 1), ("U16", 2), ("S16", 2), ("64", 8)):
            if modifier in self.modifiers:
                return width
        return 16 if "128" in self.modifiers else 4


@dataclass
class Code:
    """One kernel, with its subroutines."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Of a label: the index of the instruction that follows."""


def split_operands(text: str) -> tuple[str, ...]:
    """At the commas outside of brackets."""
    parts, depth, current = [], 0, ""
    for char in text:
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += char
    return (*parts, current.strip()) if text else ()


def parse_instruction(address: int, text: str, second_word: int) -> Instruction:
    found = _PARTS.match(text)
    if not found:
        raise ValueError(f"{text!r} is no instruction of nvdisasm's")
    negated, guard, opcode, modifiers, operands = found.groups()
    code = second_word >> 41
    control = Control(code & 15, code >> 5 & 7, code >> 8 & 7, code >> 11 & 63)
    return Instruction(
        address,
        text,
        guard,
        negated == "!",
        opcode,
        tuple(modifiers.split(".")[1:]),
        split_operands(operands.replace(".reuse", "")),
        control,
    )


def parse(disassembly: str) -> dict[str, Code]:
    """The kernels in the output of `nvdisasm -hex -c`, by mangled name."""
    kernels: dict[str, Code] = {}
    code: Code | None = None
    pending: tuple[int, str] | None = None
    for line in disassembly.splitlines():
        if found := _SECTION.match(line):
            code = kernels.setdefault(found[1], Code(found[1]))
        elif line.startswith("//---"):
            code = None
        elif code is None:
            continue
        elif found := _INSTRUCTION.match(line):
            pending = int(found[1], 16), found[2]
        elif pending and (found := _SECOND_WORD.match(line)):
            code.instructions.append(parse_instruction(*pending, int(found[1], 16)))
            pending = None
        elif found := _LABEL.match(line):
            code.labels[found[1]] = len(code.instructions)
    return kernels
