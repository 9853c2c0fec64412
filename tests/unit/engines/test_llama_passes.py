"""A step in calls: however small they are, every token is fed once, and every wanted place comes out once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.request import Sampling
from llmhost.core.step import Row
from llmhost.engines.llama.passes import one_each, passes, takes_one_each


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
