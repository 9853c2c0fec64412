"""Checkpoints to GGUF files: tensor by tensor, so that a model larger than memory can be written.

The file appears under its name when it is whole, and not before. Quantised types are made by llama.cpp from a file in
the checkpoint's own precision, which lies beside the result meanwhile.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmhost.core.errors import ModelUnavailable
from llmhost.core.units import show_bytes
from llmhost.engines.llama.architectures import Architecture, architecture_of
from llmhost.engines.llama.extra import require
from llmhost.engines.llama.quantise import QUANTISED, quantise
from llmhost.engines.llama.vocabulary_out import vocabulary
from llmhost.engines.torch.weight_files import StoredTensor, read_headers

PLAIN = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32)}
"""Types that are written here: how numbers are stored, and llama.cpp's number for such a file."""
TYPES = (*PLAIN, *QUANTISED)

_STORED: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
_OWN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to."""

    path: Path
    architecture: str
    type: str
    tensors: int
    size_bytes: int


class _Plan:
    """What will be in the file, known before a byte of it is written."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.kind = kind
        self.architecture = architecture_of(_config(folder))
        self.stored = dict(self._renamed(read_headers(folder)))
        self.extra = dict(self.architecture.extra_tensors())
        self._check()

    def type_of(self, name: str) -> str:
        """Vectors stay exact; matrices get the file's type."""
        if name in self.extra or len(self.stored[name].shape) < 2:
            return "F32"
        return PLAIN[self.kind][0]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.extra[name].shape if name in self.extra else self.stored[name].shape

    def size_bytes(self, name: str) -> int:
        return int(np.prod(self.shape(name))) * (4 if self.type_of(name) == "F32" else 2)

    def names(self) -> list[str]:
        return [*self.stored, *self.extra]

    def content(self, name: str) -> NDArray[Any]:
        """A tensor as the file will have it."""
        if name in self.extra:
            return self.extra[name]
        tensor = self.stored[name]
        raw = np.memmap(
            tensor.path, _STORED[tensor.kind], "r", offset=tensor.offset, shape=tensor.shape
        )
        turned = self.architecture.turned(name, np.asarray(raw))
        return _converted(turned, tensor.kind, self.type_of(name))

    def metadata(self) -> Iterator[tuple[str, Any]]:
        yield "general.name", self.folder.name
        yield "general.type", "model"
        yield "general.quantization_version", 2
        yield "general.file_type", PLAIN[self.kind][1]
        yield from self.architecture.settings()
        yield from vocabulary(self.folder, int(self.architecture.config["vocab_size"]))

    def _renamed(
        self, stored: Iterator[tuple[str, StoredTensor]]
    ) -> Iterator[tuple[str, StoredTensor]]:
        for name, tensor in stored:
            if (new := self.architecture.renamed(name)) is None:
                continue
            if tensor.kind not in _STORED:
                raise ModelUnavailable(
                    f"The checkpoint's tensor {name!r} is of type {tensor.kind}; F32, F16 and BF16 can be written."
                )
            yield new, tensor

    def _check(self) -> None:
        """Nothing is missing that llama.cpp would stumble over an hour later."""
        layers = int(self.architecture.config["num_hidden_layers"])
        wanted = ["token_embd.weight", "output_norm.weight"]
        wanted += [f"blk.{n}.{part}.weight" for n in range(layers) for part in _PARTS]
        if not self.architecture.is_tied:
            wanted.append("output.weight")
        missing = [name for name in wanted if name not in self.stored]
        if missing:
            raise ModelUnavailable(
                f"{self.folder} lacks {len(missing)} tensors of its model, {missing[0]} first."
                " The download or copy was cut off; get it again."
            )


_PARTS = (
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
)


def export(folder: Path, out: Path, kind: str, report: Report) -> Exported:
    """Write the checkpoint in `folder` to the GGUF file `out`, over one that is there. Blocks.

    Raises ModelUnavailable in plain words; then nothing is left behind.
    """
    require("gguf", *(("llama_cpp",) if kind in QUANTISED else ()))
    plain = kind if kind in PLAIN else _own_precision(folder)
    plan = _Plan(folder, plain)
    with _room(out, plan), _beside(out) as whole:
        _write(plan, whole, report)
        if kind in QUANTISED:
            with _beside(out) as quantised:
                quantise(whole, quantised, kind, report)
                quantised.replace(whole)
        size_bytes = whole.stat().st_size
        whole.replace(out)
    return Exported(out, plan.architecture.name, kind, len(plan.names()), size_bytes)


def _write(plan: _Plan, path: Path, report: Report) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, plan.architecture.name)
    try:
        for key, value in plan.metadata():
            _add(writer, key, value)
        for name in plan.names():
            kind = GGMLQuantizationType[plan.type_of(name)]
            size_bytes = plan.size_bytes(name)
            writer.add_tensor_info(name, plan.shape(name), np.dtype(np.float32), size_bytes, kind)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total, done = sum(map(plan.size_bytes, plan.names())), 0
        for name in plan.names():
            writer.write_tensor_data(plan.content(name))
            done += plan.size_bytes(name)
            report("writing", done, total)
        writer.flush()
    finally:
        writer.close()
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def _converted(tensor: NDArray[Any], stored: str, wanted: str) -> NDArray[Any]:
    """From one type to another, rounded to the nearest; BF16 is handled as its 16 bits."""
    if stored == wanted:
        return np.ascontiguousarray(tensor)
    exact = (
        (tensor.astype(np.uint32) << 16).view(np.float32)
        if stored == "BF16"
        else tensor.astype(np.float32)
    )
    if wanted == "F32":
        return exact
    if wanted == "F16":
        with np.errstate(over="ignore"):
            half = exact.astype(np.float16)
        if not np.isfinite(half).all() and np.isfinite(exact).all():
            raise ModelUnavailable(
                "The checkpoint has weights beyond what f16 can hold; choose bf16 or f32 as --type."
            )
        return half
    bits = exact.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelUnavailable(
            f"{folder} has no config.json. A checkpoint is a folder with config.json, tokenizer.json and safetensors."
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ModelUnavailable(f"{path} is not a JSON object ({error}). Copy it again.") from error


def _own_precision(folder: Path) -> str:
    """What most of the checkpoint's numbers are stored in."""
    counts: dict[str, int] = {}
    for _, tensor in read_headers(folder):
        counts[tensor.kind] = counts.get(tensor.kind, 0) + tensor.elements
    return _OWN.get(max(counts, key=lambda kind: counts[kind], default="F32"), "f32")


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A name for a file that is not whole yet; what is there in the end is removed."""
    path = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        yield path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def _room(out: Path, plan: _Plan) -> Iterator[None]:
    """What the disk says no to, in plain words, and ahead of time where it can be known."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        needed = sum(map(plan.size_bytes, plan.names()))
        free = shutil.disk_usage(out.parent).free
        if needed > free:
            raise ModelUnavailable(
                f"{out} needs {show_bytes(needed)} on disk while it is written, and {out.parent} has"
                f" {show_bytes(free)} free. Free some, or choose another place."
            )
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise ModelUnavailable(
                f"The disk is full ({error.strerror}): {out} did not fit, and nothing of it is left."
                " Free some space, or choose another place."
            ) from error
        raise ModelUnavailable(
            f"Could not write {out}: {error.strerror or error}. Check the folder's owner and the disk."
        ) from error


__all__ = ["TYPES", "Architecture", "Exported", "Report", "export"]
