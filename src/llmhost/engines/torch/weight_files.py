"""The weight files of a checkpoint: which they are, and where in them each tensor lies. No torch is imported."""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.core.errors import ModelUnavailable

_MAX_HEADER_BYTES = 100 * 2**20
"""The limit that the safetensors format sets itself."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    kind: str
    """Element type as the format names it: F32, BF16 and so on."""
    elements: int
    stored_bytes: int
    path: Path
    offset: int
    """Of its first byte in the file."""
    shape: tuple[int, ...]


def read_headers(folder: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Names and places of all tensors, from the headers of the weight files. Raises ModelUnavailable."""
    for path in _weight_files(folder):
        yield from read_file_header(path)


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelUnavailable(f"{index} is not a weights index: {error!r}.") from error
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise ModelUnavailable(
                f"{folder} lacks {len(missing)} of {len(names)} weight files that its index names,"
                f" {missing[0]} first. Download it again."
            )
        return [folder / name for name in names]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise ModelUnavailable(
            f"{folder} has weights as pickle files only (.bin or .pt). Reading those can run any code that they"
            " carry, so they are refused; use a safetensors version of the checkpoint."
        )
    raise ModelUnavailable(
        f"{folder} has no weights: neither model.safetensors nor model.safetensors.index.json."
    )


def read_file_header(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Names and places of one file's tensors. Raises ModelUnavailable.

    A safetensors file is a little-endian 64-bit header length, that much JSON, then the tensors' bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, "its header does not fit in it")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {name: _placed(path, entry, 8 + length) for name, entry in header.items()}
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise _damaged(path, f"its header is not what it should be ({error!r})") from error
    if size != 8 + length + end:
        raise _damaged(path, f"it has {size} bytes and its header promises {8 + length + end}")
    yield from tensors.items()


def _placed(path: Path, entry: Mapping[str, Any], start: int) -> StoredTensor:
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if any(type(number) is not int or number < 0 for number in (first, last, *shape)):
        raise ValueError(f"a tensor at {first!r} to {last!r} of shape {shape!r}")
    return StoredTensor(
        str(entry["dtype"]), math.prod(shape), last - first, path, start + first, shape
    )


def _damaged(path: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{path} is not a whole safetensors file: {why}. The download or copy was cut off; get it again."
    )
