"""Several sequences of one request: which of them are the answer, what each is asked, and who pays for the rest."""

import asyncio
from typing import Any

import pytest
from tests.unit.pipeline.node import asks, settled
from tests.unit.pipeline.scripted import ScriptedEngine, scripted_node

from llmhost.core.errors import DeadlineExceeded, EngineFailed, InvalidValue, Overloaded
from llmhost.core.output import Delta, FinishReason, TokenLogprobs
from llmhost.core.sampling import Sampling
from llmhost.pipeline.exchange import Exchange
from llmhost.testing import TestHost, make_host
from llmhost.text.words import WordTokenizer

WORDS = WordTokenizer(4096)


async def open_on(host: TestHost, **facts: Any) -> Exchange:
    return await host.host.processor.open(asks(**facts), None, {})


async def deltas_of(exchange: Exchange) -> list[Delta]:
    deltas = list[Delta]()
    while fresh := await exchange.read():
        deltas += fresh
    return deltas


def texts(deltas: list[Delta]) -> dict[int, str]:
    said: dict[int, str] = {}
    for delta in deltas:
        said[delta.index] = said.get(delta.index, "") + delta.text
    return said


def speak(engine: ScriptedEngine, *merits: float) -> None:
    """Each sequence says its number twice, and the last one ends last."""
    for index, merit in enumerate(merits):
        engine.say(index, str(index), merit)
        engine.say(index, str(index), merit)
    for index in range(len(merits)):
        engine.end(index)


# -- best_of --------------------------------------------------------------------------------------------------------


async def test_the_likeliest_of_each_prompt_are_the_answer_the_likeliest_first() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, prompts=("a b", "c"), n=2, best_of=3)
        speak(engine, -3.0, -1.0, -2.0, -1.0, -9.0, -0.5)
        said = texts(await deltas_of(exchange))

    assert said == {0: "11", 1: "22", 2: "55", 3: "33"}


async def test_the_mean_of_a_token_counts_not_the_sum() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, n=1, best_of=2)
        engine.say(0, "short", -1.0)
        for _ in range(5):
            engine.say(1, "long ", -0.9)
        engine.end(0)
        engine.end(1)
        said = texts(await deltas_of(exchange))

    assert said == {0: "long " * 5}


async def test_nothing_comes_out_before_the_last_has_ended() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, n=1, best_of=2)
        engine.say(0, "a")
        engine.end(0)
        engine.say(1, "b")
        early = await exchange.read(0.0)
        engine.end(1)
        late = await deltas_of(exchange)

    assert early is None
    assert late[-1].finish_reason is FinishReason.STOP


async def test_those_that_lost_are_paid_for_and_the_prompt_is_paid_for_once() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, prompts=("a b c",), n=1, best_of=3)
        speak(engine, -1.0, -2.0, -3.0)
        await deltas_of(exchange)
        [entry] = await settled(host)

    assert entry["tokens"] == {"fresh_input": 3, "cached_input": 0, "output": 6}
    assert entry["amount_nano"] == 3 * 100 + 6 * 400


async def test_what_a_rule_cut_off_wins_only_over_its_like() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, n=1, best_of=2)
        engine.say(0, "cut", -0.1)
        engine.end(0, FinishReason.CONTENT_FILTER)
        engine.say(1, "whole", -5.0)
        engine.end(1)
        said = texts(await deltas_of(exchange))

    assert said == {0: "whole"}
    assert exchange.context.finish_reason is FinishReason.STOP


async def test_what_was_told_of_the_prompt_comes_with_the_first_whoever_won() -> None:
    thought = TokenLogprobs(1, -1.0, 1)
    sampling = Sampling(prompt_logprobs=1)
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, n=1, best_of=2, sampling=sampling)
        engine.tell(0, thought)
        speak(engine, -2.0, -1.0)
        deltas = await deltas_of(exchange)

    assert texts(deltas) == {0: "11"}
    assert [told for delta in deltas for told in delta.prompt_logprobs] == [thought]


async def test_a_reader_of_the_best_who_leaves_stops_all_and_pays_for_all() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, n=1, best_of=3)
        engine.say(0, "a")
        engine.say(2, "c")
        engine.end(0)
        exchange.leave()
        [entry] = await settled(host)

    assert engine.cancelled == [1, 2]
    assert (entry["outcome"], entry["tokens"]["output"]) == ("cancelled", 2)


async def test_one_of_the_candidates_failing_fails_the_request_and_shows_nothing() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, n=1, best_of=3)
        engine.say(0, "a")
        engine.end(0)
        engine.end(1, FinishReason.ERROR, EngineFailed("no"))
        with pytest.raises(EngineFailed):
            await exchange.read()
        [entry] = await settled(host)

    assert engine.cancelled == [2]
    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 0)


async def test_of_more_candidates_than_fit_none_is_left_behind() -> None:
    async with scripted_node() as (host, engine):
        engine.most = 2
        with pytest.raises(Overloaded):
            await open_on(host, n=1, best_of=3)

        assert engine.live == 0


# -- what a sequence is asked ---------------------------------------------------------------------------------------


async def test_only_the_first_choice_of_a_prompt_is_asked_what_it_thinks_of_it() -> None:
    sampling = Sampling(logprobs=3, prompt_logprobs=5)
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, prompts=("a", "b"), n=2, sampling=sampling)
        exchange.leave()

    asked = [engine.specs[index].sampling for index in range(4)]
    assert [one.prompt_logprobs for one in asked] == [5, None, 5, None]
    assert [one.logprobs for one in asked] == [3] * 4


@pytest.mark.parametrize(
    ("facts", "logprobs", "of_prompt"),
    [
        ({"best_of": 2}, 0, None),
        ({"echo": True}, None, None),
        ({"echo": True, "sampling": Sampling(logprobs=2)}, 2, 2),
        ({"echo": True, "sampling": Sampling(logprobs=2, prompt_logprobs=4)}, 2, 4),
        ({"sampling": Sampling(prompt_logprobs=0)}, None, 0),
    ],
    ids=str,
)
async def test_what_an_answer_is_made_from_is_asked_of_the_engine(
    facts: dict[str, Any], logprobs: int | None, of_prompt: int | None
) -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, **facts)
        exchange.leave()

    sampling = engine.specs[0].sampling
    assert (sampling.logprobs, sampling.prompt_logprobs) == (logprobs, of_prompt)


async def test_choices_share_a_prompt_and_a_scope_and_differ_in_their_seeds() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, n=3, sampling=Sampling(seed=7))
        exchange.leave()

    specs = list(engine.specs.values())
    assert len({spec.seed for spec in specs}) == 3
    assert specs[0].seed == 7
    assert len({(spec.prompt, spec.cache_scope) for spec in specs}) == 1


async def test_a_salt_narrows_whom_a_prompt_is_shared_with() -> None:
    scopes = []
    for salt in ("", "", "mine", "yours"):
        async with scripted_node() as (host, engine):
            exchange = await open_on(host, cache_salt=salt)
            exchange.leave()
            scopes.append(engine.specs[0].cache_scope)

    assert scopes[0] == scopes[1]
    assert len(set(scopes)) == 3


async def test_ends_words_and_deadlines_arrive_at_the_sequence() -> None:
    word = WORDS.decode([9])
    async with scripted_node() as (host, engine):
        exchange = await open_on(
            host,
            stop_token_ids=(5, 6),
            bad_words=(word, f" {word}"),
            min_tokens=2,
            timeout_ms=60_000,
        )
        exchange.leave()
        arrived_ns = exchange.context.arrived_ns

    spec = engine.specs[0]
    assert spec.stop_token_ids == frozenset({5, 6})
    assert spec.sampling.bad_words == ((9,),)  # both spellings are one here
    assert spec.min_new_tokens == 2
    assert spec.deadline_ns == arrived_ns + 60 * 10**9


async def test_a_prompt_that_fills_the_window_can_be_scored_but_not_gone_on_from() -> None:
    long = tuple(range(100)) * 400
    async with scripted_node() as (host, engine):
        room = (await settled(host)) or 0
        deployment = host.host.deployments.all()[0]
        longest = await host.host.deployments.longest_tokens(deployment)
        prompt = (long * 10)[:longest]
        scoring = {"max_tokens": 0, "sampling": Sampling(prompt_logprobs=0)}
        exchange = await open_on(host, prompts=(prompt,), **scoring)
        exchange.leave()
        with pytest.raises(Exception, match="this model holds"):
            await open_on(host, prompts=(prompt,), max_tokens=1)

    assert not room
    assert engine.specs[0].max_new_tokens == 0


async def test_more_must_be_said_than_there_is_room_for() -> None:
    async with scripted_node() as (host, _):
        with pytest.raises(InvalidValue, match="leaves room for") as refused:
            await open_on(host, max_tokens=None, min_tokens=10**7)

    assert refused.value.param == "min_tokens"


@pytest.mark.parametrize(
    ("facts", "param"),
    [
        ({"echo": True, "sampling": Sampling(logprobs=20)}, "echo"),
        ({"echo": True, "n": 21}, "echo"),
        ({"return_token_ids": True, "n": 21}, "return_token_ids"),
        ({"sampling": Sampling(prompt_logprobs=20)}, "prompt_logprobs"),
    ],
    ids=str,
)
async def test_an_answer_that_would_repeat_too_much_of_its_prompts_is_refused(
    facts: dict[str, Any], param: str
) -> None:
    async with scripted_node() as (host, _):
        with pytest.raises(InvalidValue, match="are allowed") as refused:
            await open_on(host, prompts=((1,) * 24_000,), **facts)

    assert refused.value.param == param


@pytest.mark.parametrize(
    "facts",
    [
        {"stop_token_ids": (5,), "min_tokens": 1},
        {"bad_words": (WORDS.decode([5]),)},
    ],
    ids=str,
)
async def test_a_request_that_leaves_nothing_to_say_is_refused(facts: dict[str, Any]) -> None:
    async with scripted_node() as (host, engine):
        with pytest.raises(InvalidValue) as refused:
            await open_on(host, sampling=Sampling(allowed_token_ids=(5,)), **facts)
        some = await open_on(host, sampling=Sampling(allowed_token_ids=(5, 6)), **facts)
        some.leave()

    assert refused.value.param == "allowed_token_ids"
    assert list(engine.specs) == [0]


# -- deadlines ------------------------------------------------------------------------------------------------------


async def test_what_a_deadline_cut_off_is_an_error_and_what_was_made_is_paid_for() -> None:
    async with scripted_node() as (host, engine):
        exchange = await open_on(host, n=2, timeout_ms=1000)
        engine.say(0, "a")
        engine.say(1, "b")
        late = DeadlineExceeded("late")
        engine.end(0, FinishReason.ERROR, late)
        seen = list[Delta]()
        with pytest.raises(DeadlineExceeded, match="1000 ms of 'timeout_ms'"):
            while fresh := await exchange.read():
                seen += fresh
        [entry] = await settled(host)

    assert texts(seen) == {0: "a", 1: "b"}
    assert engine.cancelled == [1]
    assert (entry["outcome"], entry["code"]) == ("cancelled", "deadline_exceeded")
    assert entry["amount_nano"] == 2 * 100 + 2 * 400


async def test_a_deadline_that_is_over_before_the_answer_begins_costs_nothing() -> None:
    async with make_host() as host:
        [deployment] = host.host.deployments.all()
        deployment.ensure_ready = asyncio.Event().wait  # type: ignore[assignment]
        with pytest.raises(DeadlineExceeded) as late:
            await open_on(host, model="fake", timeout_ms=1)
        [entry] = await settled(host)

    assert (late.value.status, late.value.param) == (504, "timeout_ms")
    assert (entry["outcome"], entry["amount_nano"]) == ("refused", 0)
