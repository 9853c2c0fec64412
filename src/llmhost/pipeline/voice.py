"""What one choice of a request says, on its way from its engine into the request's stream.

`hear` runs for every token of answers that are heard alone, so it asks others only where something comes of it: budgets
when a raise is due, histograms when there is much to count. Most are heard together: a `Choir` does the same for all
that a step brings in a few short loops, and leaves to `hear` whatever is not the same for all.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmhost.core.output import Delta
from llmhost.cost.under_way import OUTPUT
from llmhost.observe.loop import Gaps
from llmhost.pipeline.spending import Allow, Spending
from llmhost.pipeline.stream import push_all
from llmhost.storage.journal import Slot, count_one_more

if TYPE_CHECKING:
    from llmhost.pipeline.generation import Generation

NEVER = 2**62
NO_GAPS = Gaps((), lambda counts, seconds: None)


class Voice:
    """The sink of one choice."""

    __slots__ = (
        *("_allow", "_context", "_gaps", "_generation", "_last_ns", "_now_ns", "_push"),
        *("_spending", "_unheard", "_until_raise", "index", "stream"),
    )

    def __init__(
        self,
        generation: "Generation",
        index: int,
        *,
        now_ns: Callable[[], int],
        push: Callable[[Delta], None] | None = None,
    ) -> None:
        """What it says goes to `push` instead of the generation's stream, if there is one."""
        self.index = index
        self.stream = generation.stream
        self._generation = generation
        self._context = generation.context
        self._now_ns = now_ns
        self._push = push or self.stream.push
        self._gaps: Gaps = NO_GAPS
        """Not asked for before there is one."""
        self._last_ns = 0
        self._spending: Spending | None = None
        self._allow: Allow | None = None
        self._until_raise = self._unheard = 0

    def spend(self, spending: Spending, allow: Allow) -> None:
        """Keep the budgets' ceiling ahead of it."""
        self._spending, self._allow = spending, allow
        self._until_raise = spending.until_raise(self.index)

    def __call__(self, delta: Delta) -> None:
        self.hear(delta)

    def hear(self, delta: Delta) -> None:
        """Take what it said."""
        generation = self._generation
        if generation.is_detached:
            generation.lose(delta)
            return
        is_last = delta.finish_reason is not None
        if tokens := delta.tokens:
            count = len(tokens)
            if self._spending is not None and not is_last:
                self._unheard += count
                if self._unheard >= self._until_raise:
                    self._raise(self._spending)
            now_ns, last_ns = self._now_ns(), self._last_ns
            self._last_ns = now_ns
            if last_ns:
                self._gaps.append(now_ns - last_ns)
                self._gaps.fold_if_many()
            else:
                if self._context.first_token_ns is None:
                    self._context.first_token_ns = now_ns
                if not is_last:
                    self._gaps = generation.gaps()
            if (slot := self._context.slot) is not None:
                slot.add(OUTPUT, count)
        if is_last:
            generation.end_choice(delta)
        else:
            self._push(delta)

    @staticmethod
    def together(voices: Sequence["Voice"]) -> "Choir":
        """Of those whose words go to their streams, and who have said something. The JointSink port."""
        return Choir(voices)

    def _raise(self, spending: Spending) -> None:
        assert self._allow is not None
        unheard, self._unheard = self._unheard, 0
        spending.made(self.index, unheard, self._allow)
        self._until_raise = spending.until_raise(self.index)
        if spending.is_over(self.index):
            self._spending = None


class Choir:
    """Voices of one model that say a token each, step for step, until they part. Implements the Joint port."""

    def __init__(self, voices: Sequence[Voice]) -> None:
        contexts = [voice._context for voice in voices]
        self._voices = voices
        self._now_ns, self._gaps = voices[0]._now_ns, voices[0]._gaps
        self._indexes = [voice.index for voice in voices]
        self._streams = [voice.stream for voice in voices]
        self._slots: list[Slot] = [one.slot for one in contexts if one.slot is not None]
        self._last_ns = 0
        """When they were last heard together."""
        self._heard = 0
        """Steps, and how many it takes until a budget has to be raised."""
        are_alike = all(voice._gaps is self._gaps for voice in voices)
        self._until_raise = min([_until_raise(voice) for voice in voices]) if are_alike else 0

    def hear(self, texts: Sequence[str], tokens: Sequence[int]) -> bool:
        """What a step has brought each. False, and nothing is heard, where each has to be told alone."""
        if self._heard + 1 >= self._until_raise:
            return False
        self._heard += 1
        self._note_time()
        count_one_more(self._slots, OUTPUT)
        columns = zip(self._indexes, texts, tokens, strict=True)
        push_all(self._streams, [Delta(index, text, (token,)) for index, text, token in columns])
        return True

    def part(self) -> None:
        """Let each know what it has said."""
        heard, self._heard = self._heard, 0
        for voice in self._voices:
            voice._unheard += heard
            voice._last_ns = self._last_ns or voice._last_ns

    def _note_time(self) -> None:
        now_ns, last_ns, gaps = self._now_ns(), self._last_ns, self._gaps
        self._last_ns = now_ns
        if last_ns:
            gaps += [now_ns - last_ns] * len(self._voices)
        else:
            gaps += [now_ns - voice._last_ns for voice in self._voices]
        gaps.fold_if_many()


def _until_raise(voice: Voice) -> int:
    return NEVER if voice._spending is None else voice._until_raise - voice._unheard
