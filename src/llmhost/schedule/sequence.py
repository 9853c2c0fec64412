"""One generation's state while a scheduler owns it."""

import sys
from collections.abc import Sequence as Seq
from typing import Any

from msgspec import Struct, structs

from llmhost.core.output import Delta, FinishReason, TokenLogprobs, Usage
from llmhost.core.ports import DraftAsk, TextWatch
from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import Draw, GrammarState
from llmhost.schedule.prefix import Parent, Place

NOWHERE = sys.maxsize
_NOTHING_BARRED: frozenset[int] = frozenset()


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
    grammar: GrammarState | None
    is_atomic: bool
    """Computed in one step as a whole, and without KV blocks."""
    barred: frozenset[int]
    """Ids that are not drawn while the answer is too short to end."""
    is_plain: bool
    """Nothing is wanted of it but tokens, which temperature and filters alone shape: so it is with most."""
    goes_ahead: bool
    """What it says next depends on nothing that the runner does not know: its next step can be run before the token
    of the last one has been looked at."""
    index: int
    ends: frozenset[int]
    """Two that are asked for with every token, of `spec`: which choice this is, and the ids that end it."""
    key: tuple[int, int, int]
    """Smaller runs first, and of one priority so does who waits; the largest is preempted first."""
    may_hit: bool
    """Its prompt may be found. Whoever wants to know how likely that is, from the beginning, has all of it computed."""
    high_water: int
    """Most positions ever computed: work below it, after a preemption, is the operator's, not the caller's."""
    engine_ns: int
    cost_nano: int
    """What `engine_ns` cost, and the prompt's part of it."""
    input_cost_nano: int
    cached_tokens: int
    computed: int = 0
    fed: int = 0
    """`computed`, and what steps feed that are not taken in yet."""
    owed: int = 0
    """Tokens that those steps draw, and that are not known yet."""
    halts_at: int = NOWHERE
    """Length at which no more is drawn: it ends there, or waits until more is paid for."""
    blocks: list[int] = []
    draft: Seq[int] = ()
    """Guesses at what comes after `tokens`, for the next step."""
    right_guesses: int = 0
    wrong_guesses: int = 0
    """Of those that were checked for an answer that was predicted."""
    was_preempted: bool = False
    recorded: int = 0
    """So many of `blocks` can be found by their text."""
    parent: Parent = ""
    """What the block after those is found by."""
    hashes: Seq[int] = ()
    """Of the prompt's full blocks, see `chain_hashes`: made once there is one among them that nobody has computed."""
    promised: int = 0
    """Blocks up to here, of those with hashes, are computed or somebody else's to compute."""
    row_end: tuple[Any, ...] | None = None
    """What all rows of its answer have; None where they may differ, and while it is not there yet."""
    prompt_told: int = 0
    """Prompt tokens whose log probabilities have been reported."""
    salt: str = ""
    """Whose texts it may share."""
    found: Seq[Place] = ()
    """Of a waiting one, the blocks with the beginning of its text, from when it was looked up until it is let in."""

    @classmethod
    def start(
        cls, seq_id: int, spec: SequenceSpec, watch: TextWatch, grammar: GrammarState | None = None
    ) -> "Sequence":
        assert spec.prompt, "a sequence without a prompt has nothing to draw from"
        assert spec.held_tokens is None or spec.held_tokens > 0, "a token at least is paid for"
        prompt, said, asked, ends = spec.prompt, spec.generated, spec.sampling, spec.stop_token_ids
        if said:
            _say_again(spec, watch, grammar)
        is_pooled, is_long = spec.pooling is not None, spec.min_new_tokens > 0
        is_bare = _is_bare(spec, grammar)
        return cls(  # by place: by name it takes twice as long
            seq_id,
            spec,
            watch,
            [*prompt, *said],
            len(prompt) + spec.max_new_tokens,
            grammar,
            is_pooled,
            ends if is_long else _NOTHING_BARRED,
            is_bare and asked.is_plain and not is_long,
            asked.goes_ahead and not (is_pooled or spec.adapter),
            spec.index,
            ends,
            (spec.priority, spec.arrival_ns, seq_id),
            not is_pooled and (asked.prompt_logprobs is None or asked.prompt_logprobs_from > 1),
            spec.high_water,
            spec.engine_ns,
            spec.cost_nano,
            spec.input_cost_nano,
            spec.cached_tokens,
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
        spec, halts_at = self.spec, min(self.most_tokens, longest_tokens)
        if self.is_atomic or (not spec.max_new_tokens and self.is_scored_only):
            return  # they draw nothing
        if spec.held_tokens is not None:
            halts_at = min(halts_at, len(spec.prompt) + spec.held_tokens)
        self.halts_at = halts_at

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
        tokens, watch = self.tokens, self.watch
        tokens.append(token)
        if token in self.ends:
            return self.end(FinishReason.STOP, tokens=(token,))
        if self.spec.min_new_tokens:
            watch.is_armed = self.generated > self.spec.min_new_tokens
        text = watch.push(token)
        if watch.is_stopped:
            return self._last(FinishReason.STOP, text, (token,))
        if self.grammar is not None:
            self.grammar.accept(token)
            if self.grammar.is_ended:
                return self.end(FinishReason.STOP, text=text, tokens=(token,))
        if len(tokens) >= self.most_tokens:
            return self.end(FinishReason.LENGTH, text=text, tokens=(token,))
        return Delta(self.index, text, (token,))

    def end(self, reason: FinishReason, *, text: str = "", tokens: tuple[int, ...] = ()) -> Delta:
        """The last delta: with the text that was held back, which may turn out to end in a stop string."""
        text += self.watch.flush()
        if reason is FinishReason.LENGTH and self.watch.is_stopped:
            reason = FinishReason.STOP
        return self._last(reason, text, tokens)

    def look_again(self) -> None:
        """Its answer may have become held to its grammar, or free of it."""
        spec = self.spec
        is_bare = _is_bare(spec, self.grammar)
        self.is_plain = is_bare and not spec.min_new_tokens and spec.sampling.is_plain

    @property
    def holding(self) -> GrammarState | None:
        """What the next token is held to, or may be, as a token is still to come before it."""
        grammar = self.grammar
        return None if grammar is None or (grammar.is_free and not self.owed) else grammar

    def fresh_logprobs(
        self, start: int, found: tuple[TokenLogprobs, ...]
    ) -> tuple[TokenLogprobs, ...]:
        """Of the log probabilities of tokens from position start + 1 on, those that have not been told before."""
        fresh = found[max(self.prompt_told - start, 0) :]
        self.prompt_told = max(self.prompt_told, start + len(found))
        return fresh

    def _last(self, reason: FinishReason, text: str, tokens: tuple[int, ...]) -> Delta:
        """An answer used its prompt; what was cut off in the queue or amid the prompt, only what was computed of it."""
        spec, cached_tokens = self.spec, self.cached_tokens
        prompt_tokens = len(spec.prompt)
        generated = len(self.tokens) - prompt_tokens
        if reason is FinishReason.CANCELLED or reason is FinishReason.ERROR:
            prompt_tokens = min(prompt_tokens, self.high_water)
        usage = Usage(
            prompt_tokens,
            cached_tokens if cached_tokens < prompt_tokens else prompt_tokens,
            generated,
            self.engine_ns,
            self.cost_nano,
            self.input_cost_nano,
            0 if spec.thoughts is None else self._reasoning_tokens(),
            min(self.right_guesses, generated) if self.right_guesses else 0,
            self.wrong_guesses,
        )
        last = Delta(self.index, text, tokens, reason, usage)
        if reason is FinishReason.STOP and self.watch.is_stopped:
            last.stop = self.watch.stop
            if spec.tells_stop:
                last.text += self.watch.stop or ""
        return last

    def _reasoning_tokens(self) -> int:
        """Counted once, at the end."""
        thoughts = self.spec.thoughts
        if thoughts is None:
            return 0
        answer = self.tokens[len(self.spec.prompt) :]
        return thoughts.count(answer, begun=self.spec.begins_with_thoughts)


def _say_again(spec: SequenceSpec, watch: TextWatch, grammar: GrammarState | None) -> None:
    """An imported sequence has said these already."""
    for place, token in enumerate(spec.generated):
        if spec.min_new_tokens:
            watch.is_armed = place >= spec.min_new_tokens
        watch.push(token)
        if grammar is not None:
            grammar.accept(token)


def _is_bare(spec: SequenceSpec, grammar: GrammarState | None) -> bool:
    """The model alone says what comes, and says it token by token."""
    is_free = spec.grammar is None or (grammar is not None and grammar.is_free)
    return is_free and not spec.adapter and spec.pooling is None
