"""The engine `llama`: GGUF files, from their headers to a loaded runner."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from llmhost.config.schema.engines import LlamaOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ModelUnavailable
from llmhost.core.imports import long_import
from llmhost.core.ports import Runner, RunnerFacts, Tokenizer
from llmhost.core.units import parse_bytes
from llmhost.engines.llama.extra import require
from llmhost.engines.llama.header import Header, parts_of, read_header
from llmhost.engines.llama.library import llama
from llmhost.engines.llama.sizes import KV_TYPE, Sizes, read_sizes
from llmhost.engines.llama.tokenizer import load_gguf_tokenizer

TYPICAL_SEQUENCE_TOKENS = 1024
"""As what a KV cache gets is planned for."""
POOLED_TOKENS = 2048
"""In the longest text that is embedded, where max_sequence_length doesn't say it: room for one is always there."""

BUILT_IN = "builtin:"
"""Sources whose files this package has made, and knows."""

if TYPE_CHECKING:
    from llmhost.engines.llama.settings import KvType, LoadSettings
    from llmhost.engines.llama.trials import Trials


class LlamaKind:
    """GGUF files through llama.cpp. `llama_cpp` is imported on first use."""

    needs_files = True

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` keeps what is known of files; without one it is known for as long as this lives."""
        self._folder = folder

    @cached_property
    def _trials(self) -> "Trials":
        from llmhost.engines.llama.trials import Trials

        return Trials(self._folder)

    def require(self) -> None:
        """Raises ModelUnavailable where the extra is not installed, before files are fetched."""
        require()

    def footprint(self, spec: ModelSpec, folder: Path | None) -> RunnerFacts:
        require()
        path, options = model_file(folder), _options(spec)
        header = read_header(path)
        sizes = read_sizes(header)
        self._prove(spec, header, sizes)
        token_bytes = sizes.kv_token_bytes(_kv_type(options))
        if (task := _task(path, options, sizes)) != "generate":
            return self._pooling_facts(path, spec, sizes, task)
        step_bytes = self._step_bytes(path, spec, _cells(spec, sizes, token_bytes))
        block_bytes = spec.block_tokens * token_bytes
        if not options.gpu_layers:
            from llmhost.engines.llama.rooms import ROUNDED_CELLS, with_spare

            step_bytes += ROUNDED_CELLS * token_bytes
            block_bytes = with_spare(block_bytes)
        return RunnerFacts(
            device=_device(options),
            vocab_size=sizes.vocab_size,
            max_sequence_length=sizes.context_length,
            block_tokens=spec.block_tokens,
            kv_block_bytes=block_bytes,
            weights_bytes=sizes.weights_bytes,
            step_token_bytes=-(-step_bytes // spec.max_tokens_per_batch),
            step_row_bytes=4 * sizes.vocab_size,  # what draws from logits has a copy of them
        )

    def adapter_bytes(self, spec: ModelSpec, folder: Path | None, adapter: Path) -> int:
        """What a LoRA adapter will take, from its headers. Raises ModelUnavailable."""
        from llmhost.engines.llama.adapter_files import adapter_bytes

        return adapter_bytes(adapter)

    def load(self, spec: ModelSpec, folder: Path | None, predicted: RunnerFacts) -> Runner:
        require()
        with long_import():  # draws by torch, as the torch engine does
            from llmhost.engines.llama.load import load_pooling, load_runner

        self._prove_again(spec, folder, predicted)
        if predicted.task != "generate":
            settings = self._pooling_settings(spec, predicted.max_sequence_length)
            return load_pooling(model_file(folder), settings, predicted)
        return load_runner(model_file(folder), self._settings(spec), predicted)

    def _prove_again(self, spec: ModelSpec, folder: Path | None, predicted: RunnerFacts) -> None:
        """What was predicted is kept for long, and another file may lie there by now. Raises ModelUnavailable."""
        header = read_header(model_file(folder))
        sizes = read_sizes(header)
        if (sizes.weights_bytes, sizes.vocab_size) != (
            predicted.weights_bytes,
            predicted.vocab_size,
        ):
            raise ModelUnavailable(
                f"{header.path} holds another model than when its memory was planned. Ask again."
            )
        self._prove(spec, header, sizes)

    def _prove(self, spec: ModelSpec, header: Header, sizes: Sizes) -> None:
        """Raises ModelUnavailable for a file that llama.cpp ends its process over, which is tried in another one."""
        if spec.source.startswith(BUILT_IN):
            return
        options = _options(spec)
        if _task(header.path, options, sizes) != "generate":
            longest = _longest_pooled(spec, sizes)
            self._trials.prove(header, self._pooling_settings(spec, longest), ())
            return
        from llmhost.engines.llama.rooms import rooms_of
        from llmhost.engines.llama.settings import shape_of

        settings = self._settings(spec)
        cells = _cells(spec, sizes, sizes.kv_token_bytes(_kv_type(options)))
        self._trials.prove(header, settings, rooms_of(shape_of(llama(), settings), cells))

    def _step_bytes(self, path: Path, spec: ModelSpec, cells: int) -> int:
        from llmhost.engines.llama.dry_load import step_bytes
        from llmhost.engines.llama.rooms import rooms_of
        from llmhost.engines.llama.settings import shape_of

        settings = self._settings(spec)
        shape = shape_of(llama(), settings)
        rooms = rooms_of(shape, cells)
        return max(step_bytes(path, shape, room, gpu_layers=settings.gpu_layers) for room in rooms)

    def _pooling_facts(self, path: Path, spec: ModelSpec, sizes: Sizes, task: str) -> RunnerFacts:
        options = _options(spec)
        if sizes.pooling is None and options.pooling is None:
            raise ModelUnavailable(
                f"{path} doesn't say how its model pools a text. Say it: options.pooling = 'mean', 'cls' or 'last'."
            )
        from llmhost.engines.llama.context import Room
        from llmhost.engines.llama.dry_load import step_bytes
        from llmhost.engines.llama.settings import shape_of

        longest = _longest_pooled(spec, sizes)
        settings = self._pooling_settings(spec, longest)
        shape = shape_of(llama(), settings)
        room = settings.batch_tokens
        gpu_layers = options.gpu_layers
        needed = step_bytes(path, shape, Room(room), gpu_layers=gpu_layers, pools=True)
        needed += room * sizes.kv_token_bytes("f16")
        return RunnerFacts(
            device=_device(options),
            vocab_size=sizes.vocab_size,
            max_sequence_length=longest,
            block_tokens=spec.block_tokens,
            kv_block_bytes=0,
            weights_bytes=sizes.weights_bytes,
            step_token_bytes=-(-needed // spec.max_tokens_per_batch),
            task=task,
            pooled_size=len(sizes.labels) or sizes.width,
            labels=sizes.labels,
        )

    def _pooling_settings(self, spec: ModelSpec, longest: int) -> "LoadSettings":
        """A text goes in whole, so there is room for the longest."""
        settings = self._settings(spec)
        return replace(
            settings,
            batch_tokens=max(settings.batch_tokens, longest),
            pooling=_options(spec).pooling,
        )

    def _settings(self, spec: ModelSpec) -> "LoadSettings":
        from llmhost.engines.llama.settings import LoadSettings

        options = _options(spec)
        return LoadSettings(
            batch_tokens=spec.max_tokens_per_batch,
            rows=spec.max_batch_size,
            threads=options.threads,
            gpu_layers=options.gpu_layers,
            kv_type=_kv_type(options),
            flash_attention=options.flash_attention,
            kv_layout=options.kv_layout,
            mmap=options.mmap,
            mlock=options.mlock,
        )

    def tokenizer(self, spec: ModelSpec, folder: Path | None) -> Tokenizer:
        require()
        header = read_header(model_file(folder))
        self._prove(spec, header, read_sizes(header))  # llama.cpp may be asked for ids
        return load_gguf_tokenizer(header)

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


def _task(path: Path, options: LlamaOptions, sizes: Sizes) -> str:
    """Raises ModelUnavailable for one that the file's model was not made for."""
    own = "generate" if sizes.pooling is None else "classify" if sizes.labels else "embed"
    wanted = own if options.task == "auto" else options.task
    if own != wanted and "classify" in (own, wanted):
        raise ModelUnavailable(
            f"{path} holds a model that is made to {own}, and options.task is {wanted!r}: leave the option away."
        )
    if own == "classify" and options.pooling is not None:
        raise ModelUnavailable(
            f"{path} holds a model with a head that scores texts, and options.pooling is {options.pooling!r}: leave the"
            " option away."
        )
    return wanted


def _cells(spec: ModelSpec, sizes: Sizes, token_bytes: int) -> int:
    """Tokens that the KV cache is likely to get, where there is room for it."""
    longest = min(sizes.context_length, spec.max_sequence_length or sizes.context_length)
    if spec.kv_memory is not None and token_bytes:
        return max(parse_bytes(spec.kv_memory) // token_bytes, 1)
    return max(spec.max_batch_size * min(longest, TYPICAL_SEQUENCE_TOKENS), longest)


def _longest_pooled(spec: ModelSpec, sizes: Sizes) -> int:
    return min(sizes.context_length, spec.max_sequence_length or POOLED_TOKENS)


def _device(options: LlamaOptions) -> str:
    if not options.gpu_layers:
        return "cpu:0"
    if not llama().llama_supports_gpu_offload():
        raise ModelUnavailable(
            f"options.gpu_layers is {options.gpu_layers}, and llama-cpp-python was built here without a GPU."
            " Build it for CUDA (CMAKE_ARGS='-DGGML_CUDA=on'), or leave the option away."
        )
    return "cuda:0"
