"""Ways to tamper with an audit log whose file one can write but whose key one does not have."""

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from llmhost.storage.audit import AuditRow, AuditTrail
from llmhost.storage.node import DataDir
from llmhost.testing import at

COLUMNS = ("node_id", "kind", "org", "actor", "action", "target", "request_id", "detail", "mark")
NUMBERS = ("at_ns",)


def open_trail(folder: Path) -> AuditTrail:
    data = DataDir(folder)
    return AuditTrail(
        data.audit_db, data.audit_head, key=data.audit_key, node_id="n1", clock=at("2026-01-01")
    )


def random_row(chance: random.Random, at_ns: int) -> AuditRow:
    return AuditRow(
        at_ns=at_ns,
        kind=chance.choice(("screening", "admin", "review")),
        org=chance.choice((None, "acme", "zenith")),
        actor=chance.choice(("operator", "k1", "k2")),
        action=chance.choice(("block", "warn", "create_key")),
        target=f"/admin/v1/keys/{chance.randrange(1000)}",
        request_id=chance.choice((None, f"req_{chance.randrange(10**9)}")),
        detail={"score": chance.random(), "rules": ["pii.card", "ü"], "n": chance.randrange(99)},
    )


def fill(trail: AuditTrail, chance: random.Random, count: int) -> None:
    added = [trail.add(random_row(chance, 1_000 + number)) for number in range(count)]
    added[-1].result()


def flip_a_bit(db: sqlite3.Connection, seq: int, chance: random.Random) -> None:
    """One bit of one value, as if it had turned on the disk."""
    columns = [
        name
        for name in (*COLUMNS, *NUMBERS)
        if db.execute(f"SELECT {name} FROM rows WHERE seq = ?", (seq,)).fetchone()[0] is not None
    ]
    name = chance.choice(columns)
    if name in NUMBERS:
        db.execute(f"UPDATE rows SET {name} = {name} + ? WHERE seq = ?", (1, seq))
        return
    (found,) = db.execute(f"SELECT CAST({name} AS BLOB) FROM rows WHERE seq = ?", (seq,)).fetchone()
    flipped = bytearray(found)
    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
    kind = "BLOB" if name == "mark" else "TEXT"
    db.execute(f"UPDATE rows SET {name} = CAST(? AS {kind}) WHERE seq = ?", (bytes(flipped), seq))


def delete(db: sqlite3.Connection, seq: int, _: random.Random) -> None:
    db.execute("DELETE FROM rows WHERE seq = ?", (seq,))


def swap(db: sqlite3.Connection, seq: int, _: random.Random) -> None:
    """A row and the one after it change places."""
    for before, after in ((seq, -1), (seq + 1, seq), (-1, seq + 1)):
        db.execute("UPDATE rows SET seq = ? WHERE seq = ?", (after, before))


def tamper(
    folder: Path, seq: int, how: Callable[[sqlite3.Connection, int, random.Random], None], seed: int
) -> None:
    with closing(sqlite3.connect(folder / "audit.db")) as db:
        db.execute("DROP TRIGGER rows_no_update")
        how(db, seq, random.Random(seed))
        db.commit()


def cut(folder: Path, count: int) -> None:
    """The newest rows go."""
    with closing(sqlite3.connect(folder / "audit.db")) as db:
        db.execute("DELETE FROM rows WHERE seq > (SELECT max(seq) FROM rows) - ?", (count,))
        db.commit()
