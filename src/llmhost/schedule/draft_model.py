"""A small model that guesses what a large one says next. It knows runners, not what is behind them.

The small model keeps a KV cache of its own, in step with what the sequences have confirmed: what it guessed wrongly
is computed again from the last token that both agree on. It draws with the sequence's own sampling, seed and
positions, so where the two models see alike they draw alike, at any temperature.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from llmhost.core.ports import DraftAsk, Lane, Runner, SleepingRunner
from llmhost.core.sampling import Sampling
from llmhost.core.step import Draw, Drawn, Row

log = logging.getLogger("llmhost.schedule")

FAILURES_IN_A_ROW = 3
"""After so many failed turns no more guesses are made: the model itself goes on without."""


@dataclass(slots=True)
class Mirror:
    """One sequence as the small model has it."""

    fed: list[int] = field(default_factory=list)
    """Tokens whose keys and values are in its cache: confirmed ones, then guesses."""
    confirmed: int = 0
    """So many of `fed` were found to be the sequence's own."""
    blocks: list[int] = field(default_factory=list)
    asked: int = 0
    """The turn in which it was last asked for."""

    def settle(self, tokens: Sequence[int]) -> None:
        """Take back what the sequence has not said, and keep its last token to be fed."""
        place, end = self.confirmed, min(len(self.fed), len(tokens) - 1)
        while place < end and self.fed[place] == tokens[place]:
            place += 1
        del self.fed[place:]
        self.confirmed = place


@dataclass(slots=True)
class Guess:
    """What is being guessed for one ask in this turn."""

    ask: DraftAsk
    mirror: Mirror
    sampling: Sampling
    tokens: list[int]
    """The sequence's own, then the guesses."""
    most: int

    @property
    def found(self) -> list[int]:
        return self.tokens[len(self.ask.tokens) :]


class ModelDrafter:
    """Guesses with a runner of its own. Implements the Drafter port; closes the runner."""

    def __init__(
        self,
        name: str,
        runner: Runner,
        *,
        lane: Lane,
        kv_blocks: int,
        vocab_size: int,
        end_ids: frozenset[int] = frozenset(),
        most_tokens: int = 1024,
    ) -> None:
        self.name = name
        self.device_ns = 0
        self.device_nano = 0
        self._runner = runner
        self._lane = lane
        self._kv_blocks = kv_blocks
        self._free = list(range(kv_blocks - 1, -1, -1))
        self._vocab_size = min(vocab_size, runner.facts.vocab_size)
        self._end_ids = end_ids
        self._most_tokens = most_tokens
        """Prompt tokens that one turn reads at most; the rest is read in the next ones."""
        self._mirrors: dict[int, Mirror] = {}
        self._turn = 0
        self._failures = 0

    def propose(self, asks: Sequence[DraftAsk]) -> list[Sequence[int]]:
        nothing: list[Sequence[int]] = [() for _ in asks]
        if self._failures >= FAILURES_IN_A_ROW:
            return nothing
        try:
            with self._lane.turn() as turn:
                found = self._propose(asks)
        except Exception as error:  # noqa: BLE001 - boundary: a runner may raise anything; answers need no guesses
            self._fail(error)
            found = nothing
        else:
            self._failures = 0
        self.device_ns += turn.ended_ns - turn.started_ns
        self.device_nano += turn.nano
        return found

    def forget(self, seq_id: int) -> None:
        mirror = self._mirrors.pop(seq_id, None)
        if mirror is not None:
            self._free.extend(mirror.blocks)

    def sleep(self) -> None:
        """A runner that can't keeps its weights where they are."""
        for seq_id in list(self._mirrors):
            self.forget(seq_id)
        self._runner.set_kv_blocks(0)
        if self._runner.facts.can_sleep:
            cast(SleepingRunner, self._runner).sleep()

    def wake(self) -> None:
        if self._runner.facts.can_sleep:
            cast(SleepingRunner, self._runner).wake()
        self._runner.set_kv_blocks(self._kv_blocks)

    def close(self) -> None:
        self._mirrors.clear()
        self._runner.close()

    def _fail(self, error: Exception) -> None:
        """What the cache holds after a failed step is not known: everything is read anew."""
        self._failures += 1
        log.error("draft.failed model=%s in_a_row=%d", self.name, self._failures, exc_info=error)
        for seq_id in list(self._mirrors):
            self.forget(seq_id)

    def _propose(self, asks: Sequence[DraftAsk]) -> list[Sequence[int]]:
        self._turn += 1
        guesses = {ask.seq_id: guess for ask in asks if (guess := self._begin(ask)) is not None}
        live = list(self._read(guesses.values()))
        while live:
            rows = [self._row(guess, len(guess.tokens)) for guess in live]
            drawn = self._run(rows)
            live = [
                guess for guess, token in zip(live, drawn, strict=True) if self._take(guess, token)
            ]
        return [guesses[ask.seq_id].found if ask.seq_id in guesses else () for ask in asks]

    def _begin(self, ask: DraftAsk) -> Guess | None:
        """None where the small model has no room, or no word, for it."""
        longest = self._runner.facts.max_sequence_length
        most = min(ask.most, longest - len(ask.tokens))
        mirror = self._mirrors.setdefault(ask.seq_id, Mirror())
        mirror.asked = self._turn
        mirror.settle(ask.tokens)
        fresh = ask.tokens[len(mirror.fed) :]
        if most <= 0 or max(fresh) >= self._vocab_size:
            return None
        if not self._has_room(mirror, len(ask.tokens) + most - 1):
            return None
        sampling = replace(ask.sampling, logprobs=None, prompt_logprobs=None)
        return Guess(ask, mirror, sampling, list(ask.tokens), most)

    def _has_room(self, mirror: Mirror, positions: int) -> bool:
        """Blocks for `positions`; whoever has not been asked for longest gives its own away."""
        missing = -(-positions // self._runner.facts.block_tokens) - len(mirror.blocks)
        while missing > len(self._free):
            idle = [(m.asked, i) for i, m in self._mirrors.items() if m.asked < self._turn]
            if not idle:
                return False
            self.forget(min(idle)[1])
        for _ in range(missing):
            mirror.blocks.append(self._free.pop())
        return True

    def _read(self, guesses: Iterable[Guess]) -> Iterator[Guess]:
        """Bring the cache up to the last token but one of each, as far as the turn's share of prompt tokens goes;
        those who are there can be guessed for."""
        room = self._most_tokens
        rows = []
        for guess in sorted(guesses, key=lambda guess: len(guess.tokens) - len(guess.mirror.fed)):
            behind = len(guess.tokens) - 1 - len(guess.mirror.fed)
            if behind <= self._runner.facts.block_tokens:
                yield guess  # its first row reads them
            elif room > 0:
                share = min(behind, room)
                room -= share
                rows.append(self._row(guess, len(guess.mirror.fed) + share))
                if share == behind:
                    yield guess
        if rows:
            self._run(rows)

    def _row(self, guess: Guess, end: int) -> Row:
        """Feed what is not in the cache yet up to position `end`; draw if that is all there is."""
        mirror, start = guess.mirror, len(guess.mirror.fed)
        tokens = guess.tokens[start:end]
        mirror.fed += tokens
        return Row(
            guess.ask.seq_id,
            tokens,
            start,
            mirror.blocks,
            guess.sampling,
            guess.ask.seed,
            end == len(guess.tokens),
            prompt_tokens=guess.ask.prompt_tokens,
            known=guess.tokens,
        )

    def _run(self, rows: Sequence[Row]) -> list[Drawn]:
        return self._runner.run(rows) if rows else []

    def _take(self, guess: Guess, drawn: Drawn) -> bool:
        """Whether another guess may follow this one."""
        token = drawn.tokens[0] if isinstance(drawn, Draw) and drawn.tokens else drawn
        if not isinstance(token, int) or token >= self._vocab_size:
            return False
        guess.tokens.append(token)
        return len(guess.found) < guess.most and token not in self._end_ids
