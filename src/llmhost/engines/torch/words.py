"""Checkpoints of GPTQ and AWQ, read without the libraries that made them (Frantar et al., 2022; Lin et al., 2023).

Both keep a matrix [N, K] as whole numbers of a few bits in 32-bit words, with a scale and a zero point for each group
of numbers in a row: a weight is (number - zero point) * scale. GPTQ packs along K and says for each column which group
it is of; AWQ packs along N, eight numbers in an order of its own. Weights become plain numbers here. transformers is
given them as those of a checkpoint that was never quantised.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llmhost.engines.torch.int4 import GROUP, ZERO, Quantised
from llmhost.engines.torch.quantised import GPTQ_BITS, PARTS, bits_of, form_of, method_of
from llmhost.engines.torch.weight_files import read_headers
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.engines")

WORD_BITS = 32
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in its word, counted in 4 bits from the lowest, AWQ has each of eight numbers."""
TURNED = ("gpt2",)
"""Model types whose layers keep their matrices as [K, N]."""
_HOST = torch.device("cpu")
INT4_BITS = 4


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A checkpoint's tensors by their names, its matrices as plain ones."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    """On the host."""
    int4: dict[str, Quantised] = field(default_factory=dict)
    """Of matrices of 4 bits with a scale for each GROUP columns in their order, by the name of the layer:
    `Int4Projection` can have their numbers as they are."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """As it is stored, on the device that unpacks it."""

    words: Tensor
    """int32"""
    zeros: Tensor
    """int32 [groups, words of N]"""
    scales: Tensor
    """[groups, N]"""
    groups: Tensor | None
    """int32 [K]: the group of each column. GPTQ's alone."""


def unpack(
    folder: Path, config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device
) -> Unpacked:
    """All tensors of the checkpoint in `folder`, whose config.json says by which method it is quantised; matrices in
    `dtype`, made on `device` where they fit. Raises ValueError where something isn't as that method has it."""
    began_s = time.monotonic()
    paths = {name: stored.path for name, stored in read_headers(folder)}
    layers = {name.removesuffix(".qweight") for name in paths if name.endswith(".qweight")}
    for name in paths:
        layer, _, part = name.rpartition(".")
        if part in PARTS and layer not in layers:  # it would be passed over
            raise ValueError(f"{name} belongs to no quantised layer")
    found, files = Unpacked(), _Files(paths)
    for name in paths:
        layer, _, part = name.rpartition(".")
        if part not in PARTS:
            found.tensors[name] = files.read(name)
        elif part == "qweight":
            try:
                _unpack(found, layer, files.matrix(layer, device), config, dtype)
            except torch.OutOfMemoryError:
                _unpack(found, layer, files.matrix(layer, _HOST), config, dtype)
    took_s = round(time.monotonic() - began_s, 3)
    log_event(log, "weights.unpacked", layers=len(layers), took_s=took_s)
    return found


def _unpack(
    found: Unpacked, layer: str, stored: _Matrix, config: Mapping[str, Any], dtype: torch.dtype
) -> None:
    settings = config["quantization_config"]
    if method_of(config) == "gptq":
        numbers, zeros = _gptq(layer, stored, settings)
    else:
        numbers, zeros = _awq(layer, stored)
    plain = _plain(layer, numbers, zeros, stored).to(dtype)
    is_turned = config.get("model_type") in TURNED
    found.tensors[f"{layer}.weight"] = (plain if is_turned else plain.t()).cpu().contiguous()
    if _is_int4(numbers, stored):
        scales, points = stored.scales.t().to(dtype), zeros.t().to(torch.uint8)
        has_points = bool((points != ZERO).any())
        found.int4[layer] = Quantised(scales.cpu(), points.cpu() if has_points else None)


class _Files:
    """The weight files of a checkpoint, each opened once."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._open: dict[Path, Any] = {}

    def read(self, name: str) -> Tensor:
        path = self._paths[name]
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        tensor: Tensor = self._open[path].get_tensor(name)
        return tensor

    def matrix(self, layer: str, device: torch.device) -> _Matrix:
        def part(name: str) -> Tensor:
            full = f"{layer}.{name}"
            if full not in self._paths:
                raise ValueError(f"{layer}.qweight has no {name} beside it")
            return self.read(full).to(device)

        def words(name: str) -> Tensor:
            found = part(name)
            if found.dtype is not torch.int32:
                kind = str(found.dtype).removeprefix("torch.")
                raise ValueError(f"{layer}.{name} has words of {kind}, not of {WORD_BITS} bits")
            return found

        groups = part("g_idx") if f"{layer}.g_idx" in self._paths else None
        return _Matrix(words("qweight"), words("qzeros"), part("scales").float(), groups)


def _gptq(layer: str, stored: _Matrix, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Numbers [K, N] and zero points [groups, N]."""
    bits: float = bits_of(settings)
    if stored.groups is not None:  # some layers may have more than the others
        bits = WORD_BITS * len(stored.words) / len(stored.groups)
    if bits not in GPTQ_BITS:
        raise ValueError(f"{layer} has numbers of {bits} bits")
    numbers = _along_rows(stored.words, int(bits))
    zeros = _along_rows(stored.zeros.t().contiguous(), int(bits)).t()
    if zeros.shape != stored.scales.shape or zeros.shape[1] != numbers.shape[1]:
        raise ValueError(
            f"{layer} has {list(stored.scales.shape)} scales for {list(numbers.shape)} numbers"
        )
    if form_of("gptq", settings) == "gptq":
        zeros = zeros + 1 & (1 << int(bits)) - 1  # 0 less one is the highest number
    return numbers, zeros


def _awq(layer: str, stored: _Matrix) -> tuple[Tensor, Tensor]:
    numbers, zeros = _along_columns(stored.words), _along_columns(stored.zeros)
    if zeros.shape != stored.scales.shape or zeros.shape[1] != numbers.shape[1]:
        raise ValueError(
            f"{layer} has {list(stored.scales.shape)} scales for {list(numbers.shape)} numbers"
        )
    return numbers, zeros


def _along_rows(words: Tensor, bits: int) -> Tensor:
    """int16 [R * 32 / bits, N] of `words` [R, N], which hold numbers that follow each other, the first one lowest. With
    3 bits three words hold 32, and some lie across two."""
    if bits == 3:
        return _threes(words)
    shifts = torch.arange(0, WORD_BITS, bits, dtype=torch.int32, device=words.device)[:, None]
    numbers = words[:, None] >> shifts & (1 << bits) - 1
    return numbers.to(torch.int16).flatten(0, 1)


def _threes(words: Tensor) -> Tensor:
    """As one line of 96 bits for each three words."""
    threes = words.view(-1, 3, words.shape[1])
    low, middle, high = (part.long() & 0xFFFFFFFF for part in threes.unbind(1))
    first, second = low | middle << 32, middle >> 16 | high << 16  # bits 0 to 63, and 48 to 95
    parts = [first[:, None] >> 3 * at & 7 for at in range(16)]
    parts += [second[:, None] >> 3 * at & 7 for at in range(16)]
    return torch.cat(parts, dim=1).to(torch.int16).flatten(0, 1)


def _along_columns(words: Tensor) -> Tensor:
    """int16 [R, N] of `words` [R, N / 8] in AWQ's order."""
    shifts = 4 * torch.tensor(AWQ_ORDER, dtype=torch.int32, device=words.device)
    return (words[:, :, None] >> shifts & 15).to(torch.int16).flatten(1)


def _plain(layer: str, numbers: Tensor, zeros: Tensor, stored: _Matrix) -> Tensor:
    """The matrix as [K, N], in float32."""
    scales = stored.scales
    if not _is_in_order(numbers, stored):
        assert stored.groups is not None
        at = stored.groups.long()
        if int(at.min()) < 0 or int(at.max()) >= len(scales):
            raise ValueError(f"{layer}.g_idx names groups that have no scales")
        return scales[at].mul_(numbers - zeros[at])
    each = len(numbers) // len(scales)
    if each * len(scales) != len(numbers):
        raise ValueError(f"{layer} has {len(scales)} groups for {len(numbers)} columns")
    grouped = numbers.view(len(scales), each, -1) - zeros[:, None]
    return grouped.float().mul_(scales[:, None]).flatten(0, 1)


def _is_in_order(numbers: Tensor, stored: _Matrix) -> bool:
    """Each group has as many columns as the others, and all of them beside each other."""
    if stored.groups is None:
        return True
    each = len(numbers) // len(stored.scales)
    places = torch.arange(len(numbers), device=numbers.device) // max(each, 1)
    return bool((stored.groups == places).all())


def _is_int4(numbers: Tensor, stored: _Matrix) -> bool:
    """Whether it is what `Int4Projection` keeps."""
    bits = WORD_BITS * stored.words.numel() // numbers.numel()
    is_grouped = len(numbers) == GROUP * len(stored.scales)
    return bits == INT4_BITS and is_grouped and _is_in_order(numbers, stored)
