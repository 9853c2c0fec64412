"""A step in calls: however small they are, every token is fed once, and every wanted place comes out once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.sampling import Sampling
from llmhost.core.step import Row
from llmhost.engines.llama.passes import (
    AT_ONCE,
    MOST_SURPLUS,
    aligned,
    alignment,
    even,
    may_align,
    one_each,
    passes,
    takes_one_each,
)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    count, drafts, wants = draw(st.integers(1, 20)), draw(st.integers(0, 6)), draw(st.booleans())
    drafts = min(drafts, count - 1) if wants else 0
    asked = Sampling(prompt_logprobs=0 if draw(st.booleans()) else None)
    known = [*range(100)]
    prompt_tokens = draw(st.integers(1, 30))
    return Row(
        1, known[:count], 0, [], asked, 0, wants, prompt_tokens=prompt_tokens, known=known
    )._replace(drafts=drafts)


@given(
    st.lists(rows(), min_size=1, max_size=6), st.integers(1, 12), st.integers(1, 5), st.booleans()
)
@settings(max_examples=200, deadline=None)
def test_calls_hold_every_token_and_every_wanted_place_once(
    some: list[Row], most_tokens: int, most_outputs: int, watches: bool
) -> None:
    most = {"most_tokens": most_tokens, "most_outputs": most_outputs}
    calls = [*passes(some, range(len(some)), **most, watches=watches)]

    assert all(0 < len(call.tokens) <= most_tokens for call in calls)
    assert all(call.outputs == sum(call.wants) <= most_outputs for call in calls)
    fed = [(s, p) for call in calls for s, p in zip(call.sequences, call.positions, strict=True)]
    assert fed == [(at, p) for at, row in enumerate(some) for p in range(len(row.tokens))]
    drawn = []
    for call in calls:
        wanted = [at for at, is_wanted in enumerate(call.wants) if is_wanted]
        drawn += [(call.sequences[wanted[o]], call.positions[wanted[o]]) for o in call.drawn]
    assert drawn == [
        (at, len(row.tokens) - row.drafts - 1 + depth)
        for at, row in enumerate(some)
        if row.wants_token
        for depth in range(row.drafts + 1)
    ]
    watched = []
    for call in calls:
        wanted = [at for at, is_wanted in enumerate(call.wants) if is_wanted]
        assert all(call.sequences[wanted[o]] == at for o, at in call.watched)
        watched += [(at, call.positions[wanted[o]]) for o, at in call.watched]
    assert watched == [
        (at, len(row.tokens) - 1) for at, row in enumerate(some) if watches and not row.wants_token
    ]
    scored = [(owner, token) for call in calls for _, owner, token in call.scored]
    assert scored == [
        (at, row.known[place + 1])
        for at, row in enumerate(some)
        if row.sampling.prompt_logprobs is not None
        for place in range(min(len(row.tokens), row.prompt_tokens - 1))
    ]


@given(st.lists(rows(), min_size=1, max_size=4), st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_step_of_decoders_is_the_call_that_it_would_be_otherwise(
    some: list[Row], most: int
) -> None:
    decoding = [row._replace(start=len(row.known) - 1, tokens=[7], drafts=0) for row in some]
    sequences = range(len(some))

    assert takes_one_each(decoding, most) is (
        len(some) <= most and all(row.wants_token for row in some)
    )
    if takes_one_each(decoding, most):
        calls = passes(decoding, sequences, most_tokens=most, most_outputs=most)
        assert [one_each(decoding, sequences)] == [*calls]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3)), min_size=2, max_size=12), st.data()
)
@settings(max_examples=200, deadline=None)
def test_prompts_that_are_brought_to_one_length_are_fed_once_and_what_is_too_much_is_cut(
    some: list[tuple[int, int]], data: st.DataObject
) -> None:
    lengths, sequences, at = [length for length, _ in some], list[int](), 0
    for _, gap in some:
        at += gap
        sequences.append(at)
    unsorted = [
        Row(at, [*range(length)], 10, [], Sampling(), 0, data.draw(st.booleans()))
        for at, length in enumerate(lengths)
    ]
    order = sorted(range(len(some)), key=lambda at: alignment(unsorted[at], sequences[at]))
    rows, whose = [unsorted[at] for at in order], [sequences[at] for at in order]

    calls = [*aligned(rows, whose, most_tokens=64, cells=75)]

    fed = {(s, p) for call in calls for s, p in zip(call.sequences, call.positions, strict=True)}
    wanted = {
        (s, 10 + p) for s, row in zip(whose, rows, strict=True) for p in range(len(row.tokens))
    }
    surplus = {(s, p) for call in calls for s, end in call.surplus for p in range(end, 75)}
    assert sum(len(call.tokens) for call in calls) == len(fed) and wanted <= fed
    assert fed - wanted == fed & surplus and not wanted & surplus
    assert len(fed - wanted) <= (MOST_SURPLUS + AT_ONCE - 1) * len(rows)
    drawn = []
    for call in calls:
        assert call.outputs == sum(call.wants)
        places = [at for at, is_wanted in enumerate(call.wants) if is_wanted]
        drawn += [(call.sequences[places[o]], call.positions[places[o]]) for o in call.drawn]
    assert drawn == [
        (s, 9 + len(row.tokens)) for s, row in zip(whose, rows, strict=True) if row.wants_token
    ]


def test_prompts_of_nearly_one_length_are_computed_together_and_others_are_not() -> None:
    lengths = [60, 58, 57, 40, 39, 38]
    rows = [Row(at, [7] * count, 0, [], Sampling(), 0, True) for at, count in enumerate(lengths)]

    calls = [*aligned(rows, range(6), most_tokens=512, cells=512)]

    assert [len(call.tokens) for call in calls] == [3 * 60, 3 * 40]
    decoder = Row(9, [7], 30, [], Sampling(), 0, True)
    first, *rest = aligned([decoder, *rows], [3, 0, 1, 2, 4, 5, 6], most_tokens=512, cells=512)
    assert first.sequences == [*range(7)], "which is one step of llama.cpp's"
    assert [len(call.tokens) for call in rest] == [3 * 60, 3 * 40], "multiples of four"
    assert may_align(rows, 512) and not may_align([decoder, rows[0]], 512)


@given(st.lists(rows(), min_size=1, max_size=6), st.integers(1, 40), st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_call_that_is_made_even_says_the_same_and_cuts_what_it_added(
    some: list[Row], most_tokens: int, watches: bool
) -> None:
    most = {"most_tokens": most_tokens, "most_outputs": 64}
    plain = [*passes(some, range(len(some)), **most, watches=watches)]
    evened = [*passes(some, range(len(some)), **most, watches=watches)]

    for call in evened:
        even(call, most_tokens)

    for before, call in zip(plain, evened, strict=True):
        count = len(before.tokens)
        assert len(call.tokens) == len(call.wants) <= most_tokens and not any(call.wants[count:])
        assert call.tokens[:count] == before.tokens and call.drawn == before.drawn
        added = [*zip(call.sequences, call.positions, strict=True)][count:]
        last = before.positions[-1]
        assert added == [(before.sequences[-1], last + 1 + n) for n in range(len(added))]
        assert call.surplus == ([(before.sequences[-1], last + 1)] if added else [])
        assert not added or len(call.tokens) % AT_ONCE == 0
