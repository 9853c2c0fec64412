"""A runner without a model: deterministic words made from the prompt, at once or as slowly as asked.

It stands in wherever the engine is not the point: tests, docs, gateway benchmarks. Its KV cache is real, one running
checksum per position, read and written through block tables only: a scheduler that mixes up blocks gets wrong words.
"""

import time
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from llmhost.config.schema import FakeOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.ports import RunnerFacts
from llmhost.core.step import Drawn, KvMove, Row

MAX_SEQUENCE_LENGTH = 131_072
STATE_BYTES = 4
MOST_COUNTED = 4096
"""Sequences whose tokens are counted for scripted failures: those of the latest steps, more than run at once."""


def _advance(state: int, token: int) -> int:
    return zlib.crc32(token.to_bytes(4, "little"), state)


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


class FakeRunner:
    """Implements the Runner port. `sleep` takes seconds; tests bring their own."""

    def __init__(
        self,
        options: FakeOptions,
        *,
        block_tokens: int = 16,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._options = options
        self._sleep = sleep
        self._given: dict[int, int] = {}  # tokens drawn so far, kept only for scripted failures
        self._states = np.zeros((0, block_tokens), dtype=np.uint32)
        self._host_states = self._states
        self.facts = RunnerFacts(
            device="none",
            vocab_size=options.vocab,
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            block_tokens=block_tokens,
            kv_block_bytes=block_tokens * STATE_BYTES,
            weights_bytes=0,
        )

    def set_kv_blocks(self, count: int) -> None:
        states = np.zeros((count, self.facts.block_tokens), dtype=np.uint32)
        kept = min(count, len(self._states))
        states[:kept] = self._states[:kept]
        self._states = states

    def set_host_blocks(self, count: int) -> None:
        self._host_states = np.zeros((count, self.facts.block_tokens), dtype=np.uint32)

    def move_blocks(self, moves: Sequence[KvMove]) -> None:
        for block, slot, is_to_host in moves:
            if is_to_host:
                self._host_states[slot] = self._states[block]
            else:
                self._states[block] = self._host_states[slot]

    def run(self, rows: Sequence[Row]) -> list[Drawn]:
        self._delay(rows)
        return [self._run_row(row) for row in rows]

    def close(self) -> None:
        self._given.clear()
        self.set_kv_blocks(0)
        self.set_host_blocks(0)

    def _delay(self, rows: Sequence[Row]) -> None:
        delay_ms = self._options.token_delay_ms
        if any(len(row.tokens) > 1 or row.start == 0 for row in rows):
            delay_ms += self._options.prefill_delay_ms
        if delay_ms:
            self._sleep(delay_ms / 1000)

    def _run_row(self, row: Row) -> Drawn:
        size = self.facts.block_tokens
        blocks, states = row.blocks, self._states
        before = row.start - 1
        state = int(states[blocks[before // size], before % size]) if row.start else 0
        for position, token in enumerate(row.tokens, row.start):
            state = _advance(state, token)
            states[blocks[position // size], position % size] = state
        if not row.wants_token:
            return None
        return self._failure(row.seq_id) or state % self._options.vocab

    def _failure(self, seq_id: int) -> EngineFailed | None:
        limit = self._options.fail_after_tokens
        if limit is None:
            return None
        given = self._given.pop(seq_id, 0)
        if given < limit:
            self._given[seq_id] = given + 1
            if len(self._given) > MOST_COUNTED:  # nobody tells a runner which sequences ended
                del self._given[next(iter(self._given))]
            return None
        return EngineFailed(f"The fake engine failed after {limit} tokens, as it was told to.")
