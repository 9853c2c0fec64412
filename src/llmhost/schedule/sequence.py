"""One generation's state while a scheduler owns it."""

import sys
from collections.abc import Sequence as Seq
from typing import Any

from msgspec import Struct, structs

from llmhost.core.output import Delta, FinishReason, TokenLogprobs, Usage
from llmhost.core.ports import DraftAsk, TextWatch
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import Draw, GrammarState
from llmhost.schedule.prefix import Parent, Place


class Sequence(Struct, eq=False):
    """Known tokens, how many of them are in the KV cache, and the blocks that hold them.

    A step tops `computed` up towards `len(tokens)`: prefill, chunks of it and decode are one case.
    """

    seq_id: int
    spec: SequenceSpec
    watch: TextWatch
    tokens: list[int]
    """Prompt and answer so far."""
    most_tokens: int
    """Length at which it has said all that it may."""
    grammar: GrammarState | None = None
    is_atomic: bool = False
    """Computed in one step as a whole, and without KV blocks."""
    barred: frozenset[int] = frozenset()
    """Ids that are not drawn while the answer is too short to end."""
    computed: int = 0
    fed: int = 0
    """`computed`, and what steps feed that are not taken in yet."""
    owed: int = 0
    """Tokens that those steps draw, and that are not known yet."""
    halts_at: int = sys.maxsize
    """Length at which no more is drawn: it ends there, or waits until more is paid for."""
    is_plain: bool = False
    """What it says next depends on nothing that the runner does not know: its next step can be run before the token
    of the last one has been looked at."""
    blocks: list[int] = []
    draft: list[int] = []
    """Guesses at what comes after `tokens`, for the next step."""
    high_water: int = 0
    """Most positions ever computed: work below it, after a preemption, is the operator's, not the caller's."""
    engine_ns: int = 0
    cost_nano: int = 0
    """What `engine_ns` cost, and the prompt's part of it."""
    input_cost_nano: int = 0
    cached_tokens: int = 0
    right_guesses: int = 0
    wrong_guesses: int = 0
    """Of those that were checked for an answer that was predicted."""
    was_preempted: bool = False
    recorded: int = 0
    """So many of `blocks` can be found by their text."""
    parent: Parent = ""
    """What the block after those is found by."""
    hashes: list[int] = []
    """Of the prompt's full blocks; see `chain_hashes`."""
    promised: int = 0
    """Blocks up to here, of those with hashes, are computed or somebody else's to compute."""
    row_end: tuple[Any, ...] | None = None
    """What all rows of its answer have; None where they may differ, and while it is not there yet."""
    index: int = 0
    ends: frozenset[int] = frozenset()
    """Two that are asked for with every token, of `spec`: which choice this is, and the ids that end it."""
    prompt_told: int = 0
    """Prompt tokens whose log probabilities have been reported."""
    key: tuple[int, int, int] = (0, 0, 0)
    """Smaller runs first; the largest is preempted first."""
    arrival_key: tuple[int, int] = (0, 0)
    may_hit: bool = False
    """Its prompt may be found. Whoever wants to know how likely that is, from the beginning, has all of it computed."""
    salt: str = ""
    """Whose texts it may share."""
    found: list[Place] = []
    """Of a waiting one, the blocks with the beginning of its text, from when it was looked up until it is let in."""

    @classmethod
    def start(
        cls, seq_id: int, spec: SequenceSpec, watch: TextWatch, grammar: GrammarState | None = None
    ) -> "Sequence":
        for place, token in enumerate(
            spec.generated
        ):  # an imported sequence has said these already
            if spec.min_new_tokens:
                watch.is_armed = place >= spec.min_new_tokens
            watch.push(token)
            if grammar is not None:
                grammar.accept(token)
        return cls(
            seq_id,
            spec,
            watch,
            tokens=[*spec.prompt, *spec.generated],
            most_tokens=len(spec.prompt) + spec.max_new_tokens,
            grammar=grammar,
            is_atomic=spec.pooling is not None,
            barred=spec.stop_token_ids if spec.min_new_tokens else frozenset(),
            is_plain=_is_plain(spec, grammar),
            index=spec.index,
            ends=spec.stop_token_ids,
            key=(spec.priority, spec.arrival_ns, seq_id),
            arrival_key=(spec.arrival_ns, seq_id),
            may_hit=spec.pooling is None and not _is_told_all(spec.sampling),
            high_water=spec.high_water,
            engine_ns=spec.engine_ns,
            cost_nano=spec.cost_nano,
            input_cost_nano=spec.input_cost_nano,
            cached_tokens=spec.cached_tokens,
        )

    @property
    def todo(self) -> int:
        """Tokens to feed before the next one can be drawn, and the guesses after them."""
        known = len(self.tokens) + self.owed
        if known >= self.halts_at:
            return 0  # it ends with the token that is being drawn, or waits for its payment
        return known - self.fed + len(self.draft)

    @property
    def is_held_up(self) -> bool:
        """Nothing can be computed for it, for now."""
        return len(self.tokens) + self.owed >= self.halts_at

    @property
    def drafts(self) -> int:
        return len(self.draft)

    @property
    def held(self) -> int:
        return len(self.blocks)

    @property
    def is_scored_only(self) -> bool:
        """Nothing is to be drawn: it ends when the log probabilities of its prompt are known."""
        return self.spec.max_new_tokens == 0 and self.spec.sampling.prompt_logprobs is not None

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.spec.prompt)

    def allow(self, held_tokens: int, *, is_final: bool) -> None:
        """More of its tokens are paid for, or no more will be; `halt` is to be told."""
        self.spec = self.spec.allowed(held_tokens, is_final=is_final)
        self.most_tokens = len(self.spec.prompt) + self.spec.max_new_tokens

    def halt(self, longest_tokens: int) -> None:
        """Note where it halts, in a cache in which a sequence can have so many tokens."""
        if self.is_atomic or self.is_scored_only:
            return  # they draw nothing
        self.halts_at = min(self.most_tokens, longest_tokens)
        if self.spec.held_tokens is not None:
            self.halts_at = min(self.halts_at, len(self.spec.prompt) + self.spec.held_tokens)

    def export(self) -> SequenceSpec:
        """This sequence as data, to be started again here or elsewhere."""
        return structs.replace(
            self.spec,
            generated=tuple(self.tokens[len(self.spec.prompt) :]),
            high_water=self.high_water,
            engine_ns=self.engine_ns,
            cost_nano=self.cost_nano,
            input_cost_nano=self.input_cost_nano,
            cached_tokens=self.cached_tokens,
        )

    def draft_ask(self, most: int) -> DraftAsk | None:
        """Guesses that its next step could check, at most `most`; None where it doesn't decode or could use none."""
        room = self._draft_room
        if self.computed != len(self.tokens) - 1 or room <= 0:
            return None
        spec = self.spec
        return DraftAsk(
            self.seq_id,
            self.tokens,
            min(most, room),
            spec.sampling,
            spec.seed,
            len(spec.prompt),
            spec.predicted,
        )

    def guess(self, tokens: Seq[int]) -> None:
        """Have the next step check these, as far as they may be said; for a grammar, only what it would take."""
        count = max(min(len(tokens), self._draft_room), 0)
        if self.grammar is not None:
            count = min(count, self.grammar.valid_prefix(tokens))
        self.draft = list(tokens[:count])

    @property
    def _draft_room(self) -> int:
        """Guesses that it could use: one token comes without."""
        return min(self.most_tokens, self.halts_at) - len(self.tokens) - 1

    def take(self, draw: Draw) -> Delta:
        """Take what was drawn, up to the token that ends the sequence; the rest of it is surplus."""
        texts: list[str] = []
        delta, taken = None, 0
        for token in draw.tokens:
            taken += 1
            delta = self.accept(token)
            texts.append(delta.text)
            if delta.finish_reason is not None:
                break
        if delta is None:
            return Delta(self.spec.index, prompt_logprobs=draw.prompt_logprobs)
        return delta.but(
            text="".join(texts),
            tokens=draw.tokens[:taken],
            logprobs=draw.logprobs[:taken],
            prompt_logprobs=draw.prompt_logprobs,
        )

    def accept(self, token: int) -> Delta:
        """Take the token that was drawn; the delta says what it added and whether it was the last."""
        self.tokens.append(token)
        if token in self.spec.stop_token_ids:
            return self.end(FinishReason.STOP, tokens=(token,))
        if self.spec.min_new_tokens:
            self.watch.is_armed = self.generated > self.spec.min_new_tokens
        text = self.watch.push(token)
        if self.watch.is_stopped:
            return self._last(FinishReason.STOP, text, (token,))
        if self.grammar is not None:
            self.grammar.accept(token)
            if self.grammar.is_ended:
                return self.end(FinishReason.STOP, text=text, tokens=(token,))
        if len(self.tokens) >= self.most_tokens:
            return self.end(FinishReason.LENGTH, text=text, tokens=(token,))
        return Delta(self.spec.index, text, (token,))

    def end(self, reason: FinishReason, *, text: str = "", tokens: tuple[int, ...] = ()) -> Delta:
        """The last delta: with the text that was held back, which may turn out to end in a stop string."""
        text += self.watch.flush()
        if reason is FinishReason.LENGTH and self.watch.is_stopped:
            reason = FinishReason.STOP
        return self._last(reason, text, tokens)

    def look_again(self) -> None:
        """Its answer may have become held to its grammar, or free of it."""
        self.is_plain = _is_plain(self.spec, self.grammar)

    @property
    def holding(self) -> GrammarState | None:
        """What the next token is held to."""
        return None if self.grammar is None or self.grammar.is_free else self.grammar

    def fresh_logprobs(
        self, start: int, found: tuple[TokenLogprobs, ...]
    ) -> tuple[TokenLogprobs, ...]:
        """Of the log probabilities of tokens from position start + 1 on, those that have not been told before."""
        fresh = found[max(self.prompt_told - start, 0) :]
        self.prompt_told = max(self.prompt_told, start + len(found))
        return fresh

    def _last(self, reason: FinishReason, text: str, tokens: tuple[int, ...]) -> Delta:
        last = Delta(self.spec.index, text, tokens, reason, self._usage(reason))
        if reason is FinishReason.STOP and self.watch.is_stopped:
            last.stop = self.watch.stop
            if self.spec.tells_stop:
                last.text += self.watch.stop or ""
        return last

    def _usage(self, reason: FinishReason) -> Usage:
        """An answer used its prompt; what was cut off in the queue or amid the prompt, only what was computed of it."""
        spec = self.spec
        prompt_tokens = len(spec.prompt)
        generated = len(self.tokens) - prompt_tokens
        if reason is FinishReason.CANCELLED or reason is FinishReason.ERROR:
            prompt_tokens = min(prompt_tokens, self.high_water)
        return Usage(
            prompt_tokens,
            min(self.cached_tokens, prompt_tokens),
            generated,
            self.engine_ns,
            self.cost_nano,
            self.input_cost_nano,
            0 if spec.thoughts is None else self._reasoning_tokens(),
            min(self.right_guesses, generated) if self.right_guesses else 0,
            self.wrong_guesses,
        )

    def _reasoning_tokens(self) -> int:
        """Counted once, at the end."""
        thoughts = self.spec.thoughts
        if thoughts is None:
            return 0
        answer = self.tokens[len(self.spec.prompt) :]
        return thoughts.count(answer, begun=self.spec.begins_with_thoughts)


def _is_told_all(asked: Sampling) -> bool:
    return asked.prompt_logprobs is not None and asked.prompt_logprobs_from <= 1


def _is_plain(spec: SequenceSpec, grammar: GrammarState | None) -> bool:
    is_free = spec.grammar is None or (grammar is not None and grammar.is_free)
    is_bare = is_free and spec.adapter is None and spec.pooling is None
    return is_bare and not spec.min_new_tokens and spec.sampling.is_plain
