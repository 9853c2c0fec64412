import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.errors import EngineFailed
from llmhost.core.request import Sampling
from llmhost.core.step import Row
from llmhost.engines.torch.sampler import sample, uniform

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
