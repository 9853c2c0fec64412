"""Rating a period again: to the nano-dollar, once, and without editing anything."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cost.test_ledger import NOON_NS, Books, entry
from tests.unit.cost.test_sums import ledger_of
from tests.unit.cost.told import used

from llmhost.cost.entries import Entry
from llmhost.cost.prices import PriceBook
from llmhost.cost.pricing import Price, rated_nano
from llmhost.cost.rerate import PAGE_ROWS, Rerater, Rerating, differences, rated
from llmhost.cost.shares import Share

CHEAP = Price(version="tiny/2", input_nano=0, cached_input_nano=0, output_nano=1_000_000)
"""20 output tokens cost 20 nano-dollars."""
DEAR = replace(CHEAP, version="tiny/3", output_nano=9_000_000)

Rerate = Callable[..., Any]


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path / "money.db")
    yield books
    books.close()


def rerater(books: Books, heard: list[Entry] | None = None) -> Rerater:
    told = [] if heard is None else heard
    return Rerater(books.writer, books.reader, node_id="node-1", on_applied=told.append)


def wanted(rerate_id: str = "r1", price: Price = CHEAP, **changes: Any) -> Rerating:
    made = Rerating(
        rerate_id=rerate_id, model="tiny", since_ns=0, until_ns=2 * NOON_NS, price=price
    )
    return replace(made, **changes)


async def test_a_trial_says_what_would_change_and_changes_nothing(books: Books) -> None:
    books.record(*(entry(i) for i in range(1, 4)), entry(9, org="beta", amount_nano=20))
    acme, beta = await rerater(books).try_out(wanted())
    assert (acme.org, acme.requests, acme.changed) == ("acme", 3, 3)
    assert (acme.before_nano, acme.after_nano, acme.difference_nano) == (210, 60, -150)
    assert (beta.requests, beta.changed, beta.difference_nano) == (1, 0, 0)
    assert len(list(books.ledger.export())) == 4


async def test_entries_make_up_the_difference_where_and_when_the_use_was(books: Books) -> None:
    heard: list[Entry] = []
    books.record(entry(1, run_id="r", team="red", adapter="law"), entry(2))
    await rerater(books, heard).apply(wanted())
    made = list(books.ledger.export())[2]
    assert (made["kind"], made["request_id"], made["amount_nano"]) == ("rerate:r1", "req_1", -50)
    assert (made["org"], made["team"], made["key_id"]) == ("acme", "red", "abc")
    assert (made["run_id"], made["adapter"], made["utc_ns"]) == ("r", "law", NOON_NS + 1)
    assert made["price_version"] == "tiny/2"
    assert set(made["tokens"].values()) == {0}
    assert books.ledger.spent_nano("org", "acme") == 40
    assert books.ledger.spent_nano("run", ("acme", "red", "abc", "r")) == 20
    assert books.ledger.audit().is_intact
    usage = used(books.reader)["acme"]
    assert (usage["requests"], usage["output_tokens"], usage["amount_nano"]) == (2, 40, 40)
    assert [each.amount_nano for each in heard] == [-50, -50]


async def test_what_was_applied_is_not_applied_again(books: Books) -> None:
    books.record(*(entry(i) for i in range(1, 4)))
    first = await rerater(books).apply(wanted())
    again = await rerater(books).apply(wanted())
    other = await rerater(books).apply(wanted("r2"))
    as_another_price = await rerater(books).apply(wanted("r1", DEAR))
    assert [each[0].changed for each in (first, again, other, as_another_price)] == [3, 0, 0, 0]
    assert len(list(books.ledger.export())) == 6


async def test_rating_back_restores_what_was(books: Books) -> None:
    books.record(entry(1, amount_nano=180))
    for rerate_id, price in (("a", CHEAP), ("b", DEAR), ("c", CHEAP)):
        await rerater(books).apply(wanted(rerate_id, price))
    assert [row["amount_nano"] for row in books.ledger.export()] == [180, -160, 160, -160]
    assert books.ledger.spent_nano("org", "acme") == 20


async def test_only_what_was_paid_for_of_that_model_time_and_organisation(books: Books) -> None:
    books.record(
        entry(1),
        entry(2, org="beta"),
        entry(3, model="tiny-embed@1"),
        entry(4, model="tiny@2"),
        entry(5, outcome="failed", amount_nano=0),
        entry(6, outcome="refused", amount_nano=0, output_tokens=0),
        entry(7, outcome="cancelled"),
        entry(8, utc_ns=NOON_NS + 1_000),
        entry(9, kind="correction"),
        Entry.transfer(
            "g",
            kind="grant",
            utc_ns=NOON_NS,
            org="acme",
            debit="cash",
            credit="org:acme",
            amount_nano=5,
        ),
    )
    when = {"since_ns": NOON_NS, "until_ns": NOON_NS + 1_000}
    await rerater(books).apply(wanted(org="acme", **when))
    await rerater(books).apply(wanted("r2", model="tiny@2", price=DEAR, **when))
    made = [(row["kind"], row["request_id"]) for row in books.ledger.export()][10:]
    assert made == [
        ("rerate:r1", "req_1"),
        ("rerate:r1", "req_4"),
        ("rerate:r1", "req_7"),
        ("rerate:r2", "req_4"),
    ]


async def test_many_are_rated_again_a_page_at_a_time_and_a_cut_one_goes_on(books: Books) -> None:
    count = 2 * PAGE_ROWS + 7
    books.record(*(entry(i, utc_ns=NOON_NS + i // 3) for i in range(1, count + 1)))
    half = wanted(until_ns=NOON_NS + count // 5)
    await rerater(books).apply(half)
    assert 0 < len(list(books.ledger.export())) - count < count
    (done,) = await rerater(books).apply(wanted())
    assert (done.requests, done.after_nano) == (count, 20 * count)
    assert books.ledger.spent_nano("org", "acme") == 20 * count
    assert len(list(books.ledger.export())) == 2 * count


async def test_requests_that_come_meanwhile_are_recorded_too(books: Books) -> None:
    books.record(*(entry(i) for i in range(1, 2_000)))
    rating = asyncio.ensure_future(rerater(books).apply(wanted(until_ns=NOON_NS + 2_000)))
    settled = [books.ledger.settle(entry(i)) for i in range(2_000, 2_100)]
    await asyncio.gather(rating, *settled)
    assert books.ledger.audit().is_intact
    assert books.ledger.spent_nano("org", "acme") == 1_999 * 20 + 100 * 70


def price_book(books: Books) -> PriceBook:
    return PriceBook(books.writer, books.reader, node_id="node-1", clock=books.clock)


async def changed(books: Books, **asked: Any) -> dict[str, int]:
    """By request, what rating all again takes back or adds."""
    before = len(list(books.ledger.export()))
    await rerater(books).apply(wanted(**asked))
    made = list(books.ledger.export())[before:]
    return {row["request_id"]: row["amount_nano"] for row in made}


async def test_lines_of_batches_and_kept_answers_pay_their_part_of_the_new_price_too(
    books: Books,
) -> None:
    prices = price_book(books)
    await prices.set("tiny", DEAR)
    half, free = (Share("tiny/1", Fraction(part)) for part in ("0.5", "0"))
    fee = Share("tiny/1", Fraction(0), fee_nano=3)
    line = await prices.for_batches("tiny", DEAR, half)
    hit = await prices.for_hits("tiny", DEAR, half)
    gift = await prices.for_hits("tiny", DEAR, free)
    flat = await prices.for_hits("tiny", DEAR, fee)
    kept_line = await prices.for_hits("tiny", line, Share(line.version, Fraction(1, 2)))
    books.record(
        entry(1, amount_nano=180),
        entry(2, amount_nano=90, price_version=line.version),
        entry(3, amount_nano=90, price_version=hit.version),
        entry(4, amount_nano=0, price_version=gift.version),
        entry(5, amount_nano=45, price_version=kept_line.version),
        entry(6, amount_nano=3, price_version=flat.version),
    )

    made = await changed(books)

    assert made == {"req_1": -160, "req_2": -80, "req_3": -80, "req_5": -40}
    assert await changed(books, rerate_id="r2", price=DEAR) == {
        i: -nano for i, nano in made.items()
    }


async def test_who_had_another_price_than_everybodys_is_rated_again_where_that_is_asked_for(
    books: Books,
) -> None:
    prices = price_book(books)
    await prices.set("tiny", DEAR)
    own = await prices.set("tiny", replace(DEAR, output_nano=5_000_000), org="acme")
    quote = await prices.quote("tiny", "night", replace(DEAR, output_nano=4_000_000))
    assert own.price is not None
    own_half = await prices.for_hits("tiny", own.price, Share(own.version, Fraction(1, 2)))
    books.record(
        entry(1, org="zoo", amount_nano=180),
        entry(2, amount_nano=100, price_version=own.version),
        entry(3, amount_nano=50, price_version=own_half.version),
        entry(4, amount_nano=80, price_version=quote.version),
    )

    assert await changed(books) == {"req_1": -160}
    assert await changed(books, rerate_id="r2", org="acme") == {"req_2": -80, "req_3": -40}
    assert await changed(books, rerate_id="r3", was=quote.version) == {"req_4": -60}
    assert await changed(books, rerate_id="r4", was="tiny/9") == {}


async def test_a_part_of_a_price_from_before_it_was_written_down_stays_what_it_was(
    books: Books,
) -> None:
    books.forge(
        "INSERT INTO prices (node_id, utc_ns, version, model, input_nano, cached_input_nano, output_nano,"
        " effective_from_ns, origin) VALUES ('n', 5, 'tiny+batch/1', 'tiny+batch', 0, 0, 4500000, 5, 'batch')"
    )
    books.record(entry(1, amount_nano=90, price_version="tiny+batch/1"))

    assert await changed(books) == {}
    assert await changed(books, rerate_id="r2", was="tiny+batch/1") == {"req_1": -70}


async def test_a_failed_answer_that_was_charged_is_rated_again(books: Books) -> None:
    books.record(entry(1, outcome="failed"), entry(2, outcome="failed", amount_nano=0))

    assert await changed(books) == {"req_1": -50}


def test_a_request_that_used_nothing_costs_nothing_at_any_price() -> None:
    price = replace(DEAR, request_nano=5)
    nothing = {"fresh_input_tokens": 0, "cached_input_tokens": 0, "output_tokens": 0}
    assert rated(entry(1, **nothing), price) == 0
    assert rated(entry(1), price) == rated_nano(price, fresh_input=6, cached_input=4, output=20)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 100)), max_size=9),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
)
def test_after_a_rerating_everybody_was_charged_the_new_price(
    used: list[tuple[int, int, int]], input_nano: int, output_nano: int
) -> None:
    price = replace(CHEAP, input_nano=input_nano, output_nano=output_nano)
    entries = [
        entry(place, fresh_input_tokens=i, cached_input_tokens=0, output_tokens=o, amount_nano=nano)
        for place, (i, o, nano) in enumerate(used)
    ]
    with ledger_of(entries) as ledger:
        page = differences(ledger, list(range(1, len(entries) + 1)), wanted(price=price))
    total = sum(e.amount_nano for e in (*entries, *page.entries))
    assert total == sum(rated(e, price) for e in entries)
