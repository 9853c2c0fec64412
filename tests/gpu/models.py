"""The random models that are measured: made on the device, or written as a folder that a server can be pointed at."""

import json
import os
import string
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from llmhost.engines.torch.random_model import RandomShape
from llmhost.engines.torch.random_model import _config as model_config

LLAMA_8B = RandomShape(
    layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, vocab=128_256, positions=8192
)
SHAPES = {
    "8b": LLAMA_8B,
    "small": replace(LLAMA_8B, layers=4),
    "tiny": RandomShape(
        layers=2, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=512, positions=512, dtype="float32"
    ),
}
SHARDS = 4
_KINDS = {torch.bfloat16: "BF16", torch.float32: "F32"}
_SPREAD = 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes go."""

    path: Path
    offset: int
    name: str
    shape: Sequence[int]


def random_transformers(shape: RandomShape, device: torch.device, attention: str) -> Any:
    """transformers' own model, its weights drawn on `device`."""
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(
            model_config(shape), dtype=getattr(torch, shape.dtype), attn_implementation=attention
        )
    return model.eval().requires_grad_(False)


def write_folder(folder: Path, shape: RandomShape, device: torch.device) -> int:
    """A checkpoint in shards, with a tokenizer, as if it had been downloaded; its weights are drawn on `device`.

    Returns bytes of weights. Several threads write, since 16 GB are much for one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model_config(shape)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    named = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dtype = getattr(torch, shape.dtype)
    places = list(_open_shards(folder, named, dtype))
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as threads:
        written = sum(threads.map(lambda place: _write(place, dtype, device), places))
    content = {**config.to_dict(), "architectures": [type(model).__name__], "dtype": shape.dtype}
    (folder / "config.json").write_text(json.dumps(content))
    write_tokenizer(folder, shape.vocab)
    return written


def _open_shards(
    folder: Path, named: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> Iterator[Place]:
    """Files of the right size with their headers, and the index beside them."""
    names = list(named)
    each = -(-len(names) // SHARDS)
    weight_map: dict[str, str] = {}
    for number in range(SHARDS):
        mine = names[number * each :][:each]
        path = folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        weight_map |= dict.fromkeys(mine, path.name)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in mine:
            size = torch.Size(named[name]).numel() * dtype.itemsize
            header[name] = {
                "dtype": _KINDS[dtype],
                "shape": named[name],
                "data_offsets": [end, end + size],
            }
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        for name in mine:
            yield Place(path, 8 + len(text) + header[name]["data_offsets"][0], name, named[name])
    assert len(weight_map) == len(names)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write(place: Place, dtype: torch.dtype, device: torch.device) -> int:
    tensor = torch.empty(place.shape, dtype=dtype, device=device)
    drawn = tensor.fill_(1.0) if tensor.dim() == 1 else tensor.normal_(0, _SPREAD)
    content = memoryview(_bytes(drawn))
    with place.path.open("r+b", buffering=0) as file:
        file.seek(place.offset)
        done = 0
        while done < len(content):
            done += file.write(content[done : done + 2**30])
    return len(content)


def _bytes(tensor: Tensor) -> Any:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy()


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Byte-level, with `vocab` entries, of which most are made-up words of a few letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("Ġ" + "".join(letters) for letters in product(string.ascii_lowercase, repeat=4))
    entries = [*alphabet, *islice(words, max(vocab - len(alphabet), 0))][:vocab]
    tokenizer = Tokenizer(
        models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
