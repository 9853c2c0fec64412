"""The models that this node offers, by name and alias. It knows what is declared, not what is loaded."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from llmhost.config.schema import ModelSpec
from llmhost.core.errors import UnknownModel
from llmhost.core.request import Caller, ModelRef


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One declared model at one version."""

    ref: ModelRef
    spec: ModelSpec
    created_s: int

    @property
    def name(self) -> str:
        return self.ref.name

    def may_be_used_by(self, caller: Caller) -> bool:
        """A key's allow-list may name a model by any of its names."""
        return any(caller.may_use(name) for name in (self.name, *self.spec.aliases))


class Catalogue:
    """Names and aliases to entries; config has made sure that no two clash."""

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._aliases = {
            alias: entry for entry in self._entries.values() for alias in entry.spec.aliases
        }

    def entries(self) -> tuple[ModelEntry, ...]:
        return tuple(self._entries.values())

    def find(self, name: str) -> ModelEntry:
        """The entry with this name or alias. Raises UnknownModel with the nearest name."""
        entry = self._entries.get(name) or self._aliases.get(name)
        if entry is None:
            known = [*self._entries, *self._aliases]
            raise UnknownModel(name, nearest=next(iter(get_close_matches(name, known, n=1)), None))
        return entry
