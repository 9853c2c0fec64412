"""What a step says of many sequences at once reaches each of their sinks, once."""

from collections.abc import Sequence

from llmhost.core.output import Delta, FinishReason
from llmhost.core.ports import DeltaSink
from llmhost.schedule.drain import DrainForecast
from llmhost.schedule.ears import Ears, Entry, get_ready
from llmhost.schedule.steady import Chorus


class Singer:
    """A sink that can be told with others."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name
        self.is_willing = True

    def __call__(self, delta: Delta) -> None:
        self.log.append(f"{self.name} alone {delta.text}")

    def together(self, sinks: Sequence["Singer"]) -> "Group":
        return Group(sinks)


class Group:
    def __init__(self, singers: Sequence[Singer]) -> None:
        self.singers = singers

    def hear(self, texts: Sequence[str], tokens: Sequence[int]) -> bool:
        if not all(singer.is_willing for singer in self.singers):
            return False
        for singer, text, token in zip(self.singers, texts, tokens, strict=True):
            singer.log.append(f"{singer.name} {text} {token}")
        return True

    def part(self) -> None:
        self.singers[0].log.append("parted")


def tell(sink: DeltaSink, delta: Delta) -> None:
    sink(delta)


class Hall:
    """Three who listen, the one in the middle alone."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.drain = DrainForecast(batch=4, most_live=8)
        first, last = Singer(self.log, "first"), Singer(self.log, "last")
        self.singers = (first, last)
        self.sinks: dict[int, Entry] = {
            seq_id: (0, sink, self.drain.came(seq_id, 10, 0.0))
            for seq_id, sink in enumerate((first, lambda d: self.log.append(f"mid {d.text}"), last))
        }
        for seq_id in self.sinks:
            self.drain.said(seq_id, 1, 1.0)

    def chorus(self) -> Chorus:
        return Chorus([0, 1, 2], [0, 0, 0], ["a", "b", "c"], [5, 6, 7])

    def hear(self, ears: Ears, chorus: Chorus) -> bool:
        return ears.hear(chorus, self.drain, 2.0, tell)


def test_each_hears_what_is_for_it() -> None:
    hall = Hall()
    chorus = hall.chorus()

    assert hall.hear(Ears(chorus, hall.sinks), chorus)
    assert sorted(hall.log) == ["first a 5", "last c 7", "mid b"]
    assert [speaker.said for _, _, speaker in hall.sinks.values()] == [2, 2, 2]


def test_nobody_hears_anything_where_each_has_to_be_told_alone() -> None:
    hall = Hall()
    hall.singers[1].is_willing = False
    chorus = hall.chorus()

    assert not hall.hear(Ears(chorus, hall.sinks), chorus)
    assert hall.log == []


def test_who_is_heard_for_the_first_time_is_told_alone() -> None:
    hall = Hall()
    hall.sinks[2][2].first_s = None
    chorus = hall.chorus()

    assert not hall.hear(Ears(chorus, hall.sinks), chorus)


def test_who_has_left_is_told_nothing() -> None:
    hall = Hall()
    del hall.sinks[0]
    chorus = hall.chorus()

    assert hall.hear(Ears(chorus, hall.sinks), chorus)
    assert sorted(hall.log) == ["last c 7", "mid b"]


def test_a_chorus_stands_for_the_deltas_of_each() -> None:
    assert list(Hall().chorus())[1] == (1, Delta(0, "b", (6,)))
    assert len(Hall().chorus()) == 3


class Listener:
    """A sink that can get ready with others, unless it breaks over it."""

    def __init__(self, log: list[str], *, breaks: bool = False) -> None:
        self.log, self.breaks = log, breaks

    def __call__(self, delta: Delta) -> None:
        self.log.append(delta.text)

    def get_ready(self, told: Sequence[tuple["Listener", Delta]]) -> None:
        if self.breaks:
            raise ValueError
        self.log.append("ready for " + " ".join(delta.text for _, delta in told))


def get_them_ready(listeners: Sequence[DeltaSink], ends: str) -> None:
    drain = DrainForecast(batch=4, most_live=8)
    sinks: dict[int, Entry] = {
        seq_id: (0, sink, drain.came(seq_id, 10, 0.0)) for seq_id, sink in enumerate(listeners)
    }
    reasons = [FinishReason.STOP if end == "." else None for end in ends]
    said = [(at, Delta(0, "abcd"[at], finish_reason=reason)) for at, reason in enumerate(reasons)]
    get_ready([*said, (9, Delta(0, "of nobody", finish_reason=FinishReason.STOP))], sinks)


def test_those_get_ready_together_who_are_told_their_last_words() -> None:
    log: list[str] = []
    one, another = Listener(log), Listener(log)

    get_them_ready([one, log.clear, another, Listener(log)], ".. .")  # type: ignore[list-item]
    assert log == ["ready for a d"]

    get_them_ready([one, another], ". ")
    assert log == ["ready for a d"], "one alone is told as ever"


def test_whoever_is_told_more_before_his_last_words_does_not_get_ready_for_them() -> None:
    log: list[str] = []
    drain = DrainForecast(batch=4, most_live=8)
    sinks: dict[int, Entry] = {at: (0, Listener(log), drain.came(at, 10, 0.0)) for at in range(3)}
    ends = [(at, Delta(0, f"end {at}", finish_reason=FinishReason.STOP)) for at in range(3)]

    get_ready([(1, Delta(0, "amid 1", (5,))), *ends], sinks)

    assert log == ["ready for end 0 end 2"]


def test_who_breaks_over_getting_ready_costs_nobody_his_words() -> None:
    log: list[str] = []
    get_them_ready([Listener(log, breaks=True), Listener(log)], "..")
    assert not log
