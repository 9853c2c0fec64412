"""The engine `llama`: GGUF files, from their headers to a loaded runner."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llmhost.config.schema import LlamaOptions, ModelSpec
from llmhost.core.errors import ModelUnavailable
from llmhost.core.imports import long_import
from llmhost.core.ports import Runner, RunnerFacts, Tokenizer
from llmhost.engines.llama.extra import require
from llmhost.engines.llama.header import parts_of, read_header
from llmhost.engines.llama.library import llama
from llmhost.engines.llama.sizes import KV_TYPE, read_sizes
from llmhost.engines.llama.tokenizer import load_gguf_tokenizer

if TYPE_CHECKING:
    from llmhost.engines.llama.load import KvType


class LlamaKind:
    """GGUF files through llama.cpp. `llama_cpp` is imported on first use."""

    needs_files = True

    def require(self) -> None:
        """Raises ModelUnavailable where the extra is not installed, before files are fetched."""
        require()

    def footprint(self, spec: ModelSpec, folder: Path | None) -> RunnerFacts:
        require()
        options = _options(spec)
        sizes = read_sizes(read_header(model_file(folder)))
        return RunnerFacts(
            device=_device(options),
            vocab_size=sizes.vocab_size,
            max_sequence_length=sizes.context_length,
            block_tokens=spec.block_tokens,
            kv_block_bytes=spec.block_tokens * sizes.kv_token_bytes(_kv_type(options)),
            weights_bytes=sizes.weights_bytes,
            step_token_bytes=sizes.step_token_bytes,
            step_row_bytes=sizes.step_row_bytes,
        )

    def load(self, spec: ModelSpec, folder: Path | None, predicted: RunnerFacts) -> Runner:
        require()
        with long_import():  # draws by torch, as the torch engine does
            from llmhost.engines.llama.load import LoadSettings, load_runner

        options = _options(spec)
        settings = LoadSettings(
            batch_tokens=spec.max_tokens_per_batch,
            rows=spec.max_batch_size,
            threads=options.threads,
            gpu_layers=options.gpu_layers,
            kv_type=_kv_type(options),
            flash_attention=options.flash_attention,
            mmap=options.mmap,
            mlock=options.mlock,
        )
        return load_runner(model_file(folder), settings, predicted)

    def tokenizer(self, spec: ModelSpec, folder: Path | None) -> Tokenizer:
        require()
        return load_gguf_tokenizer(read_header(model_file(folder)))

    def device_bytes(self, device: str) -> int | None:
        if not device.startswith("cuda"):
            return None
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)


def model_file(place: Path | None) -> Path:
    """The only or first file of the model in a folder, or the file itself. Raises ModelUnavailable."""
    if place is None:
        raise ModelUnavailable("This engine needs a source: a .gguf file, or hf:ORG/NAME:FILE.")
    if place.is_file():
        return parts_of(place)[0]
    found = {parts_of(path)[0] for path in place.rglob("*.gguf")}
    if len(found) == 1:
        return found.pop()
    if found:
        names = ", ".join(sorted(path.name for path in found))
        raise ModelUnavailable(f"{place} has several GGUF files ({names}). Name one as the source.")
    raise ModelUnavailable(
        f"{place} has no GGUF file. `llmhost export-gguf` makes one of a folder with safetensors; the engine 'torch'"
        " serves it as it is."
    )


def _options(spec: ModelSpec) -> LlamaOptions:
    return msgspec.convert(spec.options, LlamaOptions)


def _kv_type(options: LlamaOptions) -> "KvType":
    return KV_TYPE if options.kv_dtype == "auto" else options.kv_dtype


def _device(options: LlamaOptions) -> str:
    if not options.gpu_layers:
        return "cpu:0"
    if not llama().llama_supports_gpu_offload():
        raise ModelUnavailable(
            f"options.gpu_layers is {options.gpu_layers}, and llama-cpp-python was built here without a GPU."
            " Build it for CUDA (CMAKE_ARGS='-DGGML_CUDA=on'), or leave the option away."
        )
    return "cuda:0"
