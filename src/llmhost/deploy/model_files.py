"""The files of models and adapters: fetched, read for what can be told without weights, and marked."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from llmhost.core.errors import ConfigError, LlmhostError, ModelUnavailable
from llmhost.core.ports import RunnerFacts, Tokenizer
from llmhost.deploy.catalogue import ModelEntry, Served
from llmhost.deploy.off_loop import OffLoop
from llmhost.deploy.registry import mark_of
from llmhost.deploy.sources import find_files, mark_of_read, presence
from llmhost.engines.kinds import EngineKind

T = TypeVar("T")


class ModelFiles:
    """Of all models of this node. Methods are called on the HTTP loop, and read off it."""

    def __init__(self, kinds: Mapping[str, EngineKind], models_dir: Path) -> None:
        self.off_loop = OffLoop()
        self._kinds = kinds
        self._models_dir = models_dir
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by model
        self._tokenizers: dict[str, Tokenizer] = {}
        self._predictions: dict[str, RunnerFacts] = {}
        self._marks: dict[tuple[str, str | None], str] = {}

    async def tokenizer(self, entry: ModelEntry) -> Tokenizer:
        """The model's tokenizer, which does not need its weights. Kept."""
        key = str(entry.ref)
        if key not in self._tokenizers:
            async with self._reading[key]:
                if key not in self._tokenizers:
                    read = partial(self.kind(entry).tokenizer, entry.spec)
                    self._tokenizers[key] = await self.read(entry, read)
        return self._tokenizers[key]

    async def predict(self, entry: ModelEntry) -> RunnerFacts:
        """What the model would need, from its headers. Kept."""
        key = str(entry.ref)
        if key not in self._predictions:
            async with self._reading[key]:
                if key not in self._predictions:
                    read = partial(self.kind(entry).footprint, entry.spec)
                    self._predictions[key] = await self.read(entry, read)
        return self._predictions[key]

    async def mark(self, served: Served) -> str:
        """What the files of a model hold, by samples, and in what precision they are computed, or those of an adapter.
        For what is not loaded; kept until the model is loaded or unloaded, and empty before the files are here."""
        key = str(served.entry.ref), served.adapter
        if key not in self._marks:
            self._marks[key] = await self.off_loop.run(partial(mark_of, served, self._models_dir))
        return self._marks[key]

    def forget_marks(self, entry: ModelEntry) -> None:
        """Its files, or those of an adapter, are about to be read anew."""
        self.forget_marks_of(str(entry.ref))

    def forget_marks_of(self, ref: str) -> None:
        for key in [key for key in self._marks if key[0] == ref]:
            del self._marks[key]

    async def mark_of_read(self, entry: ModelEntry, before: str) -> str:
        """Of what has just been read, whose mark was `before` when that began."""
        self.forget_marks(entry)
        return mark_of_read(before, await self.mark(Served(entry)))

    def forget(self, model: str) -> None:
        """What was read of a model is looked at anew when it comes back."""
        self._tokenizers.pop(model, None)
        self._predictions.pop(model, None)

    def presence_of(self, entry: ModelEntry) -> str | None:
        """Whether the model's files are here: present, partial or absent; None for an engine without files. Blocks."""
        kind = self._kinds.get(entry.spec.engine)
        if kind is None or not kind.needs_files:
            return None
        return presence(entry.spec.source, self._models_dir)

    def presence(self, source: str) -> str:
        """Whether a source's files are here: present, partial or absent. Blocks."""
        return presence(source, self._models_dir)

    @property
    def is_reading(self) -> bool:
        """A thread still reads or fetches a model's files."""
        return self.off_loop.is_busy

    def stop_reading(self) -> None:
        """Whoever waits for a model's files is refused. What is being read is read by a thread for nobody."""
        self.off_loop.close()

    def kind(self, entry: ModelEntry) -> EngineKind:
        """The engine of a model. Raises ConfigError where there is none."""
        kind = self._kinds.get(entry.spec.engine)
        if kind is None:
            known = ", ".join(sorted(self._kinds))
            raise ConfigError(
                f"[models.{entry.name}] engine {entry.spec.engine!r} is unknown; there is: {known}."
            )
        return kind

    async def read(self, entry: ModelEntry, act: Callable[[Path | None], T]) -> T:
        """What an engine makes of the model's files, off the HTTP loop. Raises ModelUnavailable, whatever it raised."""
        kind = self.kind(entry)
        needs_files = kind.needs_files
        require: Any = getattr(kind, "require", None)

        def read() -> T:
            if require is not None:
                require()
            return act(find_files(entry.spec.source, self._models_dir) if needs_files else None)

        try:
            return await self.off_loop.run(read)
        except LlmhostError:
            raise
        except Exception as error:
            raise ModelUnavailable(
                f"The model {entry.ref} could not be loaded: {type(error).__name__}: {error}"
            ) from error
