import math
from random import Random
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.errors import EngineFailed
from llmhost.core.sampling import Sampling
from llmhost.core.step import Draw, GrammarState, Row
from llmhost.engines.drawing import Place
from llmhost.engines.masks import Masks
from llmhost.engines.torch.logprobs import report
from llmhost.engines.torch.sampler import Sampler, sample, uniform
from llmhost.engines.torch.shaping import Shaper
from llmhost.text.grammar import Closing

DRAWS = 4000


def row(sampling: Sampling, *, seed: int = 0, position: int = 1) -> Row:
    """A row whose drawn token stands at `position`."""
    return Row(0, (0,), position - 1, (0,), sampling, seed, wants_token=True)


def draws(logits: torch.Tensor, sampling: Sampling, *, count: int = DRAWS) -> list[int]:
    rows = [row(sampling, seed=11, position=place) for place in range(1, count + 1)]
    return sample(logits.expand(count, -1), rows)


def chi_square(tokens: list[int], expected: torch.Tensor) -> float:
    """Distance of the counts from `expected` shares, in standard deviations of the statistic."""
    counts = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    likely = expected > 0
    assert counts[~likely].sum() == 0
    wanted = expected[likely].double() * len(tokens)
    statistic = float(((counts[likely] - wanted) ** 2 / wanted).sum())
    freedom = int(likely.sum()) - 1
    return (statistic - freedom) / math.sqrt(2 * max(freedom, 1))


LOGITS = torch.randn(30, generator=torch.Generator().manual_seed(2)) * 1.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_softmax(temperature: float) -> None:
    tokens = draws(LOGITS, Sampling(temperature=temperature))
    assert abs(chi_square(tokens, (LOGITS / temperature).softmax(-1))) < 4


def test_draws_from_a_large_vocabulary_follow_the_softmax() -> None:
    """The two levels of the search: mass in several groups, the last of them not full."""
    logits = torch.full((1000,), float("-inf"))
    places = torch.tensor([0, 255, 256, 300, 511, 512, 998, 999])
    logits[places] = torch.tensor([0.0, 1.0, 0.5, 2.0, -1.0, 0.3, 1.5, 0.1])
    assert abs(chi_square(draws(logits, Sampling()), logits.softmax(-1))) < 4


def test_top_k_draws_from_the_best_k_renormalised() -> None:
    fifth = LOGITS.topk(5).values[-1]
    kept = LOGITS.where(fifth <= LOGITS, float("-inf"))
    assert abs(chi_square(draws(LOGITS, Sampling(top_k=5)), kept.softmax(-1))) < 4


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.7), (12, 0.6), (None, 0.05), (100, 0.7)])
def test_top_p_draws_from_the_smallest_nucleus_of_what_top_k_leaves(
    top_k: int | None, top_p: float
) -> None:
    order = LOGITS.argsort(descending=True)[: top_k or 30]
    shares = LOGITS[order].softmax(-1)
    size = int((shares.cumsum(-1) - shares < top_p).sum())
    expected = torch.zeros(30)
    expected[order[:size]] = shares[:size] / shares[:size].sum()
    tokens = draws(LOGITS, Sampling(top_k=top_k, top_p=top_p))
    assert abs(chi_square(tokens, expected)) < 4


@pytest.mark.parametrize("vocabulary", [5000, 300])
def test_a_nucleus_wider_than_the_candidates_is_found_all_the_same(vocabulary: int) -> None:
    logits = torch.linspace(0.0, 0.5, vocabulary)
    tokens = draws(logits, Sampling(top_p=0.95), count=500)
    shares = logits.softmax(-1).flip(0)
    size = int((shares.cumsum(-1) - shares < 0.95).sum())
    assert min(tokens) >= vocabulary - size
    assert min(tokens) < vocabulary - size * 0.97


def test_ties_at_the_edge_stay_in_together() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 1.0, 1.0])
    assert set(draws(logits, Sampling(top_k=2), count=400)) == {1, 2, 3, 4}


def test_temperature_zero_is_greedy() -> None:
    assert set(draws(LOGITS, Sampling(temperature=0.0), count=3)) == {int(LOGITS.argmax())}


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 1e-300])
def test_a_tiny_temperature_is_as_good_as_greedy(temperature: float) -> None:
    tokens = draws(LOGITS, Sampling(temperature=temperature), count=50)
    assert set(tokens) == {int(LOGITS.argmax())}


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.1, 0.8, 1.0]),
    top_k=st.sampled_from([None, 1, 7, 400, 10_000]),
)


@settings(max_examples=60, deadline=None)
@given(
    samplings=st.lists(SAMPLINGS, min_size=1, max_size=6),
    seed=st.integers(0, 2**63 - 1),
    position=st.integers(1, 100_000),
    coarse=st.booleans(),
)
def test_a_draw_does_not_depend_on_the_batch(
    samplings: list[Sampling], seed: int, position: int, coarse: bool
) -> None:
    logits = torch.randn(len(samplings), 700, generator=torch.Generator().manual_seed(seed % 97))
    if coarse:
        logits = logits.bfloat16()  # many equal logits: ties must not be settled by the batch
    rows = [row(one, seed=seed + i, position=position + i) for i, one in enumerate(samplings)]
    together = sample(logits, rows)
    alone = [sample(logits[i : i + 1], rows[i : i + 1])[0] for i in range(len(rows))]
    assert together == alone
    assert all(0 <= token < 700 for token in together)


def test_a_token_of_no_probability_is_never_drawn_at_the_ends_of_the_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.full((1, 600), float("-inf"))
    logits[0, 100], logits[0, 400] = 0.0, 1.0
    for share, token in ((0.0, 100), (1.0 - 2.0**-53, 400)):
        monkeypatch.setattr("llmhost.engines.torch.sampler.uniform", lambda *_, u=share: u)
        assert sample(logits, [row(Sampling())]) == [token]


def test_uniform_numbers_are_uniform_and_differ_by_seed_and_position() -> None:
    numbers = [uniform(seed, position) for seed in range(50) for position in range(200)]
    assert len(set(numbers)) == len(numbers)
    assert all(0.0 <= number < 1.0 for number in numbers)
    counts = torch.bincount((torch.tensor(numbers) * 20).long(), minlength=20)
    assert abs(chi_square([int(n * 20) for n in numbers], torch.full((20,), 0.05))) < 4
    assert counts.min() > 0


def test_a_draw_is_pinned_for_ever() -> None:
    """Resuming an answer on another version of this program must not change it."""
    assert uniform(1234, 56) == 0.13669885217308897


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0.0), Sampling(top_p=0.5)])
def test_numbers_that_are_none_fail_their_own_row(bad: float, sampling: Sampling) -> None:
    logits = torch.zeros(2, 10)
    logits[1, 3] = bad
    rows = [row(sampling)._replace(seq_id=5), row(sampling)._replace(seq_id=6)]

    fine, failed = sample(logits, rows)

    assert isinstance(fine, int)
    assert isinstance(failed, EngineFailed) and "sequence 6" in failed.message


def test_min_p_bars_what_is_less_likely_than_its_share_of_the_likeliest() -> None:
    shares = LOGITS.softmax(-1)
    kept = shares.where(shares >= 0.2 * shares.max(), 0.0)
    tokens = draws(LOGITS, Sampling(min_p=0.2))
    assert abs(chi_square(tokens, kept / kept.sum())) < 4


def test_penalties_are_taken_in_the_order_of_the_docstring() -> None:
    """Repetition over prompt and answer, then frequency and presence over the answer alone."""
    logits = torch.tensor([[2.0, 2.0, -1.0, -1.0, 3.0]])
    asked = Sampling(
        temperature=0.0,
        repetition_penalty=2.0,
        frequency_penalty=0.25,
        presence_penalty=0.5,
        logit_bias=((3, 0.125),),
    )
    known = [0, 2, 1, 1, 3]  # a prompt of two tokens, and three of the answer
    at = row(asked)._replace(known=known, prompt_tokens=2, tokens=known, start=0)

    shaped = logits.clone()
    Shaper().shape(shaped, [Place(at)], Masks())

    assert shaped.tolist() == [[1.0, 1.0 - 0.5 - 0.5, -2.0, -2.0 - 0.25 - 0.5 + 0.125, 3.0]]


def test_a_text_that_grows_is_counted_as_one_that_came_at_once() -> None:
    random = Random(3)
    known = [random.randrange(40) for _ in range(10)]
    asked = Sampling(temperature=0.0, frequency_penalty=0.1, repetition_penalty=1.1)
    sampler = Sampler()
    for _ in range(200):
        at = row(asked)._replace(known=known, prompt_tokens=6, tokens=known, start=0)
        logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(len(known)))
        fresh = at._replace(known=tuple(known))
        [drawn] = sampler.sample(logits, [at])
        assert [drawn] == sample(logits, [fresh])
        assert isinstance(drawn, int)
        known.append(drawn)


def test_ids_that_the_vocabulary_lacks_are_not_there() -> None:
    asked = Sampling(
        temperature=0.0,
        logit_bias=((30, 100.0), (-1, 100.0), (29, 1.0)),
        allowed_token_ids=(4, 5, 900, -3),
        bad_words=((31,), (5,)),
    )
    barred = row(asked, position=1)._replace(barred=frozenset({77}), barred_until=9)
    assert sample(LOGITS[None], [barred]) == [4]


def test_log_probabilities_and_ranks_are_those_of_log_softmax() -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    tokens = [place * 7 for place in range(40)]
    wanted = logits.double().log_softmax(-1)
    for line, found in enumerate(report(logits, tokens, [line % 9 for line in range(40)])):
        order = sorted(range(300), key=lambda token: (-float(logits[line, token]), token))
        assert found.token == tokens[line]
        assert found.logprob == pytest.approx(float(wanted[line, tokens[line]]), abs=1e-5)
        assert order[found.rank - 1] == tokens[line]
        assert [token for token, _ in found.top] == order[: line % 9]
        for token, value in found.top:
            assert value == pytest.approx(float(wanted[line, token]), abs=1e-5)


def test_reports_do_not_depend_on_how_they_are_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 50).bfloat16()
    asked: tuple[list[int], list[int]] = ([3] * 7, [0, 5, 1, 5, 50, 2, 0])
    whole = report(logits, *asked)
    monkeypatch.setattr("llmhost.engines.torch.logprobs.SLICE_NUMBERS", 100)
    assert report(logits, *asked) == whole


def test_a_guess_is_right_as_often_as_it_is_likely() -> None:
    """Guesses leave the distribution as it is: both of the guess, and of what is said instead of it."""
    count = 4000
    guess = int(LOGITS.argmax())
    rows = [
        Row(0, (0, guess), place, (0,), Sampling(), 5, wants_token=True, drafts=1, known=(0,))
        for place in range(count)
    ]
    answers = sample(LOGITS.expand(2 * count, -1), rows)
    said = [one.tokens if isinstance(one, Draw) else (one,) for one in answers]
    assert abs(chi_square([tokens[0] for tokens in said], LOGITS.softmax(-1))) < 4
    right = [tokens for tokens in said if tokens[0] == guess]
    assert all(len(tokens) == 2 for tokens in right)
    assert abs(chi_square([tokens[1] for tokens in right], LOGITS.softmax(-1))) < 4
    assert all(len(tokens) == 1 for tokens in said if tokens[0] != guess)


def speculating(*guesses: int) -> Row:
    greedy = row(Sampling(temperature=0.0))
    return greedy._replace(seq_id=6, tokens=(0, *guesses), drafts=len(guesses), known=(0,))


def test_logits_that_are_no_numbers_fail_a_row_only_where_its_guesses_were_right() -> None:
    logits = torch.zeros(3, 10)
    logits[:, 4] = 1.0
    logits[1, 2] = float("nan")
    plain = row(Sampling(temperature=0.0))

    assert sample(logits, [speculating(3, 4)]) == [4]
    assert sample(logits, [speculating(4, 4)]) == [4], "the next step fails"
    [failed, fine] = sample(logits[[1, 0, 0]], [speculating(4), plain])
    assert isinstance(failed, EngineFailed) and "sequence 6" in failed.message
    assert fine == 4


@settings(max_examples=60, deadline=None)
@given(
    known=st.lists(st.integers(0, 29), min_size=1, max_size=12),
    guesses=st.lists(st.integers(0, 29), max_size=4),
    asked=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7, 1.5]),
        top_k=st.sampled_from([None, 3]),
        min_p=st.sampled_from([0.0, 0.1]),
        repetition_penalty=st.sampled_from([1.0, 1.4]),
        frequency_penalty=st.sampled_from([0.0, 1.0]),
        bad_words=st.lists(
            st.lists(st.integers(0, 29), min_size=1, max_size=2).map(tuple), max_size=9
        ).map(tuple),
        logprobs=st.sampled_from([None, 2]),
    ),
    seed=st.integers(0, 2**40),
    barred_until=st.integers(0, 15),
    right=st.integers(0, 4),
)
def test_a_row_with_guesses_says_what_one_without_would_say_step_by_step(
    known: list[int],
    guesses: list[int],
    asked: Sampling,
    seed: int,
    barred_until: int,
    right: int,
) -> None:
    def logits_after(tokens: list[int]) -> torch.Tensor:
        return torch.randn(30, generator=torch.Generator().manual_seed(hash(tuple(tokens)) % 2**31))

    plain = Row(1, known[-1:], len(known) - 1, (0,), asked, seed, wants_token=True, prompt_tokens=1)
    plain = plain._replace(barred=frozenset(range(15)), barred_until=barred_until)
    said, reports, text = [], [], [*known]
    while len(said) <= len(guesses):
        at = plain._replace(known=text, start=len(text) - 1)
        [one] = sample(logits_after(text)[None], [at])
        draw = one if isinstance(one, Draw) else Draw((one,))  # type: ignore[arg-type]
        said += draw.tokens
        reports += draw.logprobs
        text = [*text, *draw.tokens]
        if len(said) <= right and len(said) <= len(guesses):
            guesses[len(said) - 1] = said[-1]
        if len(said) > len(guesses) or guesses[len(said) - 1] != said[-1]:
            break
    places = torch.stack([logits_after([*known, *guesses[:at]]) for at in range(len(guesses) + 1)])
    row_ = plain._replace(tokens=[known[-1], *guesses], drafts=len(guesses), known=known)

    [found] = sample(places, [row_])

    draw = found if isinstance(found, Draw) else Draw((found,))  # type: ignore[arg-type]
    assert draw.tokens == tuple(said)
    assert list(draw.logprobs) == reports


class TestAWishToEnd:
    """Where a grammar allows no end, it goes to the token that brings the answer nearer to its end."""

    LOGITS = torch.tensor([[5.0, -20.0, 0.0, -1.0, -1.0, -1.0, 2.0, 1.0]])
    ENDS = (6, 7)

    def masks(self) -> Masks:
        """Tokens 1 and 2 are allowed; 1 closes."""
        packed = np.array([[0b110]], np.int32)
        return Masks(packed, {0: 0}, {0: Closing(0, 1, self.ENDS)})

    def held(self, sampling: Sampling, **more: Any) -> Row:
        return row(sampling)._replace(grammar=cast(GrammarState, object()), **more)

    def test_it_closes_what_is_open(self) -> None:
        greedy = Sampler().sample(self.LOGITS, [self.held(Sampling(temperature=0))], self.masks())

        assert greedy == [1]

    def test_it_has_the_probability_of_all_ends(self) -> None:
        held = [self.held(Sampling())._replace(seed=seed) for seed in range(2000)]
        drawn = Sampler().sample(self.LOGITS.expand(2000, -1), held, self.masks())
        expected = float(torch.tensor([2.0, 1.0, 0.0]).softmax(0)[:2].sum())

        assert abs(drawn.count(1) / 2000 - expected) < 0.03

    def test_an_end_that_comes_too_early_is_no_wish(self) -> None:
        early = self.held(Sampling(temperature=0), barred=frozenset(self.ENDS), barred_until=9)

        assert Sampler().sample(self.LOGITS, [early], self.masks()) == [2]

    def test_ends_that_are_not_allowed_are_no_wish(self) -> None:
        narrow = self.held(Sampling(temperature=0, allowed_token_ids=(1, 2)))

        assert Sampler().sample(self.LOGITS, [narrow], self.masks()) == [2]
