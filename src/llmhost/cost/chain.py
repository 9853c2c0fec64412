"""The ledger's hash chain: what exactly is hashed, and how a file is checked. Pure but for the rows it is given."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

GENESIS = bytes(32)
"""What the first row has for a predecessor."""

_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode
_encode = msgspec.json.Encoder().encode
_begun = hashlib.sha256().copy
"""Another one is made in half the time that it takes to look for the algorithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The first row that does not fit what is before it or what it says of itself."""

    seq: int
    request_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """`rows` were found good, and `head` is the last good one's hash.

    A chain alone can't show that its newest rows were cut off: keep heads elsewhere and compare them.
    """

    rows: int
    head: str
    broken: Broken | None = None

    @property
    def is_intact(self) -> bool:
        return self.broken is None


def row_hash(prev_hash: bytes, row: Mapping[str, str | int | None]) -> bytes:
    """SHA-256 over the previous hash and the row as JSON: keys sorted, ASCII, no spaces, nulls left out.

    Nulls are left out so that a column added later does not change the hashes of the rows that came before it.
    """
    known = {name: value for name, value in row.items() if value is not None}
    return hashlib.sha256(prev_hash + _json(known).encode()).digest()


def struct_hash(prev_hash: bytes, row: msgspec.Struct) -> bytes:
    """`row_hash` of a Struct that leaves out nulls and has its fields in the order of their names: the same bytes in a
    tenth of the time."""
    try:
        said = _encode(row)
    except UnicodeEncodeError:  # half a character, which only JSON in ASCII can spell
        return row_hash(prev_hash, msgspec.structs.asdict(row))
    if not said.isascii() or b"\x7f" in said:  # what only one of the two escapes
        return row_hash(prev_hash, msgspec.structs.asdict(row))
    made = _begun()
    made.update(prev_hash + said)
    return made.digest()


def verify(rows: Iterable[tuple[bytes, bytes, Mapping[str, str | int | None]]]) -> VerifyReport:
    """Walk (prev_hash, hash, row) in order of `seq`, holding one at a time, and stop at the first that is wrong."""
    head, count = GENESIS, 0
    for prev_hash, found_hash, row in rows:
        reason = None
        if row["seq"] != count + 1:
            reason = f"number {count + 1} should be here: rows are missing"
        elif prev_hash != head:
            reason = "it does not follow from the row before it"
        elif row_hash(prev_hash, row) != found_hash:
            reason = "its content is not what was recorded"
        if reason is not None:
            broken = Broken(
                seq=int(row["seq"] or 0), request_id=str(row["request_id"]), reason=reason
            )
            return VerifyReport(rows=count, head=head.hex(), broken=broken)
        head, count = found_hash, count + 1
    return VerifyReport(rows=count, head=head.hex())
