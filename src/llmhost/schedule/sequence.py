"""One generation's state while a scheduler owns it."""

from dataclasses import dataclass, field, replace

from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.ports import TextWatch
from llmhost.core.request import SequenceSpec


@dataclass(slots=True, eq=False)
class Sequence:
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
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    high_water: int = 0
    """Most positions ever computed: work below it, after a preemption, is the operator's, not the caller's."""
    engine_ns: int = 0
    cached_tokens: int = 0

    @classmethod
    def start(cls, seq_id: int, spec: SequenceSpec, watch: TextWatch) -> "Sequence":
        for token in spec.generated:
            watch.push(token)  # an imported sequence has said these already
        return cls(
            seq_id,
            spec,
            watch,
            tokens=[*spec.prompt, *spec.generated],
            most_tokens=len(spec.prompt) + spec.max_new_tokens,
            high_water=spec.high_water,
            engine_ns=spec.engine_ns,
            cached_tokens=spec.cached_tokens,
        )

    @property
    def key(self) -> tuple[int, int, int]:
        """Smaller runs first; the largest is preempted first."""
        return (self.spec.priority, self.spec.arrival_ns, self.seq_id)

    @property
    def todo(self) -> int:
        """Tokens to feed before the next one can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def held(self) -> int:
        return len(self.blocks)

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.spec.prompt)

    def export(self) -> SequenceSpec:
        """This sequence as data, to be started again here or elsewhere."""
        return replace(
            self.spec,
            generated=tuple(self.tokens[len(self.spec.prompt) :]),
            high_water=self.high_water,
            engine_ns=self.engine_ns,
            cached_tokens=self.cached_tokens,
        )

    def accept(self, token: int) -> Delta:
        """Take the token that was drawn; the delta says what it added and whether it was the last."""
        self.tokens.append(token)
        if token in self.spec.stop_token_ids:
            return self.end(FinishReason.STOP, tokens=(token,))
        text = self.watch.push(token)
        if self.watch.is_stopped:
            return self._last(FinishReason.STOP, text, (token,))
        if len(self.tokens) >= self.most_tokens:
            return self.end(FinishReason.LENGTH, text=text, tokens=(token,))
        return Delta(self.spec.index, text, (token,))

    def end(self, reason: FinishReason, *, text: str = "", tokens: tuple[int, ...] = ()) -> Delta:
        """The last delta: with the text that was held back, which may turn out to end in a stop string."""
        text += self.watch.flush()
        if reason is FinishReason.LENGTH and self.watch.is_stopped:
            reason = FinishReason.STOP
        return self._last(reason, text, tokens)

    def _last(self, reason: FinishReason, text: str, tokens: tuple[int, ...]) -> Delta:
        return Delta(self.spec.index, text, tokens, reason, self._usage(reason))

    def _usage(self, reason: FinishReason) -> Usage:
        """An answer used its prompt; what was cut off in the queue or amid the prompt, only what was computed of it."""
        prompt_tokens = len(self.spec.prompt)
        if reason in (FinishReason.CANCELLED, FinishReason.ERROR):
            prompt_tokens = min(prompt_tokens, self.high_water)
        return Usage(prompt_tokens, self.cached_tokens, self.generated, self.engine_ns)
