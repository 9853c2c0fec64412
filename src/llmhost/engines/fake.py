"""A runner without a model: deterministic words made from the prompt, at once or as slowly as asked.

It stands in wherever the engine is not the point: tests, docs, gateway benchmarks. Its KV cache is real, one running
checksum per position, read and written through block tables only: a scheduler that mixes up blocks gets wrong words.

The word that the checksum names is its favourite, and the likelihood of the others falls by Zipf's law in the order of
their ids after it. It always says the likeliest word that the request leaves: temperature and seed change nothing,
bans, penalties and biases do what they do to a model's logits.
"""

import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from struct import Struct
from zlib import crc32

import numpy as np

from llmhost.config.schema.engines import FakeOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.output import TokenLogprobs
from llmhost.core.ports import RunnerFacts
from llmhost.core.sampling import Sampling
from llmhost.core.step import PENDING, DecodeRows, Draw, Drawn, KvMove, Row
from llmhost.engines.drawing import (
    Picked,
    Place,
    Tally,
    answer,
    bars,
    confirm,
    has_penalty,
    is_shaped,
    nothing_left,
    scored_of,
    scored_tokens,
    settled,
)
from llmhost.engines.masks import Masks, fill

MAX_SEQUENCE_LENGTH = 131_072
STATE_BYTES = 4
MOST_COUNTED = 4096
"""Sequences whose tokens are counted for scripted failures: those of the latest steps, more than run at once."""

LIKING, FALL = 10.0, 2.0
"""Logit of the favourite word, and what is taken for each e-fold in the order after it: with 4,096 words the
favourite has a probability of 0.61 and the last word one of 4e-8."""

_packed = Struct("<I").pack
Logits = np.ndarray[tuple[int], np.dtype[np.float32]]


def _blank(count: int) -> "array[int]":
    return array("I", bytes(STATE_BYTES * max(count, 0)))


def _advance(state: int, token: int) -> int:
    return crc32(_packed(token), state)


def fake_answer(prompt: Iterable[int], count: int, vocab: int) -> list[int]:
    """The first `count` tokens that the fake runner gives to a prompt: what tests compare with."""
    state = 0
    for token in prompt:
        state = _advance(state, token)
    answer = []
    for _ in range(count):
        answer.append(state % vocab)
        state = _advance(state, answer[-1])
    return answer


@dataclass
class FakeFlight:
    """A launched step of the fake runner. The time that it takes passes when it lands."""

    compute: Callable[[], list[Drawn]]
    wait: Callable[[], None]
    drawn: list[Drawn] | None = None

    def draw(self) -> None:
        if self.drawn is None:
            self.drawn = self.compute()

    def land(self) -> list[Drawn]:
        self.draw()
        self.wait()
        assert self.drawn is not None
        return self.drawn


class FakeRunner:
    """Implements the Runner port. `sleep` takes seconds; tests bring their own."""

    def __init__(
        self,
        options: FakeOptions,
        *,
        block_tokens: int = 16,
        sleep: Callable[[float], None] = time.sleep,
        runs_ahead: bool = False,
    ) -> None:
        self._options = options
        self._sleep = sleep
        self._block_tokens = block_tokens
        self._given: dict[int, int] = {}  # tokens drawn so far, kept only for scripted failures
        self._states = array("I")  # of all blocks, one after the other
        self._host_states = array("I")
        self.facts = RunnerFacts(
            device="none",
            vocab_size=options.vocab,
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            block_tokens=block_tokens,
            kv_block_bytes=block_tokens * STATE_BYTES,
            weights_bytes=0,
            checks_drafts=True,
            runs_ahead=runs_ahead,
            can_sleep=True,
        )
        self.is_asleep = False
        self._launched: dict[int, Drawn] = {}  # by sequence, what the last launched step drew

    def set_kv_blocks(self, count: int) -> None:
        kept = self._states[: count * self.facts.block_tokens]
        self._states = kept + _blank(count * self.facts.block_tokens - len(kept))

    def set_host_blocks(self, count: int) -> None:
        self._host_states = _blank(count * self.facts.block_tokens)

    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        size = self.facts.block_tokens
        for block, slot, is_to_host in moves:
            on_device = slice(block * size, (block + 1) * size)
            on_host = slice(slot * size, (slot + 1) * size)
            if is_to_host:
                self._host_states[on_host] = self._states[on_device]
            else:
                self._states[on_device] = self._host_states[on_host]

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        self._delay(rows)
        if type(rows) is DecodeRows and self._options.fail_after_tokens is None:
            return self._decode(rows)
        return self._run_rows(rows)

    def launch(self, rows: Sequence[Row]) -> "FakeFlight":
        """Computed here and now, unless a grammar must know the token before."""

        def compute() -> list[Drawn]:
            drawn = self._run_rows([self._told(row, before) for row in rows])
            self._launched = {row.seq_id: one for row, one in zip(rows, drawn, strict=True)}
            return drawn

        before = self._launched
        flight = FakeFlight(compute, lambda: self._delay(rows))
        if not any(row.grammar is not None for row in rows):
            flight.draw()
        return flight

    def _told(self, row: Row, before: Mapping[int, Drawn]) -> Row:
        """With the token that was pending."""
        row = settled(row)
        if PENDING not in row.tokens:
            return row
        drawn = before[row.seq_id]
        if isinstance(drawn, Draw):
            (drawn,) = drawn.tokens
        token = drawn if isinstance(drawn, int) else 0  # after a failure nobody reads it
        return row._replace(tokens=[token], known=[*row.known, token])

    def sleep(self) -> None:
        """There are no weights to move."""
        self.is_asleep = True

    def wake(self) -> None:
        self.is_asleep = False

    def close(self) -> None:
        self._given.clear()
        self.set_kv_blocks(0)
        self.set_host_blocks(0)

    def _delay(self, rows: Sequence[Row]) -> None:
        delay_ms, prefill_ms = self._options.token_delay_ms, self._options.prefill_delay_ms
        if prefill_ms and any(len(row.tokens) > 1 or row.start == 0 for row in rows):
            delay_ms += prefill_ms
        if delay_ms:
            self._sleep(delay_ms / 1000)

    def _decode(self, rows: DecodeRows) -> list[Drawn]:
        """`_run_rows` for such as want nothing special."""
        size, states, vocab = self._block_tokens, self._states, self._options.vocab
        drawn: list[Drawn] = []
        for token, start, blocks in zip(rows.fed, rows.starts, rows.tables, strict=True):
            offset = start % size
            at = blocks[start // size] * size + offset
            before = at - 1 if offset else (blocks[start // size - 1] + 1) * size - 1
            states[at] = state = crc32(_packed(token), states[before])
            drawn.append(state % vocab)
        return drawn

    def _run_rows(self, rows: Sequence[Row]) -> list[Drawn]:
        vocab, is_scripted = self._options.vocab, self._options.fail_after_tokens is not None
        masks: Masks | None = None
        plain: Sampling | None = None  # most rows of a step have one that is as another's
        drawn: list[Drawn] = []
        for row in rows:
            sampling = row.sampling
            if (is_scripted or row.drafts or row.barred or row.grammar is not None) or not (
                sampling is plain or sampling.is_plain
            ):
                if masks is None and row.grammar is not None:
                    masks = fill(rows, vocab)
                drawn.append(self._run_row(row, masks))
                continue
            plain = sampling
            state = self._feed(row)[-1]
            drawn.append(state % vocab if row.wants_token else None)
        return drawn

    def _run_row(self, row: Row, masks: Masks | None) -> Drawn:
        """Of which more is wanted than the next token."""
        states = self._feed(row)
        scores = self._score(row, states) if scored_of(row) else ()
        if not row.wants_token:
            return answer((), (), scores)
        drawing = states[len(states) - row.drafts - 1 :]
        said = confirm(
            row, [self._pick(Place(row, at), state, masks) for at, state in enumerate(drawing)]
        )
        if not isinstance(said, EngineFailed):
            said = self._within_script(row.seq_id, said)
        if isinstance(said, EngineFailed):
            return said
        top = row.sampling.logprobs
        if top is None:
            return answer(said, (), scores)
        reports = [self._report(*one, top) for one in zip(drawing, said, strict=False)]
        return answer(said, tuple(reports), scores)

    def _feed(self, row: Row) -> list[int]:
        """The checksum after each of the row's tokens, as it is now in the cache."""
        size, blocks, states = self._block_tokens, row.blocks, self._states
        before = row.start - 1
        state = states[blocks[before // size] * size + before % size] if row.start else 0
        # As `_advance` for each, without a call and in one go.
        fed = [state := crc32(_packed(token), state) for token in row.tokens]
        at, end = row.start, row.start + len(fed)
        while at < end:  # block by block
            upto = min(at - at % size + size, end)
            place = blocks[at // size] * size + at % size
            if place + upto - at > len(states):
                raise IndexError("there is no such block")
            states[place : place + upto - at] = array("I", fed[at - row.start : upto - row.start])
            at = upto
        return fed

    def _pick(self, place: Place, state: int, masks: Masks | None) -> Picked:
        favourite = state % self._options.vocab
        if not is_shaped(place):
            return favourite
        logits = shaped(np.roll(self._liking, favourite), place)
        if place.row.grammar is not None and masks is not None:
            logits[~masks.allowed([place], len(logits))[0]] = -np.inf
        best = int(logits.argmax())
        return best if np.isfinite(logits[best]) else nothing_left(place)

    def _score(self, row: Row, states: Sequence[int]) -> tuple[TokenLogprobs, ...]:
        top = row.sampling.prompt_logprobs or 0
        pairs = zip(states, scored_tokens(row), strict=False)
        return tuple(self._report(state, token, top) for state, token in pairs)

    def _report(self, state: int, token: int, top: int) -> TokenLogprobs:
        vocab = self._options.vocab
        favourite = state % vocab
        place = (token - favourite) % vocab
        shares = self._liking[: max(place + 1, top)] - self._whole
        likeliest = [
            ((favourite + at) % vocab, float(share)) for at, share in enumerate(shares[:top])
        ]
        return TokenLogprobs(token, float(shares[place]), place + 1, tuple(likeliest))

    @cached_property
    def _liking(self) -> Logits:
        """Logits of all words, the favourite first."""
        places = np.arange(1, self._options.vocab + 1)
        return (LIKING - FALL * np.log(places)).astype(np.float32)

    @cached_property
    def _whole(self) -> float:
        """Logarithm of the sum over all words, which makes a logit a log probability."""
        return float(np.log(np.exp(self._liking.astype(np.float64)).sum()))

    def _within_script(self, seq_id: int, said: tuple[int, ...]) -> tuple[int, ...] | EngineFailed:
        """As much of `said` as comes before a failure that is asked for, or that failure."""
        limit = self._options.fail_after_tokens
        if limit is None:
            return said
        given = self._given.pop(seq_id, 0)
        said = said[: limit - given]
        if not said:
            return EngineFailed(f"The fake engine failed after {limit} tokens, as it was told to.")
        self._given[seq_id] = given + len(said)
        if len(self._given) > MOST_COUNTED:  # nobody tells a runner which sequences ended
            del self._given[next(iter(self._given))]
        return said


def shaped(logits: Logits, place: Place) -> Logits:
    """One line of logits as the place's request wants it, in the order of `Sampling`."""
    row, asked = place.row, place.row.sampling
    if asked.allowed_token_ids is not None:
        allowed = _present(asked.allowed_token_ids, len(logits))
        kept = np.full_like(logits, -np.inf)
        kept[allowed] = logits[allowed]
        logits = kept
    logits[_present(bars(place), len(logits))] = -np.inf
    if has_penalty(asked):
        ids, counts = Tally(row.known, row.prompt_tokens).read(place.guesses)
        values, repetition = logits[ids], np.float32(asked.repetition_penalty)
        values = np.where(values > 0, values / repetition, values * repetition)
        logits[ids] = values - (
            asked.frequency_penalty * counts + asked.presence_penalty * (counts > 0)
        )
    for token, bias in asked.logit_bias:
        if 0 <= token < len(logits):
            logits[token] += bias
    return logits


def _present(ids: Iterable[int], vocab: int) -> list[int]:
    return [token for token in ids if 0 <= token < vocab]
