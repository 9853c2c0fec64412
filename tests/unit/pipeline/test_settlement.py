"""However a request ends, it ends once, is booked once, and nobody sees its end before it is booked."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.pipeline.node import (
    HELD_MODEL,
    Held,
    asks,
    read_all,
    settled,
    slow_ledger,
    until,
)

from llmhost.config.schema import Settings
from llmhost.config.schema.money import BillingSettings
from llmhost.core.errors import EngineFailed, LlmhostError, Overloaded
from llmhost.core.events import RequestEnded
from llmhost.core.request import Kind
from llmhost.hooks.spec import Price, hookimpl
from llmhost.pipeline.bill import FREE
from llmhost.pipeline.exchange import Exchange
from llmhost.pipeline.generation import Generation
from llmhost.storage.connect import StorageFailed
from llmhost.testing import FAKE_MODEL, TestHost, at, fake_words, make_host


def disk_full() -> StorageFailed:
    return StorageFailed(Path("money.db"), OSError("database or disk is full"))


class Node:
    """A node whose model runs when it is let, and the requests that it is given."""

    def __init__(self, host: TestHost, held: Held) -> None:
        self.host, self.held = host, held

    async def open(self, text: str = "hello world", **facts: Any) -> Exchange:
        return await self.host.host.processor.open(asks(text, **facts), None, {})

    async def entry(self) -> dict[str, Any]:
        """The one entry that there is."""
        [entry] = await settled(self.host)
        return entry

    @property
    def live(self) -> int:
        [deployment] = self.host.host.deployments.all()
        return sum(replica.engine.live for replica in deployment.replicas)


@asynccontextmanager
async def node(*plugins: object, held: Held | None = None, **spec: Any) -> AsyncIterator[Node]:
    held = held or Held()
    model = msgspec.structs.replace(HELD_MODEL, **spec)
    async with make_host(plugins=[held, *plugins], models={"m": model}) as host:
        try:
            yield Node(host, held)
        finally:
            held.may_load.set()
            held.go()


# -- every exit -----------------------------------------------------------------------------------------------------


async def test_an_answer_is_booked_once_with_its_tokens_and_its_price() -> None:
    async with node() as one:
        one.held.go()
        exchange = await one.open()
        text = await read_all(exchange)
        exchange.leave()
        exchange.leave()
        entry = await one.entry()

    assert text == fake_words("hello world", 4)
    assert entry["outcome"] == "answered"
    assert entry["tokens"] == {"fresh_input": 2, "cached_input": 0, "output": 4}
    assert entry["amount_nano"] == 2 * 100 + 4 * 400
    assert entry["price_version"] == "m/1"


async def test_an_engine_failure_before_the_first_token_costs_nothing() -> None:
    held = Held(fails=lambda seq_id, at: EngineFailed("no") if seq_id > 1 else None)
    async with node(held=held) as one:
        one.held.go()
        exchange = await one.open()
        with pytest.raises(EngineFailed, match="no"):
            await read_all(exchange)
        entry = await one.entry()

    assert (entry["outcome"], entry["code"], entry["amount_nano"]) == ("failed", "engine_failed", 0)


async def test_an_engine_failure_in_the_middle_brings_the_text_so_far_then_the_error() -> None:
    held = Held(fails=lambda seq_id, at: EngineFailed("no") if at == 4 else None)
    async with node(held=held) as one:
        one.held.go()
        exchange, text = await one.open(), ""
        with pytest.raises(EngineFailed):
            while fresh := await exchange.read():
                text += "".join(delta.text for delta in fresh)
        entry = await one.entry()

    assert text == fake_words("hello world", 2)
    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 0)
    assert entry["tokens"]["output"] == 2


async def test_one_of_several_choices_failing_fails_the_request_and_stops_the_others() -> None:
    held = Held(fails=lambda seq_id, at: EngineFailed("no") if seq_id == 3 and at == 3 else None)
    async with node(held=held) as one:
        one.held.go()
        exchange = await one.open(n=3, max_tokens=100_000)
        with pytest.raises(EngineFailed):
            await read_all(exchange)
        entry = await one.entry()
        assert one.live == 0

    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 0)


async def test_a_reader_who_leaves_before_the_first_token_stops_the_sequence() -> None:
    async with node() as one:
        exchange = await one.open(max_tokens=100_000)
        exchange.leave()
        one.held.go(2)
        entry = await one.entry()
        assert one.live == 0

    assert entry["outcome"] == "cancelled"
    # Whether the prompt had been computed when he was seen to leave is a matter of luck.
    tokens = entry["tokens"]
    assert (tokens["fresh_input"], tokens["output"]) in ((0, 0), (2, 0), (2, 1))
    assert entry["amount_nano"] == tokens["fresh_input"] * 100 + tokens["output"] * 400


async def test_a_reader_who_leaves_in_the_middle_pays_for_what_was_made() -> None:
    async with node() as one:
        exchange = await one.open(max_tokens=100_000)
        one.held.go(3)
        await until(lambda: len(exchange._reader._stream) == 3)
        exchange.leave()
        one.held.go(2)
        entry = await one.entry()
        assert one.live == 0

    assert entry["outcome"] == "cancelled"
    assert 3 <= entry["tokens"]["output"] <= 5
    assert entry["amount_nano"] == 2 * 100 + entry["tokens"]["output"] * 400


async def test_a_reader_who_leaves_after_the_end_changes_nothing() -> None:
    async with node() as one:
        one.held.go()
        exchange = await one.open()
        await until(lambda: one.host.host.processor.in_flight == 0)
        exchange.leave()
        entry = await one.entry()

    assert (entry["outcome"], entry["tokens"]["output"]) == ("answered", 4)


async def test_a_request_cancelled_while_its_model_loads_is_booked_and_the_load_goes_on() -> None:
    held = Held()
    held.may_load.clear()
    async with node(held=held, load="request") as one:
        opening = asyncio.create_task(one.open())
        await until(lambda: held.loads)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        entry = await one.entry()
        assert one.host.host.processor.in_flight == 0
        held.may_load.set()
        held.go()
        await read_all(await one.open())

    assert (entry["outcome"], entry["amount_nano"]) == ("cancelled", 0)
    assert held.loads == 1


async def test_a_request_of_which_only_a_part_can_be_queued_is_refused_whole() -> None:
    async with node(max_queue=1, max_batch_size=1) as one:
        with pytest.raises(Overloaded, match="which is all it takes"):
            await one.open(n=3)
        one.held.go()
        entry = await one.entry()
        await until(lambda: one.live == 0)
        text = await read_all(await one.open())

    assert (entry["outcome"], entry["code"]) == ("refused", "server_is_overloaded")
    assert (entry["tokens"]["output"], entry["amount_nano"]) == (0, 0)
    assert text == fake_words("hello world", 4)


async def test_a_bug_in_a_stage_is_booked_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node() as one:
        one.held.go()
        limiter = one.host.host.processor._stages.limit._limiter

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(limiter, "admit", fail)
        with pytest.raises(ZeroDivisionError):
            await one.open()
        entry = await one.entry()

    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 0)


# -- the end of an answer and its entry -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_the_end_of_an_answer_is_not_seen_before_its_entry_is_on_disk(stream: bool) -> None:
    async with node() as one:
        one.held.go()
        with slow_ledger(one.host) as ledger:
            exchange = await one.open(stream=stream)
            await until(lambda: ledger.waiting)
            seen = []
            while fresh := await exchange.read(0.02):
                seen += fresh
            assert fresh is None  # silence, not the end
            assert [delta.finish_reason for delta in seen] == [None] * 3
            assert one.host.host.processor.in_flight == 1
            ledger.let_go()
            last = await exchange.read()
            assert last is not None and last[-1].finish_reason == "length"
            assert await exchange.read() == []
        entry = await one.entry()

    assert entry["outcome"] == "answered"


async def test_over_http_neither_finish_reason_nor_done_comes_before_the_entry() -> None:
    async with node() as one:
        one.held.go()
        with slow_ledger(one.host) as ledger:
            body = {"model": "m", "prompt": "hello world", "max_tokens": 4, "stream": True}
            post = asyncio.create_task(one.host.client.post("/v1/completions", json=body))
            await until(lambda: ledger.waiting)
            await asyncio.sleep(0)
            assert not post.done()
            ledger.let_go()
            answer = await post

    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_that_the_disk_refuses_is_whole_and_recorded_later(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmhost.cost.under_way.RETRY_S", 0.0)
    async with node() as one:
        one.held.go()
        with slow_ledger(one.host) as ledger:
            body = {"model": "m", "prompt": "hello world", "max_tokens": 4, "stream": stream}
            post = asyncio.create_task(one.host.client.post("/v1/completions", json=body))
            await until(lambda: ledger.waiting)
            ledger.raises = disk_full()
            ledger.fail(disk_full())
            answer = await post
        settlements = one.host.host.books.settlements
        await until(lambda: settlements.unsettled == 0)
        entry = await one.entry()
        assert settlements.under_way == 0

    assert answer.status_code == 200
    assert '"finish_reason":"length"' in answer.text
    assert (entry["outcome"], entry["amount_nano"]) == ("answered", 2 * 100 + 4 * 400)


async def test_an_answer_for_which_the_ledger_has_no_room_is_recorded_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llmhost.cost.under_way.RETRY_S", 0.0)
    async with node() as one:
        one.held.go()
        with slow_ledger(one.host) as ledger:
            ledger.raises = Overloaded("10000 records are waiting", retry_after_s=1)
            text = await read_all(await one.open())
        await until(lambda: one.host.host.books.settlements.unsettled == 0)
        entry = await one.entry()

    assert text == fake_words("hello world", 4)
    assert entry["outcome"] == "answered"


async def test_an_answer_that_can_be_recorded_nowhere_ends_in_an_error_and_is_nobodys_money(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[RequestEnded] = []

    class Observer:
        @hookimpl
        def observe(self, event: object) -> None:
            if isinstance(event, RequestEnded):
                told.append(event)

    def broken() -> None:
        raise StorageFailed(Path("under_way.journal"), OSError("Input/output error"))

    async with node(Observer()) as one:
        one.held.go()
        monkeypatch.setattr(one.host.host.books.settlements._journal, "flush", broken)
        with slow_ledger(one.host) as ledger:
            exchange = await one.open()
            await until(lambda: ledger.waiting)
            assert told == []
            ledger.fail(disk_full())
            with pytest.raises(StorageFailed):
                await read_all(exchange)
        await one.host.host.observers.close()
        metrics = (await one.host.client.get("/metrics")).text

    [event] = told
    assert (event.outcome, event.code, event.amount_nano) == ("failed", "storage_failed", 0)
    assert 'llmhost_amount_nano_total{model_name="m@1"} 0.0' in metrics
    assert "vllm:request_success_total{" not in metrics


async def test_while_the_ledger_can_not_be_written_nothing_is_let_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node() as one:
        monkeypatch.setattr(one.host.host.books.ledger._writer, "_health", disk_full())
        with pytest.raises(Overloaded, match="can't write its ledger"):
            await one.open()
        monkeypatch.undo()
        one.held.go()
        assert await read_all(await one.open())


async def test_a_broken_off_answer_can_be_paid_for_as_far_as_it_came() -> None:
    held = Held(fails=lambda seq_id, at: EngineFailed("no") if at == 4 else None)
    settings = Settings(billing=BillingSettings(failed_answers="delivered"))
    async with make_host(plugins=[held], models={"m": HELD_MODEL}, settings=settings) as host:
        held.go()
        with pytest.raises(EngineFailed):
            await read_all(await host.host.processor.open(asks(), None, {}))
        [entry] = await settled(host)

    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 2 * 100 + 2 * 400)


@pytest.mark.parametrize("error", [disk_full(), Overloaded("full")])
async def test_a_refusal_is_heard_even_when_it_can_not_be_recorded(error: LlmhostError) -> None:
    async with node() as one:
        with slow_ledger(one.host) as ledger:
            if isinstance(error, Overloaded):
                ledger.raises = error
            with pytest.raises(LlmhostError, match="does not exist here"):
                await one.open(model="nobody")
            ledger.fail(error)
            await asyncio.sleep(0)


# -- money ----------------------------------------------------------------------------------------------------------


async def test_choices_of_one_prompt_pay_for_it_once_and_several_prompts_for_each() -> None:
    async with node() as one:
        one.held.go()
        await read_all(await one.open(n=3))
        await read_all(await one.open(prompts=("one", "two words"), n=2, max_tokens=5))
        first, second = await settled(one.host)

    assert first["tokens"] == {"fresh_input": 2, "cached_input": 0, "output": 12}
    assert second["tokens"] == {"fresh_input": 3, "cached_input": 0, "output": 20}


async def test_a_price_that_changes_while_a_request_runs_does_not_change_the_request() -> None:
    async with node() as one:
        exchange = await one.open()
        await one.host.host.books.prices.set("m", FREE)
        one.held.go()
        await read_all(exchange)
        await read_all(await one.open())
        first, second = await settled(one.host)

    assert (first["amount_nano"], first["price_version"]) == (1800, "m/1")
    assert (second["amount_nano"], second["price_version"]) == (0, "m/2")


async def test_a_plugins_quote_is_asked_once_with_the_time_of_arrival_and_named() -> None:
    class Half:
        def __init__(self) -> None:
            self.asked: list[tuple[str, str, int]] = []

        @hookimpl
        def quote_price(self, request: Any, price: Price, now: Any) -> Price:
            self.asked.append((request.model, now.isoformat(), price.output))
            return price.times(1, 2)

    plugin = Half()
    clock = at("2026-01-10T03:00Z")
    models = {"fake": msgspec.structs.replace(FAKE_MODEL, aliases=("alias",))}
    async with make_host(plugins=[plugin], models=models, clock=clock) as host:
        await host.say("hello", model="alias", max_tokens=8)
        [entry] = await settled(host)

    assert plugin.asked == [("fake", "2026-01-10T03:00:00+00:00", 400_000_000)]
    assert entry["price_version"] == "fake+Half/1"
    tokens = entry["tokens"]
    assert entry["amount_nano"] == tokens["fresh_input"] * 50 + tokens["output"] * 200


async def test_a_model_without_a_price_is_metered_and_free() -> None:
    async with node(price=None) as one:
        one.held.go()
        await read_all(await one.open())
        entry = await one.entry()

    assert (entry["amount_nano"], entry["price_version"]) == (0, None)
    assert entry["tokens"]["output"] == 4


# -- how much fits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Kind.COMPLETION, Kind.CHAT])
async def test_prompt_and_answer_may_fill_the_model_to_the_last_token(kind: Kind) -> None:
    facts: dict[str, Any] = {"kind": kind, "prompts": ("one two three",)}
    if kind is Kind.CHAT:  # "user: one" and "assistant:" are three words
        facts = {"kind": kind, "prompts": (), "messages": ({"role": "user", "content": "one"},)}
    async with node(max_sequence_length=8) as one:
        one.held.go()
        for asked in (5, None):
            await read_all(await one.open(**facts, max_tokens=asked))
        first, second = await settled(one.host)
        with pytest.raises(LlmhostError) as refused:
            await one.open(**facts, max_tokens=6)

    assert first["tokens"] == second["tokens"]
    assert first["tokens"] == {"fresh_input": 3, "cached_input": 0, "output": 5}
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == ("messages" if kind is Kind.CHAT else "prompt")
    assert "max_tokens to 5 or less" in refused.value.message


@pytest.mark.parametrize(("words", "fits"), [(7, True), (8, False), (9, False)])
async def test_a_prompt_must_leave_room_for_one_token(words: int, fits: bool) -> None:
    async with node(max_sequence_length=8) as one:
        one.held.go()
        if fits:
            await read_all(await one.open("w " * words, max_tokens=None))
            assert (await one.entry())["tokens"]["output"] == 1
            return
        with pytest.raises(LlmhostError) as refused:
            await one.open("w " * words, max_tokens=None)

    assert refused.value.code == "context_length_exceeded"
    assert f"The prompt is {words} tokens; this model holds 8." in refused.value.message


async def test_the_longest_of_several_prompts_counts_and_each_gets_its_own_room() -> None:
    async with node(max_sequence_length=8) as one:
        one.held.go()
        await read_all(await one.open(prompts=("a b c d e", "a"), max_tokens=None))
        entry = await one.entry()

    assert entry["tokens"] == {"fresh_input": 6, "cached_input": 0, "output": 3 + 7}


async def test_a_model_with_less_kv_room_than_its_headers_promise_refuses_at_the_door() -> None:
    async with node(load="request", kv_memory="128") as one:  # two blocks of 16 tokens
        one.held.go()
        with pytest.raises(LlmhostError) as refused:
            await one.open("w " * 30, max_tokens=3)
        await read_all(await one.open("w " * 30, max_tokens=2))

    assert refused.value.code == "context_length_exceeded"
    assert "this model holds 32" in refused.value.message


async def test_token_ids_are_taken_as_they_are_and_unknown_ones_refused() -> None:
    async with node() as one:
        one.held.go()
        text = await read_all(await one.open(prompts=((1, 2, 3), (4095,))))
        for prompt in ((4096,), (-1,), ()):
            with pytest.raises(LlmhostError) as refused:
                await one.open(prompts=(prompt,))
            assert (refused.value.code, refused.value.param) == ("invalid_value", "prompt")
        entry = (await settled(one.host))[0]

    assert len(text.split()) >= 7
    assert entry["tokens"] == {"fresh_input": 4, "cached_input": 0, "output": 8}


async def test_a_prompt_without_a_token_is_refused() -> None:
    async with node() as one:
        with pytest.raises(LlmhostError, match="The prompt is empty"):
            await one.open("  ")


# -- shutting down --------------------------------------------------------------------------------------------------


async def test_a_drain_refuses_what_comes_and_lets_what_runs_go_on() -> None:
    async with node() as one:
        running = await one.open()
        drain = asyncio.create_task(one.host.host.drain(30))
        await until(lambda: one.host.host.is_draining)
        with pytest.raises(Overloaded, match="shutting down") as refused:
            await one.open()
        answer = await one.host.client.post("/v1/completions", json={"model": "m", "prompt": "x"})
        ready = await one.host.client.get("/ready")
        one.held.go()
        text = await read_all(running)
        cut = await drain

    assert refused.value.retry_after_s == 1
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
    assert text == fake_words("hello world", 4)
    assert cut == 0


async def test_a_stage_that_breaks_at_the_end_of_an_answer_costs_nobody_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node() as one:
        endings = one.host.host.processor._endings
        exchanges = [await one.open(text) for text in ("a", "b", "c")]
        keep, turns = endings._keep, list[str]()

        def failing(context: Any) -> None:
            turns.append(context.request.request_id)
            if context is exchanges[0].context:
                raise RuntimeError("broken")
            keep(context)

        monkeypatch.setattr(endings, "_keep", failing)
        one.held.go()
        await asyncio.gather(*map(read_all, exchanges))
        assert len(turns) == 3
        assert "request.not_settled" in caplog.text
        entries = [entry["request_id"] for entry in one.host.entries()]
        assert sorted(entries) == sorted(turns)


async def test_one_that_can_not_be_booked_hears_of_it_holds_nothing_and_costs_no_other_its_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node() as one:
        processor = one.host.host.processor
        lost, kept, other = [await one.open(text) for text in ("a", "b", "c")]
        settle = processor._stages.bill.settle
        closed = settle.closed

        def failing(context: Any, **facts: Any) -> Any:
            if context is lost.context:
                raise RuntimeError("broken")
            return closed(context, **facts)

        monkeypatch.setattr(settle, "closed", failing)
        one.held.go()
        with pytest.raises(LlmhostError, match="could not be recorded"):
            await read_all(lost)
        await asyncio.gather(read_all(kept), read_all(other))
        assert "request.not_settled" in caplog.text
        entries = {entry["request_id"] for entry in one.host.entries()}
        assert entries == {each.context.request.request_id for each in (kept, other)}
        assert processor.in_flight == 0
        assert one.host.host.books.settlements.under_way == 0


async def test_a_refusal_that_can_not_be_booked_holds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node(max_queue=1, max_batch_size=1) as one:
        settle = one.host.host.processor._stages.bill.settle

        def failing(*_: Any, **__: Any) -> None:
            raise RuntimeError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(settle, "closed", failing)
            with pytest.raises(RuntimeError, match="broken"):
                await one.open(n=3)
        assert one.host.host.books.settlements.under_way == 0


async def test_one_whose_answer_can_not_be_let_out_keeps_no_other_from_its_reader(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node() as one:
        lost, kept, other = [await one.open(text) for text in ("a", "b", "c")]
        release = Generation._release

        def failing(generation: Generation, *args: Any) -> None:
            if generation.context is lost.context:
                raise RuntimeError("broken")
            release(generation, *args)

        monkeypatch.setattr(Generation, "_release", failing)
        one.held.go()
        await asyncio.gather(read_all(kept), read_all(other))
        assert "request.not_let_out" in caplog.text
        await until(lambda: len(one.host.entries()) == 3)
        processor = one.host.host.processor
        processor._live.discard(next(run for run in processor._live if run.context is lost.context))


@pytest.mark.parametrize("broken", ["cache", "metrics", "observer"])
async def test_of_answers_that_are_told_together_each_is_told_of_though_one_can_not_be(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, list[str]] = {"cache": [], "metrics": [], "observer": []}
    caplog.set_level(logging.INFO, "llmhost.request")

    def hears(who: str, ended: Any) -> None:
        told[who].append(getattr(ended, "request", ended).request_id)
        if who == broken and len(told[who]) == 1:
            raise RuntimeError("broken")

    async with node() as one:
        stages = one.host.host.processor._stages
        exchanges = [await one.open(text) for text in ("a", "b", "c")]
        names = sorted(each.context.request.request_id for each in exchanges)
        monkeypatch.setattr(stages.store, "count", partial(hears, "cache"))
        monkeypatch.setattr(
            stages.log._metrics, "request_ended", lambda event, **_: hears("metrics", event)
        )
        monkeypatch.setattr(stages.log, "_observers", (partial(hears, "observer"),))
        one.held.go()
        await asyncio.gather(*map(read_all, exchanges))
        await until(lambda: len(told["observer"]) == 3)
    assert {who: sorted(ids) for who, ids in told.items()} == dict.fromkeys(told, names)
    said = [record.getMessage() for record in caplog.records]
    assert said.count("request.not_told") == 1
    assert said.count("request.answered") == 3
