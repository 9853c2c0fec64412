"""What can be seen and done of organisations, teams and keys, by the operator or by a key within its organisation.

Another's organisation, team or key is answered like one that does not exist.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from msgspec import UNSET

from llmhost.api.admin_wire import (
    KeyChange,
    KeyPage,
    KeyRow,
    NewKey,
    NewOrg,
    NewTeam,
    OrgChange,
    OrgPage,
    OrgRow,
    Rotation,
    SecretRow,
    TeamChange,
    TeamPage,
    TeamRow,
    expiry_ns,
    key_row,
    limits_of,
    org_row,
    secret_row,
    team_row,
)
from llmhost.core.errors import InvalidValue
from llmhost.observe.logs import log_event
from llmhost.tenants.budget_store import BudgetStore
from llmhost.tenants.budgets import Budget, nano_of
from llmhost.tenants.keys import LONGEST_OVERLAP_NS, KeyStore
from llmhost.tenants.periods import Period
from llmhost.tenants.records import KeyRecord
from llmhost.tenants.roles import OPERATOR, Access, access_of
from llmhost.tenants.teams import Directory, no_org

log = logging.getLogger("llmhost.tenants")

NOBODY = "-"
"""What analytics has for the organisation of a stranger's request; the ledger has no such request."""
PAGE_ROWS = 100
MOST_ROWS = 1000

T = TypeVar("T")
CheckModel = Callable[[str], object]


class TenantAdmin:
    """Acts and lists on tenants. `check_model` raises for a name that no model has.

    Without `budgets` nothing is made that has one.
    """

    def __init__(
        self, keys: KeyStore, check_model: CheckModel | None, budgets: BudgetStore | None = None
    ) -> None:
        self._keys = keys
        self._check_model = check_model
        self._budgets = budgets

    @property
    def _directory(self) -> Directory:
        return self._keys.directory

    def access_of(self, bearer: str) -> Access:
        """What the holder of a key may do. Raises Unauthenticated."""
        return access_of(self._keys.find(bearer))

    # ------------------------------------------------------------ organisations

    def list_orgs(
        self, access: Access = OPERATOR, *, limit: int = PAGE_ROWS, after: str | None = None
    ) -> OrgPage:
        orgs = [org for org in self._directory.orgs() if access.org in (None, org.name)]
        rows, has_more = page_of(orgs, lambda org: org.name, limit, after)
        return OrgPage(
            data=[org_row(org) for org in rows],
            has_more=has_more,
            last_id=rows[-1].name if rows else None,
        )

    def show_org(self, name: str, access: Access = OPERATOR) -> OrgRow:
        return org_row(self._directory.org(_own(name, access)))

    async def create_org(self, new: NewOrg) -> OrgRow:
        if new.name == NOBODY:
            raise InvalidValue(
                f"{NOBODY!r} stands for requests that no caller was found for.", param="name"
            )
        budget = _first_budget(new, new.name)
        org = await self._directory.create_org(new.name, limits_of(new))
        log_event(log, "org.created", org=org.name, by=OPERATOR.who)
        await self._create_budget(budget, OPERATOR)
        return org_row(org)

    async def update_org(self, name: str, change: OrgChange) -> OrgRow:
        now_ns = self._keys.utc_ns()
        org = await self._directory.update_org(name, lambda org: change.apply(org, now_ns))
        log_event(log, "org.updated", org=name, state=org.state, by=OPERATOR.who)
        return org_row(org)

    # ------------------------------------------------------------ teams

    def list_teams(
        self,
        access: Access = OPERATOR,
        *,
        org: str | None = None,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> TeamPage:
        teams = self._directory.teams(self._seen(org, access))
        rows, has_more = page_of(teams, lambda team: team.id, limit, after)
        return TeamPage(
            data=[team_row(team) for team in rows],
            has_more=has_more,
            last_id=rows[-1].id if rows else None,
        )

    def show_team(self, org: str, name: str, access: Access = OPERATOR) -> TeamRow:
        return team_row(self._directory.team(_own(org, access), name))

    async def create_team(self, new: NewTeam, access: Access = OPERATOR) -> TeamRow:
        budget = _first_budget(new, new.org)
        team = await self._directory.create_team(_own(new.org, access), new.name, limits_of(new))
        log_event(log, "team.created", org=team.org, team=team.name, by=access.who)
        await self._create_budget(budget and replace(budget, team=team.name), access)
        return team_row(team)

    async def update_team(
        self, org: str, name: str, change: TeamChange, access: Access = OPERATOR
    ) -> TeamRow:
        now_ns = self._keys.utc_ns()
        team = await self._directory.update_team(
            _own(org, access), name, lambda team: change.apply(team, now_ns)
        )
        log_event(log, "team.updated", org=org, team=name, state=team.state, by=access.who)
        return team_row(team)

    async def archive_team(self, org: str, name: str, access: Access = OPERATOR) -> TeamRow:
        team = await self._directory.archive_team(_own(org, access), name)
        log_event(log, "team.archived", org=org, team=name, by=access.who)
        return team_row(team)

    # ------------------------------------------------------------ keys

    def list_keys(
        self,
        access: Access = OPERATOR,
        *,
        org: str | None = None,
        team: str | None = None,
        limit: int = PAGE_ROWS,
        after: str | None = None,
    ) -> KeyPage:
        seen = self._seen(org, access)
        keys = [
            key for key in self._keys.list() if seen in (None, key.org) and team in (None, key.team)
        ]
        rows, has_more = page_of(keys, lambda key: key.id, limit, after)
        return KeyPage(
            data=[self._row(key) for key in rows],
            has_more=has_more,
            last_id=rows[-1].id if rows else None,
        )

    def show_key(self, key: str, access: Access = OPERATOR) -> KeyRow:
        """By its id or the beginning of it, as all below."""
        return self._row(self._keys.named(key, access.org))

    async def create_key(self, new: NewKey, access: Access = OPERATOR) -> SecretRow:
        self._check_models(new.models)
        budget = _first_budget(new, new.org)
        key, token = await self._keys.create(
            org=_own(new.org, access),
            team=new.team,
            name=new.name,
            role=new.role,
            limits=limits_of(new),
            models=new.models,
            expires_ns=expiry_ns(new.expires_at),
        )
        log_event(log, "key.created", key=key.id, org=key.org, role=key.role.value, by=access.who)
        await self._create_budget(budget and replace(budget, key_id=key.id), access)
        return secret_row(self._row(key), token)

    async def update_key(self, key: str, change: KeyChange, access: Access = OPERATOR) -> KeyRow:
        if change.models is not UNSET:
            self._check_models(change.models)
        now_ns, known = self._keys.utc_ns(), self._keys.named(key, access.org)
        record = await self._keys.update(known.id, lambda key: change.apply(key, now_ns))
        row = self._row(record)
        log_event(log, "key.updated", key=row.id, org=row.org, state=row.state, by=access.who)
        return row

    async def rotate_key(
        self, key: str, rotation: Rotation, access: Access = OPERATOR
    ) -> SecretRow:
        overlap_ns = min(max(rotation.overlap_s, -1), LONGEST_OVERLAP_NS) * 10**9
        record, token = await self._keys.rotate(self._keys.named(key, access.org).id, overlap_ns)
        log_event(
            log,
            "key.rotated",
            key=record.id,
            org=record.org,
            overlap_s=rotation.overlap_s,
            by=access.who,
        )
        return secret_row(self._row(record), token)

    async def revoke_key(self, key: str, access: Access = OPERATOR) -> KeyRow:
        record = await self._keys.revoke(self._keys.named(key, access.org).id)
        log_event(log, "key.revoked", key=record.id, org=record.org, by=access.who)
        return self._row(record)

    async def _create_budget(self, budget: Budget | None, access: Access) -> None:
        """Before anybody can know the key, or make one, that it is for."""
        if budget is not None:
            assert self._budgets is not None, "a node has budgets"
            made = await self._budgets.create(budget, who=access.who)
            log_event(log, "budget.created", budget=made.id, org=made.org, by=access.who)

    def _row(self, key: KeyRecord) -> KeyRow:
        return key_row(key, self._keys.utc_ns())

    def _seen(self, org: str | None, access: Access) -> str | None:
        """The organisation that a list is of; None for all."""
        return access.org if org is None else self._directory.org(_own(org, access)).name

    def _check_models(self, names: Sequence[str] | None) -> None:
        if self._check_model is not None:
            for name in names or ():
                self._check_model(name)


def page_of(
    rows: Sequence[T], id_of: Callable[[T], str], limit: int, after: str | None
) -> tuple[Sequence[T], bool]:
    """At most `limit` rows behind the one whose id is `after`, and whether more come. Raises InvalidValue."""
    if not 1 <= limit <= MOST_ROWS:
        raise InvalidValue(f"'limit' is {limit}; it may be 1 to {MOST_ROWS}.", param="limit")
    start = 0
    if after is not None:
        places = (place for place, row in enumerate(rows) if id_of(row) == after)
        found = next(places, None)
        if found is None:
            raise InvalidValue(
                f"'after' is {after[:80]!r}, which is no id of this list.", param="after"
            )
        start = found + 1
    return rows[start : start + limit], len(rows) > start + limit


def _first_budget(new: NewOrg | NewTeam | NewKey, org: str) -> Budget | None:
    """What is asked for beside what it is for. Raises InvalidValue before anything is made."""
    if new.budget_usd is None:
        return None
    if new.budget_period is Period.BALANCE:
        raise InvalidValue(
            "A balance is made by itself and paid into: `llmhost budgets create --period balance`.",
            param="budget_period",
        )
    nano = nano_of(new.budget_usd, "budget_usd")
    return Budget(id="", org=org, period=new.budget_period, limit_nano=nano)


def _own(org: str, access: Access) -> str:
    """An organisation within sight. Raises NotFound, as for one that does not exist."""
    if access.org not in (None, org):
        raise no_org(org)
    return org
