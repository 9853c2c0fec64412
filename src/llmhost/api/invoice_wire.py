"""What a statement looks like. Its numbers and texts are signed as they are: nothing here changes them."""

import msgspec


class Period(msgspec.Struct, frozen=True, kw_only=True):
    """since <= time < until."""

    since: str
    until: str
    since_ns: int
    until_ns: int


class StatementPrice(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a price: nano-dollars for a million tokens of each dimension, and for a request."""

    version: str
    nano: dict[str, int]


class StatementLine(msgspec.Struct, frozen=True, kw_only=True):
    """A quantity, the price of `per` of them, and the amount in dollars with up to fifteen places.

    `sort` is use, not_charged, correction or credit. A line whose dimension is `rounding` says what rounding each
    entry to a nano-dollar made of the lines before it.
    """

    team: str
    key: str | None
    model: str
    sort: str
    kind: str
    price: str | None
    dimension: str
    quantity: int
    unit_price_usd: str | None
    per: int
    amount_usd: str


class StatementTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What was charged is use and its corrections. Credits are money that came in, and no part of it."""

    requests: int
    tokens: dict[str, int]
    use_nano: int
    corrections_nano: int
    charged_nano: int
    charged_usd: str
    credits_nano: int
    credits_usd: str


class EntryPlace(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the ledger by its number and hash."""

    seq: int
    hash: str


class StatementEntries(msgspec.Struct, frozen=True, kw_only=True):
    """The entries that were added up: how many, the first and the last by number, and a digest over all of them."""

    count: int
    first: EntryPlace | None
    last: EntryPlace | None
    digest: str


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What is signed. `head` is the ledger's newest entry when it was issued."""

    form: str
    organisation: str
    month: str
    timezone: str
    period: Period
    node_id: str
    issued_at: str
    is_complete: bool
    currency: str
    rule: str
    prices: list[StatementPrice]
    lines: list[StatementLine]
    totals: StatementTotals
    entries: StatementEntries
    head: EntryPlace


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """Over the statement as JSON with sorted keys, in ASCII, without spaces. In hexadecimal."""

    algorithm: str
    public_key: str
    value: str


class SignedStatement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement and its signature: the file that `llmhost invoice verify` checks."""

    statement: Statement
    signature: Signature


class PublicKey(msgspec.Struct, frozen=True, kw_only=True):
    """What the statements of this node are checked with, in hexadecimal."""

    algorithm: str
    public_key: str
    node_id: str
