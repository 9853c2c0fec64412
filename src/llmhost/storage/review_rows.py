"""The tables of `reviews.db` and what is asked of them: each function is a job within one transaction."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmhost.core.errors import Conflict, InvalidValue, NotFound
from llmhost.storage.connect import Connection
from llmhost.storage.schema import Schema

SCHEMA = Schema(
    "reviews",
    {
        "reviews_and_their_events": (
            """CREATE TABLE reviews (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                id TEXT NOT NULL UNIQUE,
                org TEXT NOT NULL,
                owner TEXT NOT NULL,
                mode TEXT NOT NULL,
                state TEXT NOT NULL,
                due_ns INTEGER NOT NULL,
                ends_ns INTEGER NOT NULL,
                held_until_ns INTEGER NOT NULL,
                decided_ns INTEGER,
                version INTEGER NOT NULL,
                category TEXT NOT NULL,
                rule TEXT NOT NULL,
                tier TEXT NOT NULL,
                score REAL NOT NULL,
                digest BLOB,
                record BLOB NOT NULL,
                redacted TEXT,
                original BLOB
            ) STRICT""",
            "CREATE INDEX pending_reviews ON reviews (due_ns)"
            " WHERE state IN ('open', 'claimed', 'escalated')",
            "CREATE INDEX decided_reviews ON reviews (decided_ns) WHERE decided_ns IS NOT NULL",
            "CREATE INDEX reviews_with_text ON reviews (utc_ns) WHERE redacted IS NOT NULL",
            """CREATE TABLE review_events (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                review TEXT NOT NULL,
                event TEXT NOT NULL,
                who TEXT NOT NULL,
                note TEXT
            ) STRICT""",
            "CREATE INDEX events_of_reviews ON review_events (review, seq)",
        ),
        "held_calls": (
            """CREATE TABLE held_calls (
                seq INTEGER PRIMARY KEY AUTOINCREMENT,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                review TEXT NOT NULL UNIQUE,
                call BLOB,
                status INTEGER,
                answer BLOB,
                entry BLOB
            ) STRICT""",
            "CREATE INDEX unbooked_held_calls ON held_calls (seq) WHERE entry IS NOT NULL",
            "CREATE INDEX unanswered_held_calls ON held_calls (seq) WHERE answer IS NULL",
        ),
        "told_events": (
            """CREATE TABLE told_events (
                url TEXT PRIMARY KEY,
                node_id TEXT NOT NULL,
                utc_ns INTEGER NOT NULL,
                seq INTEGER NOT NULL -- of review_events: up to it all were told
            ) STRICT""",
        ),
    },
)

_NOW = (
    "CASE WHEN state NOT IN ('open', 'claimed', 'escalated') THEN state WHEN ends_ns <= :now THEN 'expired'"
    " WHEN state = 'claimed' AND held_until_ns <= :now THEN 'open' ELSE state END"
)
"""The state as time has made it."""
_WAITING = "state IN ('open', 'claimed', 'escalated')"
_AT_ONCE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What moves of a review, with the record that says all of it."""

    state: str
    version: int
    held_until_ns: int
    decided_ns: int | None
    record: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One act of its history."""

    at_ns: int
    event: str
    who: str
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewReview:
    id: str
    at_ns: int
    org: str
    owner: str
    """Who may ask what became of it."""
    mode: str
    due_ns: int
    ends_ns: int
    category: str
    rule: str
    tier: str
    score: float
    digest: bytes | None
    """Of the text, for those whose decision holds for the same text again."""
    standing: Standing
    redacted: str
    original: bytes


@dataclass(frozen=True, slots=True)
class Ruling:
    """What was decided of a text."""

    id: str
    digest: bytes
    state: str
    decided_ns: int


@dataclass(frozen=True, slots=True)
class Texts:
    redacted: str | None
    original: bytes | None


Act = Callable[[bytes], tuple[Standing, Event]]
"""A record -> the next one, and what that is called. Pure: it may be asked twice. Raises what refuses it."""


def erase_for_good(connection: Connection) -> None:
    connection.execute("PRAGMA secure_delete = ON").fetchall()


def add(connection: Connection, *, node_id: str, new: NewReview, event: Event) -> None:
    now = new.standing
    connection.execute(
        "INSERT INTO reviews (node_id, utc_ns, id, org, owner, mode, state, due_ns, ends_ns, held_until_ns,"
        " decided_ns, version, category, rule, tier, score, digest, record, redacted, original)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(node_id, new.at_ns, new.id, new.org, new.owner, new.mode, now.state),
            *(new.due_ns, new.ends_ns, now.held_until_ns, now.decided_ns, now.version),
            *(new.category, new.rule, new.tier, new.score, new.digest),
            *(now.record, new.redacted, new.original),
        ),
    )
    note(connection, node_id=node_id, review_id=new.id, event=event)


def act(
    connection: Connection, *, node_id: str, review_id: str, act: Act, org: str | None
) -> bytes:
    row = connection.execute(
        "SELECT version, record FROM reviews WHERE id = ? AND org = coalesce(?, org)",
        (review_id, org),
    ).fetchone()
    if row is None:
        raise no_review(review_id)
    version, record = row
    standing, event = act(record)
    _set(connection, review_id, version, standing)
    note(connection, node_id=node_id, review_id=review_id, event=event)
    return standing.record


def act_on_first(
    connection: Connection,
    *,
    node_id: str,
    org: str | None,
    suits: Callable[[bytes], bool],
    act: Act,
) -> bytes | None:
    rows = connection.execute(
        f"SELECT id, version, record FROM reviews WHERE {_WAITING} AND org = coalesce(?, org) ORDER BY due_ns, seq",
        (org,),
    )
    found = next((row for row in rows if suits(row[2])), None)
    rows.close()
    if found is None:
        return None
    review_id, version, record = found
    standing, event = act(record)
    _set(connection, review_id, version, standing)
    note(connection, node_id=node_id, review_id=review_id, event=event)
    return standing.record


def _set(connection: Connection, review_id: str, version: int, now: Standing) -> None:
    changed = connection.execute(
        "UPDATE reviews SET state = ?, version = ?, held_until_ns = ?, decided_ns = ?, record = ?"
        f" WHERE id = ? AND version = ? AND {_WAITING}",
        (
            *(now.state, now.version, now.held_until_ns, now.decided_ns, now.record),
            *(review_id, version),
        ),
    )
    if changed.rowcount != 1:
        raise Conflict(f"The review {review_id} has moved on. Look at it again.")


def note(connection: Connection, *, node_id: str, review_id: str, event: Event) -> None:
    """Add to a review's history, within a transaction."""
    connection.execute(
        "INSERT INTO review_events (node_id, utc_ns, review, event, who, note) VALUES (?, ?, ?, ?, ?, ?)",
        (node_id, event.at_ns, review_id, event.event, event.who, event.note),
    )


def find(
    connection: Connection, *, review_id: str, org: str | None, owner: str | None
) -> bytes | None:
    row = connection.execute(
        "SELECT record FROM reviews WHERE id = ? AND org = coalesce(?, org) AND owner = coalesce(?, owner)",
        (review_id, org, owner),
    ).fetchone()
    return None if row is None else row[0]


def page(
    connection: Connection,
    *,
    org: str | None,
    states: tuple[str, ...],
    category: str | None,
    now_ns: int,
    after: str | None,
    limit: int,
) -> list[bytes]:
    facts: dict[str, Any] = {"org": org, "category": category, "now": now_ns, "limit": limit}
    facts["seq"] = 0
    if after is not None:
        row = connection.execute(
            "SELECT seq FROM reviews WHERE id = ? AND org = coalesce(?, org)", (after, org)
        ).fetchone()
        if row is None:
            raise InvalidValue(f"No review has the id {after[:80]!r}.", param="after")
        facts["seq"] = row[0]
    where = ["seq > :seq", "org = coalesce(:org, org)", "category = coalesce(:category, category)"]
    if states:
        named = {f"state{number}": state for number, state in enumerate(states)}
        facts |= named
        where.append(f"({_NOW}) IN ({', '.join(f':{name}' for name in named)})")
    query = f"SELECT record FROM reviews WHERE {' AND '.join(where)} ORDER BY seq LIMIT :limit"
    return [row[0] for row in connection.execute(query, facts)]


def texts(connection: Connection, *, review_id: str) -> Texts:
    row = connection.execute(
        "SELECT redacted, original FROM reviews WHERE id = ?", (review_id,)
    ).fetchone()
    return Texts(None, None) if row is None else Texts(*row)


def events(connection: Connection, *, review_id: str) -> list[Event]:
    rows = connection.execute(
        "SELECT utc_ns, event, who, note FROM review_events WHERE review = ? ORDER BY seq",
        (review_id,),
    )
    return [Event(at_ns=at, event=event, who=who, note=note) for at, event, who, note in rows]


def decided(connection: Connection, *, org: str | None, since_ns: int) -> list[bytes]:
    rows = connection.execute(
        "SELECT record FROM reviews WHERE decided_ns >= ? AND org = coalesce(?, org)",
        (since_ns, org),
    )
    return [row[0] for row in rows]


def labels(
    connection: Connection, *, org: str | None, since_ns: int
) -> list[tuple[str, str, str, float, bool]]:
    rows = connection.execute(
        "SELECT category, rule, tier, score, state = 'rejected' FROM reviews"
        " WHERE decided_ns >= ? AND state IN ('approved', 'rejected') AND org = coalesce(?, org)",
        (since_ns, org),
    )
    return [(*row[:4], bool(row[4])) for row in rows]


def pending(connection: Connection) -> list[tuple[bytes, bytes | None]]:
    return connection.execute(f"SELECT record, digest FROM reviews WHERE {_WAITING}").fetchall()


def rulings(connection: Connection, *, since_ns: int) -> list[Ruling]:
    rows = connection.execute(
        "SELECT id, digest, state, decided_ns FROM reviews WHERE decided_ns >= ? AND digest IS NOT NULL"
        " AND state IN ('approved', 'rejected') ORDER BY decided_ns",
        (since_ns,),
    )
    return [Ruling(*row) for row in rows]


def late(connection: Connection, *, now_ns: int) -> list[str]:
    rows = connection.execute(
        f"SELECT id FROM reviews WHERE {_WAITING} AND ends_ns <= ? LIMIT {_AT_ONCE}", (now_ns,)
    )
    return [row[0] for row in rows]


def erase(connection: Connection, *, originals_ns: int, redacted_ns: int) -> int:
    originals = connection.execute(
        "UPDATE reviews SET original = NULL WHERE seq IN (SELECT seq FROM reviews"
        f" WHERE redacted IS NOT NULL AND original IS NOT NULL AND utc_ns < ? LIMIT {_AT_ONCE})",
        (originals_ns,),
    ).rowcount
    held = connection.execute(
        "DELETE FROM held_calls WHERE seq IN (SELECT seq FROM held_calls"
        f" WHERE entry IS NULL AND utc_ns < ? LIMIT {_AT_ONCE})",
        (originals_ns,),
    ).rowcount
    redacted = connection.execute(
        "UPDATE reviews SET redacted = NULL, original = NULL WHERE seq IN (SELECT seq FROM reviews"
        f" WHERE redacted IS NOT NULL AND utc_ns < ? LIMIT {_AT_ONCE})",
        (redacted_ns,),
    ).rowcount
    return originals + held + redacted


def no_review(review_id: str) -> NotFound:
    return NotFound(f"There is no review {review_id[:80]!r}.")
