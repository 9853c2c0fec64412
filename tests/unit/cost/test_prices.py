"""Prices in memory and on disk: which one holds, for whom, from when."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config.schema.money import PriceSettings
from llmhost.core.errors import ConfigError
from llmhost.cost import ledger
from llmhost.cost.prices import SCHEMA, PriceBook, PriceList, PriceVersion
from llmhost.cost.pricing import Price, Rates
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer

DAY_NS = 86_400 * 10**9
NOON_NS = 20_000 * DAY_NS + DAY_NS // 2


@dataclass
class ManualClock:
    now_ns: int = NOON_NS

    def monotonic_ns(self) -> int:
        return self.now_ns

    def utc_ns(self) -> int:
        return self.now_ns


@dataclass
class Node:
    path: Path
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.writer = Writer(self.path, migrations=[ledger.SCHEMA, SCHEMA])
        self.reader = Reader(self.path)
        self.prices = PriceBook(self.writer, self.reader, node_id="node-1", clock=self.clock)

    def restarted(self) -> "Node":
        self.close()
        return Node(self.path, self.clock)

    def paid(self, model: str = "tiny", org: str | None = None) -> int | None:
        """Nano-dollars per million prompt tokens, now."""
        price = self.prices.list.of(model, org, self.clock.now_ns)
        return None if price is None else price.input_nano

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "money.db")
    yield node
    node.close()


def rates(input_nano: int = 1, **more: Any) -> Rates:
    return Rates(
        **{"input_nano": input_nano, "cached_input_nano": input_nano, "output_nano": 0, **more}
    )


# The list


def version(seq: int, org: str | None, effective_from_ns: int, nano: int | None) -> PriceVersion:
    name = f"m/{seq}"
    return PriceVersion(
        seq=seq,
        version=name,
        model="m",
        org=org,
        origin="api",
        note=None,
        utc_ns=0,
        effective_from_ns=effective_from_ns,
        price=None
        if nano is None
        else Price(version=name, input_nano=nano, cached_input_nano=0, output_nano=0),
    )


facts = st.lists(
    st.tuples(
        st.sampled_from([None, "acme", "zoo"]),
        st.integers(0, 20),
        st.one_of(st.none(), st.integers(0, 9)),
    )
)


@given(facts, st.randoms(use_true_random=False), st.integers(0, 20))
def test_the_newest_version_in_force_holds_in_whatever_order_they_were_added(
    facts: list[tuple[str | None, int, int | None]], random: Any, utc_ns: int
) -> None:
    versions = [version(seq, *each) for seq, each in enumerate(facts)]
    shuffled = list(versions)
    random.shuffle(shuffled)
    prices = PriceList(shuffled)

    def newest(org: str | None) -> Price | None:
        held = [v for v in versions if v.org == org and v.effective_from_ns <= utc_ns]
        return max(held, key=lambda v: (v.effective_from_ns, v.seq)).price if held else None

    assert prices.of("m", None, utc_ns) == newest(None)
    assert prices.of("m", "acme", utc_ns) == (newest("acme") or newest(None))
    assert prices.of("m", "nobody", utc_ns) == newest(None)
    assert prices.of("other", "acme", utc_ns) is None


# The file


async def test_an_equal_price_is_reused_and_another_is_a_new_version(node: Node) -> None:
    cheap, dear = PriceSettings(input="0.1", output="0.4"), PriceSettings(input="0.2", output="0.4")
    versions = []
    for settings in (cheap, PriceSettings(input="0.10", output="0.40"), dear, cheap):
        await node.prices.declare({"tiny": settings})
        versions.append(node.prices.list.of("tiny", None, NOON_NS))
    await node.prices.declare({"big": cheap, "tiny": cheap})
    versions.append(node.prices.list.of("big", None, NOON_NS))

    assert [p and p.version for p in versions] == ["tiny/1", "tiny/1", "tiny/2", "tiny/3", "big/1"]
    assert versions[2] == Price(
        version="tiny/2",
        input_nano=200_000_000,
        cached_input_nano=200_000_000,
        output_nano=400_000_000,
    )


async def test_prices_survive_a_restart_and_say_since_when(node: Node) -> None:
    await node.prices.declare({"tiny": PriceSettings(input="1", reasoning="2", request="0.1")})
    before = node.prices.list.of("tiny", None, NOON_NS)
    node.clock.now_ns += DAY_NS
    again = node.restarted()
    await again.prices.declare({"tiny": PriceSettings(input="1", reasoning="2", request="0.1")})

    assert again.prices.list.of("tiny", None, again.clock.now_ns) == before
    found = again.prices.find("tiny/1")
    assert found is not None
    assert (found.effective_from_ns, found.origin, found.price) == (NOON_NS, "file", before)
    again.close()


async def test_a_clock_that_was_ahead_leaves_no_model_without_its_price(node: Node) -> None:
    await node.prices.declare({"tiny": PriceSettings(input="0.000000001")})
    node.clock.now_ns -= DAY_NS
    again = node.restarted()
    await again.prices.declare({"tiny": PriceSettings(input="0.000000001")})

    assert again.paid() == 1
    await again.prices.declare({"tiny": PriceSettings(input="0.000000001")})
    assert len(again.prices.page(limit=9)) == 2
    again.close()


async def test_a_price_that_can_not_be_read_makes_no_version(node: Node) -> None:
    with pytest.raises(ConfigError, match=r"models\.tiny\.price\.input"):
        await node.prices.declare({"big": PriceSettings(), "tiny": PriceSettings(input="cheap")})
    assert node.prices.page(limit=10) == []


async def test_a_price_that_leaves_the_file_holds_no_more(node: Node) -> None:
    await node.prices.declare({"tiny": PriceSettings(input="1"), "never": None})
    await node.prices.declare({"tiny": None, "never": None})
    await node.prices.declare({"tiny": None, "never": None})

    assert node.paid() is None
    assert [v.version for v in node.prices.page(limit=10)] == ["tiny/1", "tiny/2"]


async def test_an_operators_price_stands_until_the_file_says_something_new(node: Node) -> None:
    listed = {"tiny": PriceSettings(input="0.000000001"), "bare": None}
    await node.prices.declare(listed)
    await node.prices.set("tiny", rates(7))
    await node.prices.set("bare", rates(8))

    again = node.restarted()
    await again.prices.declare(listed)
    assert (again.paid("tiny"), again.paid("bare")) == (7, 8)
    await again.prices.declare({"tiny": PriceSettings(input="0.000000002"), "bare": None})
    assert (again.paid("tiny"), again.paid("bare")) == (2, 8)
    again.close()


# Operators and plugins


async def test_an_organisations_own_price_goes_before_the_list_until_it_is_withdrawn(
    node: Node,
) -> None:
    await node.prices.set("tiny", rates(10))
    await node.prices.set("tiny", rates(5), org="acme")
    assert (node.paid(org="acme"), node.paid(org="zoo"), node.paid()) == (5, 10, 10)

    await node.prices.set("tiny", None, org="acme", note="contract ended")
    assert node.paid(org="acme") == 10
    again = node.restarted()
    assert again.paid(org="acme") == 10
    again.close()


async def test_a_price_to_come_holds_from_then_on_and_a_later_word_replaces_it(node: Node) -> None:
    tomorrow = NOON_NS + DAY_NS
    await node.prices.set("tiny", rates(1))
    await node.prices.set("tiny", rates(2), effective_from_ns=tomorrow)
    await node.prices.set("tiny", rates(3))
    assert node.paid() == 3
    node.clock.now_ns = tomorrow
    assert node.paid() == 2
    await node.prices.set("tiny", rates(4), effective_from_ns=tomorrow)
    assert node.paid() == 4
    assert node.prices.list.of("tiny", None, tomorrow - 1) == Price(
        version="tiny/3", input_nano=3, cached_input_nano=3, output_nano=0
    )


async def test_no_price_holds_before_it_was_set(node: Node) -> None:
    made = await node.prices.set("tiny", rates(1), effective_from_ns=NOON_NS - DAY_NS)
    assert made.effective_from_ns == NOON_NS


async def test_a_quote_has_a_version_of_its_own_and_is_in_no_list(node: Node) -> None:
    first = await node.prices.quote("tiny", "night", rates(1))
    other = await node.prices.quote("tiny", "night", rates(1, embedding_nano=3))
    same = await node.prices.quote("tiny", "night", rates(1))

    assert [p.version for p in (first, other, same)] == [
        "tiny+night/1",
        "tiny+night/2",
        "tiny+night/1",
    ]
    assert node.paid() is None
    found = node.prices.find("tiny+night/2")
    assert found is not None
    assert (found.origin, found.model, found.price) == ("plugin:night", "tiny", other)
    again = node.restarted()
    assert again.paid() is None
    again.close()


async def test_versions_are_read_page_by_page_and_by_whom_they_are_for(node: Node) -> None:
    await node.prices.declare({"tiny": PriceSettings(), "big": PriceSettings()})
    await node.prices.set("tiny", rates(), org="acme")
    await node.prices.set("tiny", rates(), org="zoo")
    await node.prices.quote("tiny", "night", rates())

    def names(**wanted: Any) -> list[str]:
        return [v.version for v in node.prices.page(limit=3, **wanted)]

    assert names() == ["tiny/1", "big/1", "tiny/2"]
    assert names(after=3) == ["tiny/3", "tiny+night/1"]
    assert names(model="tiny", after=1) == ["tiny/2", "tiny/3", "tiny+night/1"]
    assert names(org="acme") == ["tiny/2"]
    assert names(org="acme", with_list=True) == ["tiny/1", "big/1", "tiny/2"]
    assert [v.version for v in node.prices.list.all_in_force(NOON_NS)] == [
        *("tiny/1", "big/1", "tiny/2", "tiny/3")
    ]
    assert node.prices.find("tiny/9") is None


@pytest.mark.parametrize("statement", ["UPDATE prices SET input_nano = 0", "DELETE FROM prices"])
async def test_prices_are_never_changed(node: Node, statement: str) -> None:
    await node.prices.set("tiny", rates())
    refused = node.writer.submit(lambda c: c.execute(statement)).exception(10)
    assert "only ever added" in str(refused)


def test_prices_of_before_there_were_origins_are_the_files(tmp_path: Path) -> None:
    columns = "node_id, utc_ns, version, model, input_nano, cached_input_nano, output_nano, effective_from_ns"
    with Writer(tmp_path / "money.db", migrations=[ledger.SCHEMA]) as writer:
        for version, model in (("tiny/1", "tiny"), ("tiny+night/1", "tiny+night")):
            values = ("n", 5, version, model, 1, 2, 3, 5)
            query = f"INSERT INTO prices ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            writer.submit(lambda c, v=values, q=query: c.execute(q, v) and None).result(10)  # type: ignore[misc]
    node = Node(tmp_path / "money.db")

    assert node.prices.list.of("tiny", None, NOON_NS) == Price(
        version="tiny/1", input_nano=1, cached_input_nano=2, output_nano=3
    )
    assert [v.version for v in node.prices.list.all_in_force(NOON_NS)] == ["tiny/1"]
    node.close()
