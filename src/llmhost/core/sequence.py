"""One sequence as data, and what it refers to: all that crosses from a request to the scheduler and its runners."""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

import msgspec

from llmhost.core.grammar import GrammarSpec
from llmhost.core.sampling import Sampling
from llmhost.core.thoughts import ThoughtIds


class Purpose(StrEnum):
    """Why a forward pass ran: what the caller pays for and what the operator does."""

    CALLER = "caller"
    GUARD = "guard"
    EMBED = "embed"
    PROBE = "probe"
    BATCH = "batch"
    OPTIMISE = "optimise"


@dataclass(frozen=True, slots=True)
class Pooling:
    """Instead of an answer, one vector: of a text (`embed`) or of scores for labels (`classify`)."""

    task: str
    second_from: int | None = None
    """Where the second of two texts begins, for a model that tells the texts of a pair apart."""
    is_raw: bool = False
    """Without the model's last step: a vector is not normalised, scores are not made probabilities."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model's identity everywhere: ledger, metrics, logs, cache keys."""

    name: str
    version: int

    def __str__(self) -> str:
        return _named(self.name, self.version)


@lru_cache(maxsize=1_000)
def _named(model: str, version: int) -> str:
    return f"{model}@{version}"  # asked for some ten times for each request


class SequenceSpec(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One sequence as data: everything that a runner elsewhere needs to go on with it.

    `generated` is empty at first; an exported sequence (preemption, migration, restart) carries what it
    already said, so that importing it continues at the same position with the same seed.
    """

    request_id: str
    index: int
    """Which choice of the request this is."""
    model: ModelRef
    prompt: tuple[int, ...]
    generated: tuple[int, ...] = ()
    sampling: Sampling
    seed: int
    """Always set: the caller's seed, or one drawn at admission."""
    max_new_tokens: int
    """Ceiling on generated tokens, `generated` included."""
    held_tokens: int | None = None
    """So many of them, `generated` included, are paid for: after those it waits for `EngineClient.allow`. At least 1;
    None for no such ceiling. What draws nothing has none."""
    min_new_tokens: int = 0
    """Before so many, no id of `stop_token_ids` is drawn and no stop string ends the answer."""
    stop: tuple[str, ...] = ()
    tells_stop: bool = False
    """The stop string that ends the answer is part of it."""
    shown: tuple[str, ...] = ()
    """Special tokens that are told as text, because something is marked by them."""
    predicted: tuple[int, ...] = ()
    """What its caller thinks that it says: guesses are looked up there, too."""
    thoughts: ThoughtIds | None = None
    """What is counted as thoughts; None for nothing."""
    begins_with_thoughts: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    grammar: GrammarSpec | None = None
    adapter: str | None = None
    """Name of the LoRA adapter to run with; None runs the model as it is."""
    pooling: Pooling | None = None
    """Set for a sequence that ends with a vector once its prompt is computed, and draws nothing."""
    priority: int = 0
    arrival_ns: int = 0
    deadline_ns: int | None = None
    """On the clock of `arrival_ns`: what has not ended by then is ended."""
    tenant: str = ""
    """Whom the scheduler is fair to."""
    cache_scope: str = ""
    """Sequences of one scope may share computed prompt blocks."""
    purpose: Purpose = Purpose.CALLER
    high_water: int = 0
    """Positions that were computed before an export: doing them again is not the caller's to pay."""
    engine_ns: int = 0
    """Device time used before an export."""
    cost_nano: int = 0
    input_cost_nano: int = 0
    cached_tokens: int = 0

    def allowed(self, held_tokens: int, *, is_final: bool = False) -> "SequenceSpec":
        """With so many tokens paid for, if they are more than before. No more come after the final number, so there it
        is to end. Where there is no ceiling nothing changes."""
        if self.held_tokens is None or not (is_final or held_tokens > self.held_tokens):
            return self
        held_tokens = max(held_tokens, self.held_tokens)
        most = min(self.max_new_tokens, held_tokens) if is_final else self.max_new_tokens
        return msgspec.structs.replace(self, held_tokens=held_tokens, max_new_tokens=most)

    def anew(
        self,
        request_id: str,
        *,
        prompt: tuple[int, ...],
        max_new_tokens: int,
        seed: int,
        arrival_ns: int,
        held_tokens: int | None,
    ) -> "SequenceSpec":
        """The same for a request that is as the one before it, but for its prompt."""
        return msgspec.structs.replace(
            self,
            request_id=request_id,
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            seed=seed,
            arrival_ns=arrival_ns,
            held_tokens=held_tokens,
        )
