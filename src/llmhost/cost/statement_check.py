"""Whether a statement is what it says: its signature, its sums, and its entries as the customer has exported them.

Needs no node and no ledger: whoever is billed runs it on two files. Pure.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmhost.core.units import PER_MILLION
from llmhost.cost import statement as form
from llmhost.cost.chain import row_hash
from llmhost.cost.ed25519 import is_signed
from llmhost.cost.entries import COSTS, DIMENSIONS, REVENUE
from llmhost.cost.lines import (
    CORRECTION,
    CREDIT,
    FREE,
    REQUESTS,
    USE,
    Charge,
    femto_in,
    price_units,
    rates_in,
)
from llmhost.cost.pricing import Rates, rated_nano

MOST_PROBLEMS = 20
"""So many are told; whoever reads them has seen enough."""

Row = Mapping[str, Any]


@dataclass(slots=True)
class Verdict:
    """What was looked at, and what was wrong with it."""

    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return not self.problems

    def add(self, name: str, problems: Iterable[str]) -> None:
        found = list(problems)
        self.problems += found[:MOST_PROBLEMS]
        if len(found) > MOST_PROBLEMS:
            self.problems.append(f"{name}: and {len(found) - MOST_PROBLEMS} more")
        if not found:
            self.checked.append(name)


def check(
    whole: Any,
    *,
    entries: Iterable[Row] | None = None,
    public_key: str | None = None,
    previous: Any = None,
) -> Verdict:
    """Check a statement; `entries` are an export, of which rows of other times and tenants are passed over.

    `public_key` in hexadecimal is the one that is trusted; without it the file's own is believed. `previous` is an
    earlier statement of the same node, whose end this one must follow.
    """
    verdict = Verdict()
    try:
        said, signature = whole["statement"], whole["signature"]
        verdict.add("signature", _signature(said, signature, public_key))
        verdict.add("sums", _sums(said))
        if entries is not None:
            _add_entries(verdict, said, entries)
        if previous is not None:
            verdict.add("order", _order(said, previous["statement"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        verdict.problems.append(f"this is no statement, or not a whole one: {error!r}")
    return verdict


def _signature(said: Row, signature: Row, public_key: str | None) -> Iterable[str]:
    if said["form"] != form.FORM or signature["algorithm"] != form.ALGORITHM:
        yield f"signature: the form {said['form']!r} is not {form.FORM!r}, which is known here"
    key = signature["public_key"]
    if public_key is not None and key.lower() != public_key.lower():
        yield f"signature: it was made with the key {key[:80]}, and not with {public_key[:80]}"
    text = form.signed_text(said)
    if not is_signed(bytes.fromhex(key), text, bytes.fromhex(signature["value"])):
        yield "signature: the statement is not what was signed"


def _sums(said: Row) -> Iterable[str]:
    """Each line is its quantity times its price, and the totals are those of the lines."""
    sums = dict.fromkeys((USE, FREE, CORRECTION, CREDIT), 0)
    prices = _prices(said)
    for line in said["lines"]:
        amount = femto_in(line["amount_usd"])
        sums[line["sort"]] += amount
        if line["unit_price_usd"] is None:
            continue
        unit = price_units(prices[line["price"]])[line["dimension"]]
        scale = PER_MILLION if line["dimension"] == REQUESTS else 1
        if line["quantity"] * unit * scale != amount:
            yield f"sums: {line['quantity']} {line['dimension']} of {line['price']} are not {amount} femto-dollars"
    totals = said["totals"]
    charged = sums[USE] + sums[FREE] + sums[CORRECTION]
    if charged != totals["charged_nano"] * PER_MILLION:
        yield "sums: the lines are not what was charged"
    if sums[CREDIT] != totals["credits_nano"] * PER_MILLION:
        yield "sums: the lines are not the credits"


def _add_entries(verdict: Verdict, said: Row, entries: Iterable[Row]) -> None:
    """All that can be recomputed from the entries themselves."""
    period, org = said["period"], said["organisation"]
    rows = [
        row
        for row in entries
        if row["org"] == org
        and row["node_id"] == said["node_id"]
        and period["since_ns"] <= row["utc_ns"] < period["until_ns"]
        and row["seq"] <= said["head"]["seq"]
    ]
    rows.sort(key=lambda row: (row["utc_ns"], row["seq"]))
    prices = _prices(said)
    verdict.add("entries", _places(said, rows))
    verdict.add("hashes", _hashes(rows))
    verdict.add("amounts", _amounts(rows, prices))
    verdict.add("lines", _lines(said, rows, prices))


def _places(said: Row, rows: list[Row]) -> Iterable[str]:
    digest = form.Digest()
    digest.add([(row["seq"], bytes.fromhex(row["hash"])) for row in rows])
    found = form.places_row(digest.done())
    if found != said["entries"]:
        yield (
            f"entries: {found['count']} entries are not the {said['entries']['count']} of the statement:"
            " some are missing, too many, or other ones"
        )


def _hashes(rows: list[Row]) -> Iterable[str]:
    """Each entry's hash is made of its content and of the hash before, which is its neighbour's if that is here."""
    before: Row | None = None
    for row in sorted(rows, key=lambda row: row["seq"]):
        if row_hash(bytes.fromhex(row["prev_hash"]), _recorded(row)).hex() != row["hash"]:
            yield f"hashes: entry {row['seq']} is not what was recorded"
        if (
            before is not None
            and before["seq"] == row["seq"] - 1
            and before["hash"] != row["prev_hash"]
        ):
            yield f"hashes: entry {row['seq']} does not follow from the entry before it"
        before = row


def _amounts(rows: list[Row], prices: Mapping[str, Rates]) -> Iterable[str]:
    for row in rows:
        if _sort(row) not in (USE, FREE):
            continue
        tokens, version = _tokens(row), row["price_version"]
        is_paid = _sort(row) == USE and version is not None and any(tokens.values())
        expected = rated_nano(prices[version], **tokens) if is_paid else 0
        if row["amount_nano"] != expected:
            yield f"amounts: entry {row['seq']} is {row['amount_nano']} nano-dollars, and not {expected}"


def _lines(said: Row, rows: list[Row], prices: Mapping[str, Rates]) -> Iterable[str]:
    charges = _charges(rows)
    lines = form.lines_in_order(charges, prices)
    if [form.line_row(line) for line in lines] != said["lines"]:
        yield "lines: the entries add up to other lines"
    if form.totals(charges, lines) != said["totals"]:
        yield "lines: the entries add up to other totals"


def _order(said: Row, earlier: Row) -> Iterable[str]:
    if (said["node_id"], said["organisation"]) != (earlier["node_id"], earlier["organisation"]):
        yield "order: the earlier statement is of another node or organisation"
    elif said["period"]["since_ns"] != earlier["period"]["until_ns"]:
        yield "order: this period does not begin where the earlier one ended"
    elif said["head"]["seq"] < earlier["head"]["seq"]:
        yield "order: the ledger has become shorter since the earlier statement"
    elif said["head"]["seq"] == earlier["head"]["seq"] and said["head"] != earlier["head"]:
        yield "order: the ledger is another one than at the earlier statement"


def _charges(rows: Iterable[Row]) -> list[Charge]:
    found: dict[Any, list[int]] = {}
    for row in rows:
        if row.get("debit") == COSTS:  # of the operator's, and on no bill
            continue
        tokens = tuple(_tokens(row).values())
        team = row["org"] if row["team"] is None else f"{row['org']}/{row['team']}"
        key = (team, row["key_id"], row["model"])
        sums = found.setdefault(
            (key, _sort(row), row["kind"], row["price_version"]), [0] * (3 + len(tokens))
        )
        for place, value in enumerate((1, sum(tokens) > 0, *tokens, row["amount_nano"])):
            sums[place] += value
    return [
        Charge(
            key=key,
            sort=sort,
            kind=kind,
            price=price,
            entries=sums[0],
            paid_requests=sums[1],
            tokens=tuple(sums[2:-1]),
            amount_nano=sums[-1],
        )
        for (key, sort, kind, price), sums in found.items()
    ]


def _sort(row: Row) -> str:
    if row.get("credit") not in (None, REVENUE):
        return CREDIT
    if row["kind"] != "request":
        return CORRECTION
    is_paid = row["outcome"] in ("answered", "cancelled")
    has_amount = row["outcome"] in ("failed", "refused") and row["amount_nano"]
    return USE if is_paid or has_amount else FREE


def _tokens(row: Row) -> dict[str, int]:
    return {name: row["tokens"].get(name, 0) for name in DIMENSIONS}


def _recorded(row: Row) -> dict[str, Any]:
    """An exported row as it is in the ledger."""
    kept = {
        name: value for name, value in row.items() if name not in ("tokens", "prev_hash", "hash")
    }
    return {**kept, **{f"{name}_tokens": count for name, count in row["tokens"].items()}}


def _prices(said: Row) -> dict[str, Rates]:
    return {price["version"]: rates_in(price["nano"]) for price in said["prices"]}
