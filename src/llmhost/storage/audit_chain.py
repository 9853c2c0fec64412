"""The audit log's chain: what of a row is authenticated, and how a log is checked. Pure but for what it is given.

Each row's mark is an HMAC over the row and the mark before it, under a key that is not in the file: whoever can write
the file alone can't make a row that fits. A run of rows that was pruned leaves a checkpoint, sealed under the same key,
which says where the chain stood before the run and behind it. The newest mark is kept beside the file, or rows that
are cut off at the end would not be missed.
"""

import hmac
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GENESIS = bytes(32)
"""What the first row follows."""
DAMAGED = "audit.damaged"
"""The action of a row that a node writes when it finds rows gone that it knows to have written."""

_json = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode

Value = str | int | None


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log ends."""

    seq: int = 0
    mark: bytes = GENESIS


@dataclass(frozen=True, slots=True)
class Link:
    """A row as it is stored: its values in the order of the columns, the first of which is its number."""

    values: Sequence[Value]
    mark: bytes

    @property
    def first(self) -> int:
        return int(self.values[0] or 0)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is left of rows `first` to `last`, which were pruned."""

    first: int
    last: int
    before: bytes
    """The mark that the first of them followed."""
    mark: bytes
    """The last one's."""
    seal: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """The first place that is wrong."""

    seq: int
    reason: str

    def __str__(self) -> str:
        return f"row {self.seq}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`rows` were found good and `pruned` were said to be gone, up to `head`."""

    rows: int
    pruned: int
    head: Head
    broken: Broken | None = None


def mark_of(key: bytes, before: bytes, values: Sequence[Value]) -> bytes:
    """HMAC-SHA256 over the mark before and the values as a JSON list in ASCII."""
    return hmac.digest(key, before + _json(list(values)).encode(), "sha256")


def seal_of(key: bytes, first: int, last: int, before: bytes, mark: bytes) -> bytes:
    """Of a checkpoint; no row's mark can be taken for one."""
    return hmac.digest(key, b"checkpoint:%d:%d:" % (first, last) + before + mark, "sha256")


def sealed(key: bytes, first: int, last: int, before: bytes, mark: bytes) -> Checkpoint:
    return Checkpoint(first, last, before, mark, seal_of(key, first, last, before, mark))


def head_line(key: bytes, head: Head) -> bytes:
    """The head as a line of text for a file of its own, always of the same length."""
    said = b"%020d %s" % (head.seq, head.mark.hex().encode())
    return said + b" %s\n" % hmac.digest(key, b"head:" + said, "sha256").hex().encode()


def read_head(key: bytes, line: bytes) -> Head | None:
    """What `head_line` wrote; None for anything else."""
    try:
        seq, mark = line.split()[:2]
        head = Head(int(seq), bytes.fromhex(mark.decode()))
    except ValueError:
        return None
    return head if hmac.compare_digest(head_line(key, head), line) else None


def check(key: bytes, parts: Iterable[Link | Checkpoint]) -> Verdict:
    """Walk rows and checkpoints in the order of their numbers, and stop at the first that is wrong."""
    head, rows, pruned = Head(), 0, 0
    for part in parts:
        wrong = _wrong(key, head, part)
        if wrong is not None:
            return Verdict(rows=rows, pruned=pruned, head=head, broken=wrong)
        if isinstance(part, Checkpoint):
            head, pruned = Head(part.last, part.mark), pruned + part.last - part.first + 1
        else:
            head, rows = Head(part.first, part.mark), rows + 1
    return Verdict(rows=rows, pruned=pruned, head=head)


def behind(verdict: Verdict, known: Head, mark_at_known: bytes | None) -> Broken | None:
    """Whether a log that is whole in itself lacks what was known to be its end, or is another one."""
    if verdict.head.seq < known.seq:
        return Broken(
            seq=verdict.head.seq + 1,
            reason=f"{missing(verdict.head.seq + 1, known.seq)} cut off at the end",
        )
    if mark_at_known is not None and mark_at_known != known.mark:
        return Broken(seq=known.seq, reason="it is another row than the one that was written")
    return None


def missing(first: int, last: int) -> str:
    return f"row {first} was" if first == last else f"rows {first} to {last} were"


def _wrong(key: bytes, head: Head, part: Link | Checkpoint) -> Broken | None:
    due = head.seq + 1
    if part.first > due:
        return Broken(seq=due, reason=f"{missing(due, part.first - 1)} deleted")
    if part.first < due:
        return Broken(seq=part.first, reason="its number is taken already")
    if isinstance(part, Checkpoint):
        seal = seal_of(key, part.first, part.last, part.before, part.mark)
        is_good = part.before == head.mark and part.last >= part.first
        if not (is_good and hmac.compare_digest(seal, part.seal)):
            return Broken(seq=due, reason="the checkpoint in its place was not made by this node")
        return None
    if not hmac.compare_digest(mark_of(key, head.mark, part.values), part.mark):
        return Broken(
            seq=due,
            reason="it is not what was recorded, or does not follow from the row before it",
        )
    return None
