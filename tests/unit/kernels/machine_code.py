"""What NVIDIA's own tools, which come with Triton, say of a compiled kernel: registers, memory, instructions, loops.

Clocks are of one multiprocessor of compute capability 9.0 for one turn of a loop by all warps of a program, as if
nothing waited for anything. They compare two forms of a kernel; how long either takes only a GPU can say.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

REGISTERS, THREADS, BLOCKS, SHARED_BYTES = 65_536, 2_048, 32, 227 * 2**10
"""What a multiprocessor has for all its programs."""
PROGRAM_SHARED_BYTES = 1_024
"""Of shared memory each program takes beside what it asks for."""
REGISTERS_OF_A_WARP = 256
"""Registers are handed out in so many."""
MEMORY_BYTES_PER_CLOCK = 21
"""4.8 TB/s over 132 multiprocessors at 1.75 GHz."""
WARPS_PER_CLOCK = 4
MATRIX_FLOP_PER_CLOCK = 4_096
"""In 16 bits. Instructions of one warp (HMMA) reach about 0.6 of it, in 8 bits twice as much."""
SPECIAL_PER_CLOCK = 16
"""Exponentials and other special functions."""

_LINE = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P[T0-9]+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_SIZES = re.compile(r"\.(\d+)x(\d+)x(\d+)")
_WARP_FLOP = {"16816": 4096, "1688": 2048, "16832": 8192}


class Instruction(NamedTuple):
    address: int
    opcode: str
    """With what follows its points: `LDG.E.128`."""
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def bytes(self) -> int:
        """How much a thread loads or stores by it."""
        if self.name not in ("LDG", "STG", "LDGSTS", "LDS", "STS", "LDL", "STL"):
            return 0
        parts = self.opcode.split(".")
        for part, size in {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}.items():
            if part in parts:
                return size
        return 4

    @property
    def flop(self) -> int:
        """Of a warp; an instruction of four warps is issued by each of them."""
        if self.name in ("HGMMA", "QGMMA"):
            sizes = _SIZES.search(self.opcode)
            assert sizes, self.opcode
            rows, columns, depth = map(int, sizes.groups())
            return 2 * rows * columns * depth // 4
        if self.name == "HMMA":
            return next(flop for shape, flop in _WARP_FLOP.items() if shape in self.opcode)
        return 0


@dataclass(frozen=True)
class Loop:
    """The instructions from where a branch leads back to up to that branch."""

    instructions: Sequence[Instruction]
    warps: int
    skippable: int = 0
    """Instructions that a branch may lead around: what is done for a tile at the edge."""

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(one.name for one in self.instructions)

    @property
    def read_bytes(self) -> int:
        """From the device's memory, by all threads."""
        loads = (one.bytes for one in self.instructions if one.name in ("LDG", "LDGSTS"))
        return 32 * self.warps * sum(loads)

    @property
    def flop(self) -> int:
        return self.warps * sum(one.flop for one in self.instructions)

    @property
    def issue_clocks(self) -> float:
        """For what no branch leads around."""
        return self.warps * (len(self.instructions) - self.skippable) / WARPS_PER_CLOCK

    def memory_clocks(self, read_bytes: int | None = None) -> float:
        """For what it reads, or so much of that as no cache has."""
        return (read_bytes or self.read_bytes) / MEMORY_BYTES_PER_CLOCK

    @property
    def matrix_clocks(self) -> float:
        return self.flop / MATRIX_FLOP_PER_CLOCK

    @property
    def special_clocks(self) -> float:
        return 32 * self.warps * self.counts["MUFU"] / SPECIAL_PER_CLOCK


@dataclass(frozen=True)
class MachineCode:
    registers: int
    """Of a thread."""
    stack_bytes: int
    """Of a thread: what didn't fit into registers, or is indexed."""
    shared_bytes: int
    warps: int
    instructions: Sequence[Instruction]
    loops: Sequence[Loop]
    """Those that no other loop is part of."""

    @property
    def spills(self) -> int:
        """Instructions that move what lies in local memory."""
        return sum(one.name in ("LDL", "STL") for one in self.instructions)

    @property
    def programs_per_multiprocessor(self) -> int:
        granted = -(-32 * self.registers // REGISTERS_OF_A_WARP) * REGISTERS_OF_A_WARP
        return min(
            REGISTERS // (granted * self.warps),
            SHARED_BYTES // (self.shared_bytes + PROGRAM_SHARED_BYTES),
            THREADS // (32 * self.warps),
            BLOCKS,
        )

    @property
    def matrix_instructions(self) -> set[str]:
        return {one.name for one in self.instructions if one.flop}

    @property
    def busiest(self) -> Loop | None:
        """The loop that computes or else reads the most in a turn; of equals the shortest, which is no edge's."""
        return max(
            self.loops,
            key=lambda loop: (loop.flop, loop.read_bytes, -len(loop.instructions)),
            default=None,
        )


def machine_code(cubin: Path, *, tools: Path, shared_bytes: int, warps: int) -> MachineCode:
    """`tools` is where Triton has NVIDIA's; Triton knows how much shared memory it will ask for."""
    told = _output(tools / "cuobjdump", "-res-usage", cubin)
    registers, stack = (int(re.findall(rf"{of}:(\d+)", told)[-1]) for of in ("REG", "STACK"))
    instructions, labels = _parsed(_output(tools / "nvdisasm", "-c", cubin).splitlines())
    loops = list(_loops(instructions, labels, warps))
    return MachineCode(registers, stack, shared_bytes, warps, instructions, loops)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _parsed(lines: Sequence[str]) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in lines:
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif (found := _LINE.match(line)) and found[2] != "NOP":
            instructions.append(Instruction(int(found[1], 16), found[2], found[3]))
    return instructions, labels


def _loops(
    instructions: Sequence[Instruction], labels: dict[str, int], warps: int
) -> Iterator[Loop]:
    branches = [
        (at, labels[target[1]])
        for at, one in enumerate(instructions)
        if one.name == "BRA" and (target := _TARGET.search(one.operands))
    ]
    spans = [(to, at) for at, to in branches if to < at]
    for begin, end in spans:
        inner = [(low, high) for low, high in spans if begin <= low and high <= end]
        if inner == [(begin, end)]:
            around = {
                place
                for at, to in branches
                if begin < at < to <= end
                for place in range(at + 1, to)
            }
            yield Loop(instructions[begin : end + 1], warps, len(around))
