"""The models that this node offers, by name and alias. It knows what is declared, not what is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

import msgspec

from llmhost.config.schema.models import ModelSpec
from llmhost.core.caller import Caller
from llmhost.core.errors import UnknownModel
from llmhost.core.sequence import ModelRef

LATEST = "latest"
"""What Ollama puts behind a model's name where nobody says anything else."""
KEPT_LISTS = 1_000
"""Allow-lists whose models are remembered."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One declared model at one version."""

    ref: ModelRef
    spec: ModelSpec
    created_s: int
    name: str = field(init=False)
    label: str = field(init=False)
    """`name@version`."""

    def __post_init__(self) -> None:  # each request asks for them some ten times
        object.__setattr__(self, "name", self.ref.name)
        object.__setattr__(self, "label", str(self.ref))

    def may_be_used_by(self, caller: Caller) -> bool:
        """A key's allow-list may name a model by any of its names."""
        if caller.models is None or self.name in caller.models:
            return True
        return any(map(caller.may_use, self.spec.aliases))


class Served(msgspec.Struct, frozen=True):
    """What a request can name: a model, or a model with one of its LoRA adapters."""

    entry: ModelEntry
    adapter: str | None = None
    source: str = ""
    """Where the adapter's files are."""
    is_declared: bool = True
    """False for an adapter that an operator added since the start."""

    @property
    def name(self) -> str:
        return self.entry.name if self.adapter is None else f"{self.entry.name}:{self.adapter}"

    def may_be_used_by(self, caller: Caller) -> bool:
        """Who may use a model may use its adapters; a key may also be for an adapter alone, by any of its names."""
        if self.entry.may_be_used_by(caller):
            return True
        names = (self.entry.name, *self.entry.spec.aliases)
        return self.adapter is not None and any(
            caller.may_use(name) for name in (self.adapter, *(f"{n}:{self.adapter}" for n in names))
        )


class Catalogue:
    """Names and aliases to entries; config has made sure that no two clash. Adapters come and go while it runs."""

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._aliases = {
            alias: entry for entry in self._entries.values() for alias in entry.spec.aliases
        }
        self._adapters = {
            (entry.name, name): Served(entry, name, source)
            for entry in self._entries.values()
            for name, source in entry.spec.adapters.items()
        }
        self._models = {
            name: Served(entry) for name, entry in (self._aliases | self._entries).items()
        }
        self._names: dict[tuple[str, ...] | None, tuple[str, ...]] = {}
        """By allow-list, what its keys may use."""

    def entries(self) -> tuple[ModelEntry, ...]:
        return tuple(self._entries.values())

    def find(self, name: str) -> ModelEntry:
        """The entry with this name or alias. Raises UnknownModel with the nearest name."""
        if (entry := self._model(name)) is None:
            raise self._unknown(name)
        return entry

    def locate(self, name: str) -> Served:
        """What a request names: a model or alias, `MODEL:ADAPTER`, or an adapter that one model alone has.

        `MODEL:latest` is the model: so those name it who found it in Ollama's list and ask elsewhere.

        Raises UnknownModel with the nearest name.
        """
        if (served := self._models.get(name)) is not None:
            return served
        model, _, adapter = name.rpartition(":")
        if (entry := self._model(model)) is not None and (entry.name, adapter) in self._adapters:
            return self._adapters[entry.name, adapter]
        if adapter == LATEST and (served := self._models.get(model)) is not None:
            return served
        bare = [served for served in self._adapters.values() if served.adapter == name]
        if len(bare) != 1:
            raise self._unknown(name)
        return bare[0]

    def adapters(self, entry: ModelEntry | None = None) -> tuple[Served, ...]:
        """All of them, or one model's."""
        return tuple(
            served for served in self._adapters.values() if entry is None or served.entry is entry
        )

    def names_for(self, caller: Caller) -> tuple[str, ...]:
        """Everything that the caller may use, by its own name."""
        known = self._names.get(caller.models)
        if known is None:
            if len(self._names) >= KEPT_LISTS:
                self._names.clear()
            everything = (*map(Served, self.entries()), *self._adapters.values())
            known = tuple(one.name for one in everything if one.may_be_used_by(caller))
            self._names[caller.models] = known
        return known

    def add_adapter(self, served: Served) -> None:
        """From now on requests can name it."""
        assert served.adapter is not None
        self._adapters[served.entry.name, served.adapter] = served
        self._names.clear()

    def remove_adapter(self, served: Served) -> None:
        """Requests can't name it any more. Unknown ones are ignored."""
        self._adapters.pop((served.entry.name, served.adapter or ""), None)
        self._names.clear()

    def _model(self, name: str) -> ModelEntry | None:
        return self._entries.get(name) or self._aliases.get(name)

    def _unknown(self, name: str) -> UnknownModel:
        adapters = (served.name for served in self._adapters.values())
        known = [*self._entries, *self._aliases, *adapters]
        return UnknownModel(name, nearest=next(iter(get_close_matches(name, known, n=1)), None))
