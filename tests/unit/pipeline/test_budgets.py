"""Requests under budgets, through a whole node: what is held at the door, how far an answer goes, and what is given
back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.pipeline.node import HELD_MODEL, Held, asks, read_all, settled, until

from llmhost.config.schema import Settings
from llmhost.config.schema.money import BillingSettings
from llmhost.core.errors import EngineFailed, ModelNotPriced, QuotaExhausted
from llmhost.core.output import Outcome
from llmhost.pipeline.endings import TOGETHER
from llmhost.pipeline.exchange import Exchange
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import TestHost, fake_words, make_host

PROMPT_NANO, TOKEN_NANO = 200, 400
"""Of "hello world", and of each token of its answer."""


class Node:
    """A node whose callers have a budget, and whose model runs when it is let."""

    def __init__(self, host: TestHost, held: Held) -> None:
        self.host, self.held = host, held

    async def budget(self, nano: int, **facts: Any) -> Budget:
        keys = self.host.host.books.keys
        if not keys.list_orgs():
            await keys.create_org("local")
        wanted = {"id": "", "org": "local", "period": Period.TOTAL, "limit_nano": nano, **facts}
        return await self.host.host.books.budgets.create(Budget(**wanted), who="test")

    async def open(self, text: str = "hello world", **facts: Any) -> Exchange:
        return await self.host.host.processor.open(asks(text, **facts), None, {})

    @property
    def holds(self) -> list[int]:
        accounts = self.host.host.books.budgets.accounts
        return [hold.held_nano for hold in accounts.live_holds()]

    def spent(self, budget: Budget) -> int:
        account = self.host.host.books.budgets.accounts.account(budget)
        assert account is not None
        return account.standing(self.host.host.clock.utc_ns()).spent


@asynccontextmanager
async def node(
    *, slice_tokens: int = 8, data_dir: Path | None = None, held: Held | None = None, **spec: Any
) -> AsyncIterator[Node]:
    held = held or Held()
    model = msgspec.structs.replace(HELD_MODEL, **spec)
    settings = Settings(billing=BillingSettings(slice_tokens=slice_tokens))
    async with make_host(
        plugins=[held], models={"m": model}, settings=settings, data_dir=data_dir
    ) as host:
        try:
            yield Node(host, held)
        finally:
            held.go()


async def test_an_answer_within_its_budget_is_as_without_one() -> None:
    async with node() as one:
        budget = await one.budget(10**6)
        one.held.go()
        exchange = await one.open(max_tokens=40)
        assert await read_all(exchange) == fake_words("hello world", 40)
        [entry] = await settled(one.host)
        assert one.spent(budget) == entry["amount_nano"] == PROMPT_NANO + 40 * TOKEN_NANO
        assert one.holds == []

    assert exchange.context.stop is None
    assert exchange.context.budget_remaining_nano == 10**6 - entry["amount_nano"]


async def test_what_is_held_at_first_is_the_prompt_and_a_slice_of_each_choice() -> None:
    async with node() as one:
        await one.budget(10**6)
        await one.open(max_tokens=40)
        assert one.holds == [PROMPT_NANO + 8 * TOKEN_NANO]
        await one.open(max_tokens=5, n=3)
        assert one.holds[1:] == [PROMPT_NANO + 15 * TOKEN_NANO]


async def test_a_request_that_waits_for_its_model_keeps_its_hold() -> None:
    """A model may be fetched for hours; a hold that was taken for left behind would cut the answer."""
    async with node(load="request") as one:
        host = one.host.host
        await one.budget(10**6)
        opening = asyncio.create_task(one.open(max_tokens=40))
        await until(lambda: bool(one.holds))
        long_after_ns = host.clock.utc_ns() + 10**15
        left = host.books.budgets.accounts.sweep(
            long_after_ns, lambda hold: host.processor.has(hold.request_id)
        )
        one.held.go()
        assert left == []
        assert await read_all(await opening) == fake_words("hello world", 40)


async def test_a_prompt_with_a_slice_that_does_not_fit_is_refused_and_holds_nothing() -> None:
    async with node() as one:
        await one.budget(PROMPT_NANO + 8 * TOKEN_NANO - 1)
        with pytest.raises(QuotaExhausted):
            await one.open(max_tokens=40)
        assert one.holds == []
        one.held.go()
        assert await read_all(await one.open(max_tokens=7))
        refused, answered = await settled(one.host)

    assert (refused["outcome"], refused["code"]) == ("refused", "organization_spend_limit_exceeded")
    assert answered["outcome"] == "answered"


async def test_an_answer_ends_with_the_last_token_that_its_budget_affords() -> None:
    async with node() as one:
        budget = await one.budget(PROMPT_NANO + 21 * TOKEN_NANO + 399)
        one.held.go()
        exchange = await one.open(max_tokens=100)
        assert await read_all(exchange) == fake_words("hello world", 21)
        [entry] = await settled(one.host)
        assert one.spent(budget) == PROMPT_NANO + 21 * TOKEN_NANO

    assert (entry["outcome"], entry["tokens"]["output"]) == ("answered", 21)
    assert (exchange.context.finish_reason, exchange.context.stop) == ("length", "budget")
    assert exchange.context.budget_remaining_nano == 399


async def test_money_that_another_request_gives_back_lets_an_answer_go_on() -> None:
    async with node() as one:
        await one.budget(2 * PROMPT_NANO + 24 * TOKEN_NANO)
        long = await one.open(max_tokens=12)
        short = await one.open("short one", max_tokens=8)
        third = await one.open("held until it leaves", max_tokens=1)
        third.leave()
        one.held.go()
        assert await read_all(long) == fake_words("hello world", 12)
        assert await read_all(short) == fake_words("short one", 8)

    assert long.context.stop is None


async def test_a_crowd_spends_all_of_its_budget_and_not_a_nano_more() -> None:
    limit_nano = 40 * (PROMPT_NANO + 60 * TOKEN_NANO)
    async with node(max_batch_size=64) as one:
        budget = await one.budget(limit_nano)
        one.held.go()

        async def ask() -> str:
            try:
                exchange = await one.open(max_tokens=60)
            except QuotaExhausted:
                return "refused"
            text = await read_all(exchange)
            assert exchange.context.stop == ("budget" if len(text.split()) < 60 else None)
            return "answered"

        ends = await asyncio.gather(*(ask() for _ in range(500)))
        entries = await settled(one.host)
        assert one.holds == []
        spent = one.spent(budget)

    assert spent == sum(entry["amount_nano"] for entry in entries)
    assert limit_nano * 95 // 100 <= spent <= limit_nano
    assert {"refused", "answered"} == set(ends)


async def test_a_reader_who_leaves_gives_back_what_was_not_made() -> None:
    async with node() as one:
        budget = await one.budget(10**6)
        exchange = await one.open(max_tokens=100_000)
        one.held.go(3)
        await until(lambda: len(exchange._reader._stream) == 3)
        exchange.leave()
        one.held.go(2)
        [entry] = await settled(one.host)
        assert one.spent(budget) == entry["amount_nano"] > 0
        assert one.holds == []


async def test_a_failure_gives_everything_back() -> None:
    held = Held(fails=lambda seq_id, at: EngineFailed("no") if at == 4 else None)
    async with node(held=held) as one:
        budget = await one.budget(10**6)
        held.go()
        with pytest.raises(EngineFailed):
            await read_all(await one.open(max_tokens=40))
        assert one.spent(budget) == 0
        assert one.holds == []


async def test_a_model_without_a_price_is_not_free_under_a_budget() -> None:
    async with node(price=None) as one:
        one.held.go()
        assert await read_all(await one.open())
        await one.budget(10**6)
        with pytest.raises(ModelNotPriced):
            await one.open()


async def test_a_budget_that_is_made_while_a_request_runs_counts_it_once() -> None:
    async with node() as one:
        exchange = await one.open(max_tokens=4)
        budget = await one.budget(10**6)
        one.held.go()
        await read_all(exchange)
        await settled(one.host)
        assert one.spent(budget) == PROMPT_NANO + 4 * TOKEN_NANO


async def test_nothing_is_forgotten_over_a_restart(tmp_path: Path) -> None:
    async with node(data_dir=tmp_path) as one:
        budget = await one.budget(2 * (PROMPT_NANO + 4 * TOKEN_NANO))
        one.held.go()
        await read_all(await one.open(max_tokens=4))
    async with node(data_dir=tmp_path) as one:
        assert one.spent(budget) == PROMPT_NANO + 4 * TOKEN_NANO
        one.held.go()
        await read_all(await one.open(max_tokens=4))
        with pytest.raises(QuotaExhausted):
            await one.open(max_tokens=1)


async def test_vectors_hold_their_texts_and_nothing_else() -> None:
    facts = {"options": {"task": "embed"}, "engine": "fake"}
    async with node(**facts) as one:
        await one.budget(PROMPT_NANO)
        body = {"model": "m", "input": "hello world"}
        first = await one.host.client.post("/v1/embeddings", json=body)
        second = await one.host.client.post("/v1/embeddings", json=body)

    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["error"]["code"] == "organization_spend_limit_exceeded"
    assert second.headers["x-should-retry"] == "false"


async def test_the_entry_of_an_answer_that_its_budget_ended_says_so() -> None:
    async with node() as one:
        await one.budget(PROMPT_NANO + 10 * TOKEN_NANO)
        one.held.go()
        exchange = await one.open(max_tokens=100)
        await read_all(exchange)

    assert exchange.context.outcome is Outcome.ANSWERED


async def booked(monkeypatch: pytest.MonkeyPatch, *, together: bool) -> tuple[Any, ...]:
    """What is in the books after 40 requests that end in one moment: answered, failed, and left."""
    held = Held(
        fails=lambda seq_id, at: EngineFailed("no") if seq_id % 5 == 0 and at == 3 else None
    )
    sizes: list[int] = []
    async with node(held=held) as one:
        budget = await one.budget(10**9)
        processor, ledger = one.host.host.processor, one.host.host.books.ledger
        settle = ledger.settle_together
        monkeypatch.setattr(
            *(ledger, "settle_together"),
            lambda entries, hear: (sizes.append(len(entries)), settle(entries, hear)),
        )
        if not together:
            monkeypatch.setattr(processor._endings, "settle_soon", processor._endings.settle)
        texts = [f"word {'and ' * (number % 3)}word" for number in range(40)]
        running = [await one.open(text, max_tokens=3) for text in texts]
        for exchange in running[::7]:
            exchange.leave()
        one.held.go()
        stayed = [exchange for exchange in running if exchange not in running[::7]]
        await asyncio.gather(*map(read_all, stayed), return_exceptions=True)
        entries = await settled(one.host)
        spent, drift, holds = one.spent(budget), ledger.drift(), one.holds
        assert ledger.verify().is_intact
    own = {"node_id", "seq", "hash", "prev_hash", "request_id", "utc_ns", "engine_ns"}
    rows = sorted(
        str({name: said for name, said in entry.items() if name not in own})
        for entry in entries
        if entry["outcome"] != "cancelled"  # how far those came that left is chance
    )
    assert (max(sizes, default=0) > 1) is together
    assert max(sizes, default=0) <= TOGETHER
    assert [entry["outcome"] for entry in entries].count("cancelled") == 6
    assert spent == sum(entry["amount_nano"] for entry in entries)
    return rows, drift, holds


async def test_the_books_say_the_same_whether_or_not_requests_are_settled_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        together = await booked(patch, together=True)
    assert together == await booked(monkeypatch, together=False)
    rows, drift, holds = together
    assert (len(rows), any(drift.values()), holds) == (34, False, [])
    assert 0 < sum("engine_failed" in row for row in rows) < 10
