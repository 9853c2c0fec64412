"""What a GGUF file says of itself: metadata and the list of tensors, without a byte of weights being read.

A file comes from anywhere. Every count and size is checked against the bytes that there are before it is believed, so
that a truncated or lying one is refused in a sentence. 150,000 tokens and their merges take a fifth of a second. The
format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing here knows what a model is.
"""

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from llmhost.core.errors import ModelUnavailable

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4
ALIGNMENT = 32
MOST_FILES = 1000
"""Of a model that was split. The format has five digits."""

STRING, ARRAY = 8, 9
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Types of values, by their number in the file."""

BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""How numbers are stored, by the type's number: its name, the numbers of a block, and the bytes that they take."""

_SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. `shape` has the fastest dimension first, as the file has it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    size_bytes: int
    offset: int
    """From the beginning of the file."""


@dataclass(frozen=True, slots=True)
class Header:
    """A whole model: the metadata of its first file and the tensors of all."""

    path: Path
    metadata: Mapping[str, Any]
    """Numbers, truth values and strings; lists of strings; arrays of numbers as numpy's."""
    tensors: tuple[TensorInfo, ...]
    files: tuple[Path, ...]
    size_bytes: int
    """Of the first file's header, up to where its weights begin."""

    @property
    def weights_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    def tensor(self, name: str) -> TensorInfo | None:
        return next((tensor for tensor in self.tensors if tensor.name == name), None)


def read_header(path: Path) -> Header:
    """Read the header of a model's only or first file, and of its other parts. Raises ModelUnavailable."""
    files = parts_of(path)
    metadata, tensors, size_bytes = _read(files[0])
    told = metadata.get("split.count", 0)
    if type(told) is not int or (told not in (0, 1) and told != len(files)):
        raise ModelUnavailable(
            f"{path} says that it is one of {told} parts, and by its name it is one of {len(files)}."
            " Give the parts the names that they were published with."
        )
    for part in files[1:]:
        tensors += _read(part)[1]
    names = {tensor.name for tensor in tensors}
    if len(names) < len(tensors):
        raise ModelUnavailable(f"{path} lists a tensor twice, so it is not a whole model's file.")
    return Header(files[0], metadata, tuple(tensors), files, size_bytes)


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of a model: one, or those whose names end in -00001-of-0000N.gguf. Raises ModelUnavailable."""
    named = _SPLIT.fullmatch(path.name)
    if named is None:
        return (path,)
    stem, count = named[1], int(named[3])
    if not 0 < count <= MOST_FILES:
        raise ModelUnavailable(
            f"{path} is one of {count} parts by its name; 1 to {MOST_FILES} are read."
        )
    suffix = path.suffix
    parts = tuple(
        path.with_name(f"{stem}-{n:05}-of-{named[3]}{suffix}") for n in range(1, count + 1)
    )
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelUnavailable(
            f"{path} is one of {count} parts, and {missing[0]} is not beside it. Copy all parts into one folder."
        )
    return parts


def _read(path: Path) -> tuple[dict[str, Any], list[TensorInfo], int]:
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            return _Cursor(path, content).read()
    except ValueError as error:  # mmap's word for a file without a byte
        raise ModelUnavailable(f"{path} is empty. Copy it again.") from error
    except OSError as error:
        raise ModelUnavailable(f"{path} can't be read: {error.strerror or error}.") from error


class _Cursor:
    """A place in a file, which moves on as things are read there."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self._path = path
        self._content = content
        self._size = len(content)
        self._at = 0

    def read(self) -> tuple[dict[str, Any], list[TensorInfo], int]:
        """Metadata, tensors, and how many bytes there are before the first of these."""
        if self._content[:4] != MAGIC:
            self._refuse("does not begin as a GGUF file does", "Is it one, and whole?")
        self._at = 4
        version = self._number("<I")
        if version not in VERSIONS:
            big = version and version & 0xFFFF == 0
            what = "is for big-endian machines" if big else f"has version {version} of the format"
            self._refuse(what, "Versions 2 and 3, little-endian, are read. Get a newer file.")
        tensor_count, pair_count = self._number("<Q"), self._number("<Q")
        self._expect(pair_count, 13, "values in its metadata")
        metadata = self._metadata(pair_count)
        self._expect(tensor_count, 32, "tensors")
        found = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            self._refuse(f"has the alignment {alignment!r}, which is no power of two")
        begin = -(-self._at // alignment) * alignment
        return metadata, [self._placed(tensor, begin, alignment) for tensor in found], begin

    def _metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            if key in metadata:
                self._refuse(f"has the key {key[:80]!r} twice")
            metadata[key] = self._value(self._number("<I"))
        return metadata

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if inner == STRING:
                self._expect(count, 8, "strings in a list")
                return self._strings(count)
            return self._numbers(inner, count)
        return self._numbers(kind, 1)[0].item()

    def _numbers(self, kind: int, count: int) -> Any:
        if (dtype := SCALARS.get(kind)) is None:
            self._refuse(f"has a value of type {kind}, which there is none of")
        self._expect(count, dtype.itemsize, "numbers in a list")
        end = self._at + count * dtype.itemsize
        # Bytes, not truth values, for numpy believes whatever byte it is told is one.
        raw = np.frombuffer(self._content[self._at : end], np.dtype("<u1") if kind == 7 else dtype)
        self._at = end
        return raw.astype(bool) if kind == 7 else raw

    def _string(self) -> str:
        return self._strings(1)[0]

    def _strings(self, count: int) -> list[str]:
        """The loop that takes the time: a vocabulary has hundreds of thousands."""
        content, at, size = self._content, self._at, self._size
        read = struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            begin = at + 8
            if begin > size:
                self._cut_short()
            at = begin + read(content, at)[0]
            if at > size:
                self._cut_short()
            found.append(content[begin:at].decode("utf-8", "replace"))
        self._at = at
        return found

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = self._number("<I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            self._refuse(f"has a tensor of {dimensions} dimensions: {name[:80]!r}")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        return name, shape, self._number("<I"), self._number("<Q")

    def _placed(
        self, tensor: tuple[str, tuple[int, ...], int, int], begin: int, alignment: int
    ) -> TensorInfo:
        name, shape, kind, offset = tensor
        if kind not in BLOCKS:
            self._refuse(
                f"stores the tensor {name[:80]!r} in a way that is not known here (type {kind})",
                "It may be newer than this version of llmhost.",
            )
        label, block, block_bytes = BLOCKS[kind]
        if shape[0] % block or offset % alignment:
            self._refuse(f"has a tensor of an impossible shape or place: {name[:80]!r}")
        size_bytes = prod(shape) // block * block_bytes
        if begin + offset + size_bytes > self._size:
            self._refuse(
                f"ends before its tensor {name[:80]!r} does: {self._size} bytes are here, and"
                f" {begin + offset + size_bytes} would be needed",
                "It was cut short; copy it again.",
            )
        return TensorInfo(name, label, shape, size_bytes, begin + offset)

    def _number(self, form: str) -> int:
        end = self._at + struct.calcsize(form)
        if end > self._size:
            self._cut_short()
        (number,) = struct.unpack_from(form, self._content, self._at)
        self._at = end
        return int(number)

    def _expect(self, count: int, least_bytes: int, what: str) -> None:
        """So many of them must still fit into the file."""
        if count * least_bytes > self._size - self._at:
            self._refuse(
                f"claims {count} {what}, for which it is too short", "It was cut short, or is none."
            )

    def _cut_short(self) -> NoReturn:
        self._refuse("ends in the middle of its header", "It was cut short; copy it again.")

    def _refuse(self, what: str, then: str = "Get it again from where it came from.") -> NoReturn:
        raise ModelUnavailable(f"{self._path} {what}. {then}")
