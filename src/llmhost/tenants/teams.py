"""Organisations and teams: who there is, and what all keys of one share."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmhost.core.caller import NO_LIMITS, Limits
from llmhost.core.errors import Conflict, NotFound
from llmhost.core.ports import Clock
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer
from llmhost.tenants import rows
from llmhost.tenants.records import Org, Team, check_limits, check_name


@dataclass(frozen=True, slots=True)
class Desk:
    """What every change of tenants needs: where it is written, by which node, and when."""

    writer: Writer
    node_id: str
    clock: Clock


class Directory:
    """Owns organisations and teams, in memory and on disk. Loads them when made, which waits for the disk.

    Changes are made from one event loop, one at a time, and are committed before they are seen or answered;
    `changed` is called after each.
    """

    def __init__(self, desk: Desk, reader: Reader, changed: Callable[[], None]) -> None:
        self._desk = desk
        self._changed = changed
        self._turn = asyncio.Lock()
        self._orgs = reader.read_now(rows.load_orgs)
        self._teams = reader.read_now(rows.load_teams)

    def orgs(self) -> tuple[Org, ...]:
        """All organisations, oldest first."""
        return tuple(self._orgs.values())

    def teams(self, org: str | None = None) -> tuple[Team, ...]:
        """All teams, archived ones too, oldest first."""
        return tuple(team for team in self._teams.values() if org in (None, team.org))

    def org(self, name: str) -> Org:
        """Raises NotFound."""
        try:
            return self._orgs[name]
        except KeyError:
            raise no_org(name) from None

    def team(self, org: str, name: str) -> Team:
        """Raises NotFound."""
        try:
            return self._teams[self.org(org).name, name]
        except KeyError:
            raise NotFound(
                f"The organisation {org!r} has no team {name[:80]!r}."
                " `llmhost teams create NAME --org ORG` makes one.",
                param="team",
            ) from None

    async def create_org(self, name: str, limits: Limits = NO_LIMITS) -> Org:
        """Raises InvalidValue for what it can't have, Conflict for one that exists."""
        check_name(name, "name")
        check_limits(limits)
        org = Org(name=name, limits=limits, created_ns=self._desk.clock.utc_ns())
        async with self._turn:
            if not await self._desk.writer.run(
                lambda connection: rows.insert_org(connection, self._desk.node_id, org)
            ):
                raise Conflict(f"The organisation {name!r} exists already.", param="name")
            self._orgs[name] = org
            return org

    async def update_org(self, name: str, change: Callable[[Org], Org]) -> Org:
        """Raises NotFound, and InvalidValue for what it can't have."""
        async with self._turn:
            org = change(self.org(name))
            check_limits(org.limits)
            await self._desk.writer.run(lambda connection: rows.update_org(connection, org))
            self._orgs[name] = org
            self._changed()
            return org

    async def create_team(self, org: str, name: str, limits: Limits = NO_LIMITS) -> Team:
        """Raises NotFound for the organisation, InvalidValue, or Conflict for a team that exists."""
        check_name(name, "name")
        check_limits(limits)
        async with self._turn:
            return await self._create_team(org, name, limits)

    async def ensure_team(self, org: str, name: str) -> Team:
        """The team, made if it is not there yet. Raises NotFound for the organisation, Conflict when it is archived."""
        check_name(name, "team")
        async with self._turn:
            team = self._teams.get((org, name)) or await self._create_team(org, name, NO_LIMITS)
        if team.archived_ns is not None:
            raise Conflict(
                f"The team {name!r} of {org!r} is archived and gets no new keys."
                f" `llmhost teams update {name} --org {org} --restore` brings it back.",
                param="team",
            )
        return team

    async def update_team(self, org: str, name: str, change: Callable[[Team], Team]) -> Team:
        """Raises NotFound, and InvalidValue for what it can't have."""
        async with self._turn:
            team = change(self.team(org, name))
            check_limits(team.limits)
            await self._desk.writer.run(lambda connection: rows.update_team(connection, team))
            self._teams[org, name] = team
            self._changed()
            return team

    async def archive_team(self, org: str, name: str) -> Team:
        """End a team: its keys are refused. Repeating it changes nothing. Raises NotFound."""
        now_ns = self._desk.clock.utc_ns()
        return await self.update_team(
            org, name, lambda team: replace(team, archived_ns=team.archived_ns or now_ns)
        )

    async def _create_team(self, org: str, name: str, limits: Limits) -> Team:
        team = Team(
            org=self.org(org).name,
            name=name,
            limits=limits,
            created_ns=self._desk.clock.utc_ns(),
        )
        if not await self._desk.writer.run(
            lambda connection: rows.insert_team(connection, self._desk.node_id, team)
        ):
            raise Conflict(f"The team {name!r} of {org!r} exists already.", param="name")
        self._teams[org, name] = team
        return team


def no_org(name: str) -> NotFound:
    """The same whether it does not exist or is another's."""
    return NotFound(
        f"There is no organisation {name[:80]!r}. `llmhost orgs create NAME` makes one.",
        param="org",
    )
