"""GGUF files made byte by byte, so that tests can lie in them."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Tensor = tuple[str, tuple[int, ...], int, bytes]
"""Name, shape with the fastest dimension first, number of the type, contents."""


def gguf(
    metadata: Mapping[str, Any] | None = None,
    tensors: Sequence[Tensor] = (),
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A whole file. Integers become uint32, floats float32; a pair (type, value) says it otherwise."""
    pairs = dict(metadata or {})
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, value in pairs.items():
        out += _string(key) + _value(value)
    body = b""
    for name, shape, kind, content in tensors:
        body += bytes(-len(body) % alignment)
        out += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        out += struct.pack("<IQ", kind, len(body))
        body += content
    return out + bytes(-len(out) % alignment) + body


def write(path: Path, *args: Any, **kwargs: Any) -> Path:
    path.write_bytes(gguf(*args, **kwargs))
    return path


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    match value:
        case (int() as kind, bytes() as packed):
            return struct.pack("<I", kind) + packed
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case [str(), *_]:
            body = b"".join(map(_string, value))
            return struct.pack("<IIQ", 9, 8, len(value)) + body
        case [float(), *_]:
            return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
        case list():
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
    raise AssertionError(f"no way to write {value!r}")
