"""What NVIDIA's own tools, which come with Triton, say of a compiled kernel: registers, memory, instructions, loops.

Clocks are of one multiprocessor of compute capability 9.0 for one turn of a loop by all warps of a program, as if
nothing waited for anything. They compare two forms of a kernel; how long either takes only a GPU can say.
"""

import re
import struct
import subprocess
import tempfile
from bisect import bisect_left
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
_TARGET = re.compile(r"0x([0-9a-f]+)$")
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


class Compiled(NamedTuple):
    """A kernel as Triton has it."""

    cubin: bytes
    capability: int
    shared_bytes: int
    """That it will ask for."""
    warps: int


def machine_codes(kernels: Sequence[Compiled], tools: Path) -> list[MachineCode]:
    """`tools` is where Triton has NVIDIA's. The disassembler takes half a second to start, so it is given all code of
    one kind of GPU at once."""
    codes: dict[int, MachineCode] = {}
    for capability in {one.capability for one in kernels}:
        places = [at for at, one in enumerate(kernels) if one.capability == capability]
        texts = [_text(kernels[at].cubin) for at in places]
        lines = iter(_disassembled(b"".join(texts), f"SM{capability}", tools))
        end, line = 0, next(lines, None)
        for at, text in zip(places, texts, strict=True):
            begin, end = end, end + len(text)
            own = []
            while line is not None and line.address < end:
                own.append(line)
                line = next(lines, None)
            codes[at] = _code(kernels[at], own, begin, tools)
    return [codes[at] for at in range(len(kernels))]


def _code(
    kernel: Compiled, instructions: Sequence[Instruction], begin: int, tools: Path
) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.cubin)
        file.flush()
        told = _output(tools / "cuobjdump", "-res-usage", file.name)
    registers, stack = (int(re.findall(rf"{of}:(\d+)", told)[-1]) for of in ("REG", "STACK"))
    loops = list(_loops(instructions, kernel.warps))
    own = [one._replace(address=one.address - begin) for one in instructions]
    return MachineCode(registers, stack, kernel.shared_bytes, kernel.warps, own, loops)


def _text(cubin: bytes) -> bytes:
    """The code of the one kernel in an ELF file of 64 bits."""
    (sections,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, sections + at * size) for at in range(count)]
    for name, _, _, _, offset, length in headers:
        begin = headers[names][4] + name
        if cubin[begin:].startswith(b".text."):
            return cubin[offset : offset + length]
    raise ValueError("a compiled kernel has no code")


def _disassembled(code: bytes, kind: str, tools: Path) -> list[Instruction]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        lines = _output(tools / "nvdisasm", "--binary", kind, file.name).splitlines()
    found = (_LINE.match(line) for line in lines)
    return [
        Instruction(int(one[1], 16), one[2], one[3])
        for one in found
        if one is not None and one[2] != "NOP"
    ]


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _loops(instructions: Sequence[Instruction], warps: int) -> Iterator[Loop]:
    addresses = [one.address for one in instructions]
    branches = [
        (at, bisect_left(addresses, int(target[1], 16)))
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
