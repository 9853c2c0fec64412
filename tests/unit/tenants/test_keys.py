import asyncio
import hmac
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from llmhost.core.caller import Caller, Limits, Role
from llmhost.core.errors import Conflict, InvalidValue, NotFound, Overloaded, Unauthenticated
from llmhost.storage.reader import Reader
from llmhost.storage.schema import Schema
from llmhost.storage.writer import Writer
from llmhost.tenants.keys import SCHEMA, KeyStore
from llmhost.tenants.tokens import checksum, new_token

DAY_NS = 86_400 * 10**9


@dataclass
class ManualClock:
    now_ns: int = 1_800_000_000 * 10**9

    def monotonic_ns(self) -> int:
        return self.now_ns

    def utc_ns(self) -> int:
        return self.now_ns


@dataclass
class Desk:
    """A key store on a file, and the means to open it again."""

    path: Path
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.writer = Writer(self.path, migrations=[SCHEMA])
        self.reader = Reader(self.path)
        self.keys = self.opened()

    def opened(self, pepper: bytes = b"p" * 32) -> KeyStore:
        return KeyStore(self.writer, self.reader, pepper=pepper, node_id="node-1", clock=self.clock)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "money.db")
    yield desk
    desk.close()


def refusal(keys: KeyStore, bearer: str | None) -> str:
    with pytest.raises(Unauthenticated) as refused:
        keys.find(bearer)
    return refused.value.message


async def test_a_new_key_finds_its_caller(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, token = await desk.keys.create(
        org="acme",
        team="search",
        name="laptop",
        limits=Limits(requests_per_minute=60),
        models=["tiny", "big"],
    )
    assert desk.keys.find(token) == Caller(
        key_id=record.id,
        org="acme",
        team="search",
        models=("tiny", "big"),
        limits=Limits(requests_per_minute=60),
    )


async def test_keys_and_organisations_survive_a_restart(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    await desk.keys.create_org("beta.io")
    first, token = await desk.keys.create(org="acme", models=["tiny"], expires_ns=2 * 10**18)
    gone, gone_token = await desk.keys.create(org="beta.io", name="old one")
    await desk.keys.revoke(gone.id)
    again = desk.opened()
    assert again.list() == desk.keys.list()
    assert again.list_orgs() == desk.keys.list_orgs()
    assert [org.name for org in again.list_orgs()] == ["acme", "beta.io"]
    assert again.find(token).key_id == first.id
    assert "revoked" in refusal(again, gone_token)


async def test_the_secret_is_nowhere_in_the_files(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    _, token = await desk.keys.create(org="acme")
    stored = b"".join(path.read_bytes() for path in desk.path.parent.glob("money.db*"))
    assert token.split("-")[2].encode() in stored
    assert token.split("-")[3][:12].encode() not in stored


async def test_another_pepper_knows_no_key(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    _, token = await desk.keys.create(org="acme")
    assert "not known" in refusal(desk.opened(pepper=b"q" * 32), token)


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_key_at_all_is_told_how_to_send_one(desk: Desk, nothing: str | None) -> None:
    message = refusal(desk.keys, nothing)
    assert "Authorization: Bearer" in message
    assert "llmhost keys create" in message


async def test_a_slip_of_the_hand_is_called_one(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    _, token = await desk.keys.create(org="acme")
    assert "mistyped" in refusal(desk.keys, token[:-1] + ("A" if token[-1] != "A" else "B"))
    assert "cut" in refusal(desk.keys, token[:-1])
    assert "cut" in refusal(desk.keys, token + "\n")
    assert "another service" in refusal(desk.keys, "sk-abc")


async def test_only_the_whole_key_learns_that_it_was_revoked(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, token = await desk.keys.create(org="acme")
    await desk.keys.revoke(record.id)
    assert "has been revoked" in refusal(desk.keys, token)
    _, stranger = new_token()
    body = f"lh-sk-{record.id}-{stranger.split('-')[3][:43]}"
    guess = body + checksum(body)
    assert refusal(desk.keys, guess) == refusal(desk.keys, stranger)
    assert "not known" in refusal(desk.keys, guess)


async def test_a_key_ends_at_its_expiry_to_the_nanosecond(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    end_ns = desk.clock.now_ns + DAY_NS
    record, token = await desk.keys.create(org="acme", expires_ns=end_ns)
    desk.clock.now_ns = end_ns - 1
    assert desk.keys.find(token).org == "acme"
    assert record.state(desk.clock.now_ns) == "active"
    desk.clock.now_ns = end_ns
    assert "has expired" in refusal(desk.keys, token)
    assert record.state(desk.clock.now_ns) == "expired"


async def test_a_key_is_revoked_by_a_unique_beginning(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, token = await desk.keys.create(org="acme")
    revoked = await desk.keys.revoke(f"lh-sk-{record.id[:6]}")
    assert revoked.id == record.id
    assert revoked.state(0) == "revoked"
    assert "revoked" in refusal(desk.keys, token)


async def test_revoking_twice_changes_nothing(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, _ = await desk.keys.create(org="acme")
    first = await desk.keys.revoke(record.id)
    desk.clock.now_ns += DAY_NS
    assert await desk.keys.revoke(record.id) == first
    assert desk.opened().list() == (first,)


async def test_a_beginning_that_fits_several_keys_ends_none(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    made = [await desk.keys.create(org="acme") for _ in range(63)]  # two of 63 share a first letter
    first_letters = [record.id[0] for record, _ in made]
    shared = next(letter for letter in first_letters if first_letters.count(letter) > 1)
    with pytest.raises(Conflict, match="API keys begin with"):
        await desk.keys.revoke(shared)
    assert all(record.revoked_ns is None for record in desk.keys.list())


@pytest.mark.parametrize("unknown", ["", "lh-sk-", "nosuchkeyatall"])
async def test_an_unknown_key_can_not_be_revoked(desk: Desk, unknown: str) -> None:
    await desk.keys.create_org("acme")
    await desk.keys.create(org="acme")
    with pytest.raises(NotFound):
        await desk.keys.revoke(unknown)


async def test_a_revocation_that_can_not_be_stored_holds_all_the_same(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, token = await desk.keys.create(org="acme")
    desk.writer.close()
    with pytest.raises(Overloaded):
        await desk.keys.revoke(record.id)
    assert "revoked" in refusal(desk.keys, token)


async def test_once_a_key_was_made_keys_are_needed_even_when_all_are_revoked(desk: Desk) -> None:
    assert not desk.keys.has_keys
    await desk.keys.create_org("acme")
    first, _ = await desk.keys.create(org="acme")
    second, _ = await desk.keys.create(org="acme")
    await desk.keys.revoke(first.id)
    assert desk.keys.has_keys
    assert desk.opened().has_keys
    await desk.keys.revoke(second.id)
    assert desk.keys.has_keys
    assert desk.opened().has_keys


async def test_a_rotated_key_has_two_secrets_until_the_overlap_ends(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, old = await desk.keys.create(org="acme", models=["tiny"])
    rotated, new = await desk.keys.rotate(record.id, DAY_NS)
    assert rotated == replace(record, rotated_ns=desk.clock.now_ns)
    for keys in (desk.keys, desk.opened()):
        assert keys.find(old) == keys.find(new)
        assert keys.list() == (rotated,)
    desk.clock.now_ns += DAY_NS
    for keys in (desk.keys, desk.opened()):
        assert "replaced by a newer one" in refusal(keys, old)
        assert keys.find(new).key_id == record.id


async def test_a_second_rotation_gives_an_old_secret_no_more_time(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, first = await desk.keys.create(org="acme")
    _, second = await desk.keys.rotate(record.id, DAY_NS)
    _, third = await desk.keys.rotate(record.id, 3 * DAY_NS)
    desk.clock.now_ns += DAY_NS
    for keys in (desk.keys, desk.opened()):
        assert "replaced" in refusal(keys, first)
        assert keys.find(second) == keys.find(third)


async def test_without_an_overlap_the_old_secret_ends_at_once(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, old = await desk.keys.create(org="acme")
    _, new = await desk.keys.rotate(record.id, 0)
    assert "replaced" in refusal(desk.keys, old)
    assert desk.keys.find(new).key_id == record.id


async def test_a_revocation_ends_every_secret_and_every_change(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, old = await desk.keys.create(org="acme")
    _, new = await desk.keys.rotate(record.id, DAY_NS)
    await desk.keys.revoke(record.id)
    assert "revoked" in refusal(desk.keys, old)
    assert "revoked" in refusal(desk.keys, new)
    with pytest.raises(Conflict, match="for ever"):
        await desk.keys.rotate(record.id, 0)
    with pytest.raises(Conflict, match="for ever"):
        await desk.keys.update(record.id, lambda key: replace(key, name="back"))


async def test_a_revocation_amid_a_change_is_not_undone_by_it(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, token = await desk.keys.create(org="acme")
    await asyncio.gather(
        desk.keys.update(record.id, lambda key: replace(key, name="later")),
        desk.keys.rotate(record.id, DAY_NS),
        desk.keys.revoke(record.id),
        return_exceptions=True,
    )
    for keys in (desk.keys, desk.opened()):
        assert "revoked" in refusal(keys, token)


async def test_changes_at_the_same_time_are_all_kept(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, _ = await desk.keys.create(org="acme")
    await asyncio.gather(
        desk.keys.update(record.id, lambda key: replace(key, name="laptop")),
        desk.keys.update(record.id, lambda key: replace(key, role=Role.ADMIN)),
        desk.keys.update(record.id, lambda key: replace(key, limits=Limits(max_concurrency=3))),
    )
    for keys in (desk.keys, desk.opened()):
        (known,) = keys.list()
        assert (known.name, known.role, known.limits.max_concurrency) == ("laptop", "admin", 3)


async def test_a_disabled_key_is_refused_until_it_is_enabled(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, token = await desk.keys.create(org="acme")
    await desk.keys.update(record.id, lambda key: replace(key, disabled_ns=desk.clock.now_ns))
    assert "has been disabled" in refusal(desk.keys, token)
    assert "has been disabled" in refusal(desk.opened(), token)
    await desk.keys.update(record.id, lambda key: replace(key, disabled_ns=None))
    assert desk.keys.find(token).key_id == record.id


async def test_an_expired_key_lives_again_when_its_expiry_is_moved(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, token = await desk.keys.create(org="acme", expires_ns=desk.clock.now_ns + 1)
    desk.clock.now_ns += DAY_NS
    assert "expired" in refusal(desk.keys, token)
    with pytest.raises(InvalidValue, match="expired already"):
        await desk.keys.update(record.id, lambda key: replace(key, expires_ns=5))
    await desk.keys.update(record.id, lambda key: replace(key, name="renamed"))
    await desk.keys.update(record.id, lambda key: replace(key, expires_ns=None))
    assert desk.keys.find(token).key_id == record.id


async def test_a_change_that_makes_no_sense_changes_nothing(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, _ = await desk.keys.create(org="acme")
    with pytest.raises(InvalidValue):
        await desk.keys.update(record.id, lambda key: replace(key, models=()))
    assert desk.keys.list() == (record,)
    assert desk.opened().list() == (record,)


async def test_ids_of_another_organisation_are_not_found(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    await desk.keys.create_org("beta")
    record, _ = await desk.keys.create(org="acme")
    assert desk.keys.named(record.id, "acme") == record
    with pytest.raises(NotFound):
        desk.keys.named(record.id, "beta")
    with pytest.raises(NotFound):
        desk.keys.named(record.id[:6], "beta")


async def test_a_file_of_the_version_before_teams_has_all_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "money.db"
    before = Schema(SCHEMA.name, {"orgs_and_keys": SCHEMA.steps["orgs_and_keys"]})
    _, token = new_token()
    digest = hmac.digest(b"p" * 32, token.encode(), "sha256")
    with Writer(path, migrations=[before]) as writer:
        for statement, values in (
            ("INSERT INTO orgs (node_id, utc_ns, name) VALUES ('n', 1, 'acme')", ()),
            (
                "INSERT INTO keys (node_id, utc_ns, id, digest, org, team, requests_per_minute)"
                " VALUES ('n', 2, 'abc', ?, 'acme', 'search', 60)",
                (digest,),
            ),
        ):
            await writer.run(lambda c, s=statement, v=values: c.execute(s, v).rowcount)

    desk = Desk(path)
    caller = desk.keys.find(token)
    teams = desk.keys.directory.teams()
    desk.close()

    assert (caller.key_id, caller.role, caller.limits) == (
        "abc",
        Role.MEMBER,
        Limits(requests_per_minute=60),
    )
    assert [(team.id, team.created_ns) for team in teams] == [("acme/search", 2)]


async def test_a_key_needs_an_organisation_that_exists(desk: Desk) -> None:
    with pytest.raises(NotFound, match="llmhost orgs create"):
        await desk.keys.create(org="acme")
    assert desk.keys.list_orgs() == ()


async def test_an_organisation_is_made_once(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    with pytest.raises(Conflict, match="exists already"):
        await desk.keys.create_org("acme")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "é", "a" * 65, "a\n", "'; DROP TABLE keys"])
async def test_names_are_plain(desk: Desk, name: str) -> None:
    with pytest.raises(InvalidValue, match="can't be a name"):
        await desk.keys.create_org(name)
    await desk.keys.create_org("acme")
    with pytest.raises(InvalidValue, match="can't be a name"):
        await desk.keys.create(org="acme", team=name)


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "a" * 64])
async def test_plain_names_are_taken(desk: Desk, name: str) -> None:
    assert (await desk.keys.create_org(name)).name == name


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"limits": Limits(requests_per_minute=0)}, "requests_per_minute"),
        ({"models": []}, "models"),
        ({"models": [""]}, "models"),
        ({"name": "x" * 65}, "name"),
        ({"name": "two\nlines"}, "name"),
        ({"expires_ns": 1}, "expires_at"),
    ],
)
async def test_what_a_key_can_not_have_is_named(desk: Desk, wrong: dict, param: str) -> None:
    await desk.keys.create_org("acme")
    with pytest.raises(InvalidValue) as refused:
        await desk.keys.create(org="acme", **wrong)
    assert refused.value.param == param
    assert desk.keys.list() == ()


async def test_every_row_has_a_node_a_number_and_a_time(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    record, _ = await desk.keys.create(org="acme")
    await desk.keys.revoke(record.id)
    for table in ("orgs", "keys", "secrets", "revocations"):
        rows = desk.reader.read_now(
            lambda c, t=table: c.execute(f"SELECT node_id, seq, utc_ns FROM {t}").fetchall()
        )
        assert rows == [("node-1", 1, desk.clock.now_ns)]


async def test_a_key_without_its_organisation_can_not_be_written(desk: Desk) -> None:
    orphan = "INSERT INTO keys (node_id, utc_ns, id, digest, org) VALUES ('n', 1, 'a', x'00', 'no')"
    with pytest.raises(sqlite3.IntegrityError):
        await desk.writer.run(lambda c: c.execute(orphan))
