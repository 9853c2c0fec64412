"""Organisations and teams: what they are called, what their keys share, and when these are refused."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.tenants.test_keys import Desk, refusal

from llmhost.core.caller import NO_LIMITS, Limits
from llmhost.core.errors import Conflict, InvalidValue, NotFound
from llmhost.tenants.records import MOST, check_limits, check_name


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "money.db")
    yield desk
    desk.close()


async def test_a_caller_carries_the_limits_of_its_team_and_organisation(desk: Desk) -> None:
    directory = desk.keys.directory
    await directory.create_org("acme", Limits(requests_per_minute=100))
    await directory.create_team("acme", "search", Limits(max_concurrency=4))
    _, token = await desk.keys.create(org="acme", team="search", limits=Limits(max_concurrency=2))
    for keys in (desk.keys, desk.opened()):
        caller = keys.find(token)
        assert caller.limits == Limits(max_concurrency=2)
        assert caller.team_limits == Limits(max_concurrency=4)
        assert caller.org_limits == Limits(requests_per_minute=100)


async def test_changed_limits_hold_for_the_next_request(desk: Desk) -> None:
    directory = desk.keys.directory
    await directory.create_org("acme")
    _, token = await desk.keys.create(org="acme", team="search")
    assert desk.keys.find(token).org_limits == NO_LIMITS
    await directory.update_org(
        "acme", lambda org: replace(org, limits=Limits(input_tokens_per_minute=7))
    )
    await directory.update_team(
        "acme", "search", lambda team: replace(team, limits=Limits(output_tokens_per_minute=8))
    )
    for keys in (desk.keys, desk.opened()):
        caller = keys.find(token)
        assert caller.org_limits.input_tokens_per_minute == 7
        assert caller.team_limits.output_tokens_per_minute == 8


async def test_a_team_is_made_with_its_first_key(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    await desk.keys.create(org="acme", team="search")
    await desk.keys.create(org="acme", team="search")
    assert [team.id for team in desk.keys.directory.teams()] == ["acme/search"]
    with pytest.raises(Conflict, match="exists already"):
        await desk.keys.directory.create_team("acme", "search")


async def test_keys_of_an_archived_team_are_refused_until_it_is_restored(desk: Desk) -> None:
    directory = desk.keys.directory
    await desk.keys.create_org("acme")
    _, token = await desk.keys.create(org="acme", team="search")
    _, other = await desk.keys.create(org="acme", team="ads")
    archived = await directory.archive_team("acme", "search")
    desk.clock.now_ns += 5
    assert await directory.archive_team("acme", "search") == archived
    for keys in (desk.keys, desk.opened()):
        assert "team of this API key has been archived" in refusal(keys, token)
        assert keys.find(other).team == "ads"
    with pytest.raises(Conflict, match="--restore"):
        await desk.keys.create(org="acme", team="search")
    await directory.update_team("acme", "search", lambda team: replace(team, archived_ns=None))
    assert desk.keys.find(token).team == "search"


async def test_keys_of_a_disabled_organisation_are_refused(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    _, token = await desk.keys.create(org="acme")
    await desk.keys.directory.update_org("acme", lambda org: replace(org, disabled_ns=1))
    for keys in (desk.keys, desk.opened()):
        assert "organisation of this API key has been disabled" in refusal(keys, token)


async def test_teams_of_one_name_in_two_organisations_are_two(desk: Desk) -> None:
    directory = desk.keys.directory
    for org in ("acme", "beta"):
        await directory.create_org(org)
        await directory.create_team(org, "search")
    await directory.archive_team("beta", "search")
    assert [team.state for team in directory.teams()] == ["active", "archived"]
    assert [team.id for team in directory.teams("beta")] == ["beta/search"]


async def test_what_does_not_exist_is_named(desk: Desk) -> None:
    directory = desk.keys.directory
    for ask in (lambda: directory.org("acme"), lambda: directory.team("acme", "x")):
        with pytest.raises(NotFound, match="no organisation 'acme'"):
            ask()
    await directory.create_org("acme")
    with pytest.raises(NotFound, match="has no team 'x'"):
        await directory.archive_team("acme", "x")
    with pytest.raises(NotFound, match="no organisation 'beta'"):
        await directory.create_team("beta", "x")


async def test_every_team_has_a_node_a_number_and_a_time(desk: Desk) -> None:
    await desk.keys.create_org("acme")
    await desk.keys.directory.create_team("acme", "search")
    rows = desk.reader.read_now(
        lambda c: c.execute("SELECT node_id, seq, utc_ns FROM teams").fetchall()
    )
    assert rows == [("node-1", 1, desk.clock.now_ns)]


@given(name=st.text(max_size=70))
def test_a_name_stands_in_a_path_as_it_is(name: str) -> None:
    try:
        check_name(name, "name")
    except InvalidValue:
        return
    assert name.isascii()
    assert not set(name) & set("/?#% \\\n")
    assert name not in (".", "..")


@given(limits=st.builds(Limits, max_concurrency=st.none() | st.integers()))
def test_a_limit_is_absent_or_a_number_that_fits(limits: Limits) -> None:
    value = limits.max_concurrency
    try:
        check_limits(limits)
    except InvalidValue as error:
        assert value is not None
        assert not 1 <= value <= MOST
        assert error.param == "max_concurrency"
    else:
        assert value is None or 1 <= value <= MOST
