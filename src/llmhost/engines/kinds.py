"""The kinds of engine: what a deployment asks of each before, while and after it loads a model."""

import sys
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from llmhost.config.schema.engines import FakeOptions, TorchOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ModelUnavailable
from llmhost.core.imports import long_import
from llmhost.core.ports import Runner, RunnerFacts, Tokenizer
from llmhost.engines.fake import FakeRunner
from llmhost.engines.fake_pooling import FakePoolingRunner
from llmhost.engines.llama.kind import LlamaKind
from llmhost.text.tokenizer import load_tokenizer
from llmhost.text.words import WordTokenizer


class EngineKind(Protocol):
    """One way to run models. All methods block and are called off the HTTP loop.

    `folder` is None when `needs_files` is False.
    """

    needs_files: bool

    def footprint(self, spec: ModelSpec, folder: Path | None) -> RunnerFacts:
        """What a loaded model would need, from its headers alone. Raises ModelUnavailable."""
        ...

    def load(self, spec: ModelSpec, folder: Path | None, predicted: RunnerFacts) -> Runner: ...

    def tokenizer(self, spec: ModelSpec, folder: Path | None) -> Tokenizer: ...

    def device_bytes(self, device: str) -> int | None:
        """All memory of a device that this engine sees and the host does not; None when there is none such."""
        ...


class FakeKind:
    """Deterministic words; no files, no device."""

    needs_files = False

    def footprint(self, spec: ModelSpec, folder: Path | None) -> RunnerFacts:
        return self._runner(spec).facts

    def load(self, spec: ModelSpec, folder: Path | None, predicted: RunnerFacts) -> Runner:
        return self._runner(spec)

    def tokenizer(self, spec: ModelSpec, folder: Path | None) -> Tokenizer:
        return WordTokenizer(_options(spec, FakeOptions).vocab)

    def device_bytes(self, device: str) -> int | None:
        return None

    def _runner(self, spec: ModelSpec) -> FakeRunner | FakePoolingRunner:
        options = _options(spec, FakeOptions)
        if options.task != "generate":
            return FakePoolingRunner(options, block_tokens=spec.block_tokens)
        return FakeRunner(_options(spec, FakeOptions), block_tokens=spec.block_tokens)


class TorchKind:
    """transformers checkpoints through our own runner. torch is imported on first use.

    `names` is a file in which to keep what transformers would find out about itself at each start.
    """

    needs_files = True

    def __init__(self, names: Path | None = None) -> None:
        self._names = names

    def footprint(self, spec: ModelSpec, folder: Path | None) -> RunnerFacts:
        from llmhost.engines.torch.footprint import read_footprint
        from llmhost.engines.torch.narrow_sizes import check_options

        options = _options(spec, TorchOptions)
        device = self._device(options)
        task = self._task(spec, folder)
        check_options(options, device=device, capability=self._capability(device), task=task)
        if task != "generate":
            return self._pooling_facts(_present(folder), task, device, spec)
        needs = read_footprint(
            _present(folder),
            block_tokens=spec.block_tokens,
            dtype=options.dtype,
            on_gpu=device.startswith("cuda"),
            weights=options.weights,
            kv_dtype=options.kv_dtype,
        )
        return RunnerFacts(
            device=device,
            vocab_size=needs.vocab_size,
            max_sequence_length=needs.max_sequence_length,
            block_tokens=spec.block_tokens,
            kv_block_bytes=needs.kv_block_bytes,
            weights_bytes=needs.weights_bytes,
            step_token_bytes=needs.step_token_bytes,
            step_row_bytes=needs.step_row_bytes,
        )

    def adapter_bytes(self, spec: ModelSpec, folder: Path | None, adapter: Path) -> int:
        """What a LoRA adapter of this model will take, from its headers. Raises ModelUnavailable."""
        from llmhost.engines.torch.footprint import _ITEM_BYTES, read_footprint
        from llmhost.engines.torch.lora_files import read_adapter

        options = _options(spec, TorchOptions)
        on_gpu = self._device(options).startswith("cuda")
        needs = read_footprint(
            _present(folder), block_tokens=spec.block_tokens, dtype=options.dtype, on_gpu=on_gpu
        )
        return read_adapter(adapter).parameters * _ITEM_BYTES[needs.dtype]

    def device_bytes(self, device: str) -> int | None:
        if not device.startswith("cuda"):
            return None
        import torch

        return int(torch.cuda.get_device_properties(device).total_memory)

    def _capability(self, device: str) -> tuple[int, int] | None:
        if not device.startswith("cuda"):
            return None
        import torch

        return torch.cuda.get_device_capability(device)

    def _device(self, options: TorchOptions) -> str:
        if options.device == "cpu":
            return "cpu:0"
        self._import()
        from llmhost.engines.torch.load import pick_device

        device = pick_device(options.device)
        return f"{device.type}:{device.index or 0}"

    def _import(self) -> None:
        """Seconds, the first time."""
        if "llmhost.engines.torch.load" in sys.modules:
            return
        with long_import():
            from llmhost.engines.torch.late import import_transformers, late_imports

            import_transformers(self._names)
            with late_imports():
                import llmhost.engines.torch.load  # noqa: F401

    def load(self, spec: ModelSpec, folder: Path | None, predicted: RunnerFacts) -> Runner:
        self._import()
        from llmhost.engines.torch.late import late_imports

        with late_imports():  # the model's own modules
            return self._load(spec, folder)

    def _load(self, spec: ModelSpec, folder: Path | None) -> Runner:
        from llmhost.engines.torch.load import load_runner

        options = _options(spec, TorchOptions)
        if (task := self._task(spec, folder)) != "generate":
            from llmhost.engines.torch.pooling_load import load_pooling

            return load_pooling(
                _present(folder), task=task, block_tokens=spec.block_tokens, options=options
            )
        runner = load_runner(_present(folder), block_tokens=spec.block_tokens, options=options)
        runner.most_rows, runner.most_tokens = spec.max_batch_size, spec.max_tokens_per_batch
        return runner

    def _task(self, spec: ModelSpec, folder: Path | None) -> str:
        from llmhost.engines.torch.pooling_files import task_of

        return task_of(_present(folder), _options(spec, TorchOptions))

    def _pooling_facts(self, folder: Path, task: str, device: str, spec: ModelSpec) -> RunnerFacts:
        from llmhost.engines.torch.pooling_files import facts_of, read_pooling

        on_gpu = device.startswith("cuda")
        options = _options(spec, TorchOptions)
        files = read_pooling(folder, task=task, options=options, on_gpu=on_gpu)
        return facts_of(files, device, spec.block_tokens)

    def tokenizer(self, spec: ModelSpec, folder: Path | None) -> Tokenizer:
        return load_tokenizer(_present(folder))


def built_in(data_dir: Path | None = None) -> dict[str, EngineKind]:
    """The engines of this package. What they find out about files is kept in a data dir."""
    tried = None if data_dir is None else data_dir / "gguf-tried"
    names = None if data_dir is None else data_dir / "transformers-names.json"
    return {"torch": TorchKind(names), "llama": LlamaKind(tried), "fake": FakeKind()}


T = TypeVar("T")


def _options(spec: ModelSpec, kind: type[T]) -> T:
    return msgspec.convert(spec.options, kind)


def _present(folder: Path | None) -> Path:
    if folder is None:
        raise ModelUnavailable("This engine needs a source: a folder, builtin:NAME or hf:ORG/NAME.")
    return folder
