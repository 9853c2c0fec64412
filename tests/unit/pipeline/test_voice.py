"""Voices that are heard together count and say what they would count and say one by one."""

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.output import Delta, FinishReason
from llmhost.observe.loop import Gaps
from llmhost.pipeline.generation import Generation
from llmhost.pipeline.spending import Spending
from llmhost.pipeline.stream import ReplayStream
from llmhost.pipeline.voice import Choir, Voice

MOST = 3

act = st.one_of(
    st.tuples(st.just("all"), st.just(0)),
    st.tuples(st.just("one"), st.integers(0, MOST - 1)),
    st.tuples(st.just("part"), st.just(0)),
)


class FakeSpending:
    """A raise is due after each few tokens."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.told: list[int] = []

    def until_raise(self, index: int) -> int:
        return self.every

    def is_over(self, index: int) -> bool:
        return sum(self.told) > 4 * self.every

    def made(self, index: int, tokens: int, allow: Any) -> None:
        self.told.append(tokens)


class FakeSlot:
    """Counts as a slot of the journal does."""

    _at, _COUNTERS = 0, 2

    def __init__(self) -> None:
        self._words = [0] * 6
        self._journal = self

    def add(self, counter: int, more: int) -> None:
        self._words[2 + counter] += more


class Crowd:
    """Some voices on one clock, and all that came of what they said."""

    def __init__(self, count: int, every: int | None) -> None:
        self.ns = 0
        self.ended: list[Delta] = []
        self.slots = [FakeSlot() for _ in range(count)]
        self.streams = [ReplayStream() for _ in range(count)]
        self.gaps = Gaps((1.0,), lambda counts, seconds: None)
        self.spendings = [FakeSpending(every or 1) for _ in range(count)]
        self.contexts = [SimpleNamespace(slot=slot, first_token_ns=None) for slot in self.slots]
        self.voices = [self._voice(index) for index in range(count)]
        if every is not None:
            for voice, spending in zip(self.voices, self.spendings, strict=True):
                voice.spend(cast(Spending, spending), lambda *_: None)

    def _voice(self, index: int) -> Voice:
        generation = SimpleNamespace(
            context=self.contexts[index],
            stream=self.streams[index],
            gaps=lambda: self.gaps,
            is_detached=False,
            end_choice=self.ended.append,
        )
        return Voice(cast(Generation, generation), 0, now_ns=lambda: self.ns)

    def outcome(self) -> dict[str, Any]:
        return {
            "said": [[repr(delta) for delta in stream.so_far()] for stream in self.streams],
            "counts": [slot._words for slot in self.slots],
            "gaps": sorted(self.gaps),
            "raises": [spending.told for spending in self.spendings],
            "firsts": [context.first_token_ns for context in self.contexts],
        }


class Together(Crowd):
    """They are heard together where that is possible."""

    choir: Choir | None = None

    def all_say(self, token: int) -> None:
        self.choir = self.choir or Voice.together(self.voices)
        count = len(self.voices)
        if not self.choir.hear([f"w{token}"] * count, [token] * count):
            self.part()
            for voice in self.voices:
                voice(Delta(0, f"w{token}", (token,)))

    def one_says(self, index: int, token: int) -> None:
        self.part()
        self.voices[index](Delta(0, f"w{token}", (token,)))

    def part(self) -> None:
        if self.choir is not None:
            self.choir.part()
            self.choir = None


@given(st.integers(1, MOST), st.one_of(st.none(), st.integers(1, 6)), st.lists(act, max_size=30))
def test_together_or_alone_they_have_the_same_outcome(
    count: int, every: int | None, acts: list[tuple[str, int]]
) -> None:
    together, alone = Together(count, every), Crowd(count, every)
    for token, (name, index) in enumerate([("one", at) for at in range(count)] + acts):
        together.ns = alone.ns = 1 + token * token
        if name == "part":
            together.part()
        elif name == "all":
            together.all_say(token)
            for voice in alone.voices:
                voice.hear(Delta(0, f"w{token}", (token,)))
        elif index < count:
            together.one_says(index, token)
            alone.voices[index].hear(Delta(0, f"w{token}", (token,)))
    together.part()
    assert together.outcome() == alone.outcome()


def test_what_is_counted_of_a_closed_slot_is_nothing() -> None:
    crowd = Together(2, None)
    for voice in crowd.voices:
        voice(Delta(0, "a", (1,)))
    crowd.slots[0]._journal = None  # type: ignore[assignment]
    crowd.all_say(2)

    assert [slot._words[3] for slot in crowd.slots] == [1, 2]


def test_last_words_go_to_the_end() -> None:
    crowd = Crowd(1, None)
    crowd.voices[0](Delta(0, "a", (1,), FinishReason.STOP))

    assert [delta.text for delta in crowd.ended] == ["a"]
    assert not crowd.streams[0].so_far()
