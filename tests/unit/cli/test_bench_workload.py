"""Lengths, prompts and arrivals: what a load is made of."""

import itertools
import math
import statistics
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.cli.bench.lengths import Lengths, parse_lengths
from llmhost.cli.bench.workload import WORDS, Workload, arrivals, asks

counts = st.integers(1, 10_000)
FIVE = Lengths(5, 5)


@given(counts)
def test_a_number_is_that_length_each_time(count: int):
    lengths = parse_lengths(str(count))

    assert {lengths.draw(Random(i)) for i in range(3)} == {count}


@given(counts, counts, st.integers())
def test_uniform_lengths_stay_between_their_ends(low: int, more: int, seed: int):
    lengths = parse_lengths(f"uniform:{low}-{low + more}")

    assert low <= lengths.draw(Random(seed)) <= low + more


@given(counts, st.floats(0, 3), counts, st.integers())
def test_log_normal_lengths_are_at_least_one_and_at_most_what_was_said(
    median: int, sigma: float, most: int, seed: int
):
    lengths = parse_lengths(f"lognormal:{median}:{sigma:.3f}:{most}")

    assert 1 <= lengths.draw(Random(seed)) <= most


def test_the_median_of_log_normal_lengths_is_the_one_that_was_said():
    lengths, rng = parse_lengths("lognormal:200:0.8"), Random(1)

    drawn = [lengths.draw(rng) for _ in range(4001)]

    assert statistics.median(drawn) == pytest.approx(200, rel=0.1)
    assert statistics.stdev(map(math.log, drawn)) == pytest.approx(0.8, rel=0.1)


WRONG = ("", "0", "-3", "1.5", "many", "uniform:5", "uniform:9-3", "uniform:0-3", "lognormal:200")
WRONG += ("lognormal:0:1", "lognormal:9:1:0", "lognormal:nan:1", "lognormal:5:99", "99999999999")


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_length_is_answered_with_the_spellings(text: str):
    with pytest.raises(ValueError, match=r"512, uniform:16-1500, or lognormal"):
        parse_lengths(text)


@given(st.text("0123456789.:-uniformlgal "))
def test_no_text_breaks_the_parser(text: str):
    try:
        lengths = parse_lengths(text)
    except ValueError:
        return
    assert 1 <= lengths.draw(Random(1)) <= lengths.most


def works(**changes: object) -> st.SearchStrategy[Workload]:
    return st.builds(
        Workload,
        prompt=st.builds(lambda a, b: Lengths(a, a + b), st.integers(1, 9), st.integers(0, 9)),
        output=st.just(FIVE),
        seed=st.integers(0, 99),
        prefix_tokens=st.integers(0, 6),
        prefix_groups=st.integers(1, 3),
        as_text=st.booleans(),
        vocab=st.integers(2, 300),
    )


@given(works())
def test_a_seed_gives_the_same_requests_each_time(work: Workload):
    assert list(itertools.islice(asks(work), 5)) == list(itertools.islice(asks(work), 5))


@given(works())
def test_prompts_are_as_long_as_was_said_and_begin_with_one_of_the_prefixes(work: Workload):
    prefixes = set()
    for asked in itertools.islice(asks(work), 8):
        units = asked.prompt.split() if isinstance(asked.prompt, str) else asked.prompt
        own = len(units) - work.prefix_tokens

        assert work.prompt.least <= own <= work.prompt.most
        assert isinstance(asked.prompt, str) is work.as_text
        known = WORDS if work.as_text else range(work.vocab)
        assert all(unit in known for unit in units)
        prefixes.add(tuple(units[: work.prefix_tokens]))
    assert len(prefixes) <= work.prefix_groups


def test_the_warm_up_shares_prefixes_and_no_prompts():
    work = Workload(prompt=Lengths(20, 20), output=FIVE, seed=3, prefix_tokens=10)

    warm, run = next(asks(work, "warm-up")), next(asks(work))

    assert warm.prompt[:10] == run.prompt[:10]
    assert warm.prompt[10:] != run.prompt[10:]


@given(st.floats(0.1, 1000), st.floats(0.05, 20), st.integers(0, 9))
def test_arrivals_never_go_back(rate: float, burstiness: float, seed: int):
    due = list(itertools.islice(arrivals(rate, burstiness, seed), 20))

    assert due == sorted(due)
    assert due[0] >= 0


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_spread_as_the_burstiness_says(burstiness: float):
    due = [0.0, *itertools.islice(arrivals(10.0, burstiness, 1), 20_000)]
    gaps = [b - a for a, b in itertools.pairwise(due)]

    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.1)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(
        burstiness**-0.5, rel=0.1
    )


def test_an_infinite_rate_makes_all_requests_due_at_once():
    assert list(itertools.islice(arrivals(math.inf, 1.0, 1), 3)) == [0.0, 0.0, 0.0]
