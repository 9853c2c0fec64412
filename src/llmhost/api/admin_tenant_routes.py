"""The admin routes of organisations, teams and keys."""

from litestar import delete, get, patch, post
from litestar.types import ControllerRouterHandler

from llmhost.api.admin_access import Visitor
from llmhost.api.admin_tenants import PAGE_ROWS, TenantAdmin
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
)
from llmhost.api.params import FromPath, FromQuery, JSONBody
from llmhost.tenants.roles import Right


def org_routes(tenants: TenantAdmin) -> list[ControllerRouterHandler]:
    """A key sees its own organisation; the operator makes and changes them."""

    @get("/orgs", sync_to_thread=False, needs=Right.OWN_USAGE)
    def list_orgs(
        request: Visitor, limit: FromQuery[int] = PAGE_ROWS, after: FromQuery[str | None] = None
    ) -> OrgPage:
        """Organisations, oldest first."""
        return tenants.list_orgs(request.user, limit=limit, after=after)

    @post("/orgs")
    async def create_org(data: JSONBody[NewOrg]) -> OrgRow:
        """Make an organisation."""
        return await tenants.create_org(data)

    @get("/orgs/{org:str}", sync_to_thread=False, needs=Right.OWN_USAGE)
    def show_org(request: Visitor, org: FromPath[str]) -> OrgRow:
        """One organisation."""
        return tenants.show_org(org, request.user)

    @patch("/orgs/{org:str}")
    async def update_org(org: FromPath[str], data: JSONBody[OrgChange]) -> OrgRow:
        """Change an organisation's limits, disable it or enable it again."""
        return await tenants.update_org(org, data)

    return [list_orgs, create_org, show_org, update_org]


def team_routes(tenants: TenantAdmin) -> list[ControllerRouterHandler]:
    """Teams, for the operator and for keys that manage their organisation."""

    @get("/teams", sync_to_thread=False, needs=Right.MANAGE)
    def list_teams(
        request: Visitor,
        org: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> TeamPage:
        """Teams, oldest first."""
        return tenants.list_teams(request.user, org=org, limit=limit, after=after)

    @post("/teams", needs=Right.MANAGE)
    async def create_team(request: Visitor, data: JSONBody[NewTeam]) -> TeamRow:
        """Make a team."""
        return await tenants.create_team(data, request.user)

    @get("/teams/{org:str}/{team:str}", sync_to_thread=False, needs=Right.MANAGE)
    def show_team(request: Visitor, org: FromPath[str], team: FromPath[str]) -> TeamRow:
        """One team."""
        return tenants.show_team(org, team, request.user)

    @patch("/teams/{org:str}/{team:str}", needs=Right.MANAGE)
    async def update_team(
        request: Visitor, org: FromPath[str], team: FromPath[str], data: JSONBody[TeamChange]
    ) -> TeamRow:
        """Change a team's limits, archive it or bring it back."""
        return await tenants.update_team(org, team, data, request.user)

    @delete("/teams/{org:str}/{team:str}", status_code=200, needs=Right.MANAGE)
    async def archive_team(request: Visitor, org: FromPath[str], team: FromPath[str]) -> TeamRow:
        """Archive a team: its keys are refused, and what they used stays in the ledger."""
        return await tenants.archive_team(org, team, request.user)

    return [list_teams, create_team, show_team, update_team, archive_team]


def key_routes(tenants: TenantAdmin) -> list[ControllerRouterHandler]:
    """Keys, for the operator and for keys that manage their organisation."""

    @get("/keys", sync_to_thread=False, needs=Right.MANAGE)
    def list_keys(
        request: Visitor,
        org: FromQuery[str | None] = None,
        team: FromQuery[str | None] = None,
        limit: FromQuery[int] = PAGE_ROWS,
        after: FromQuery[str | None] = None,
    ) -> KeyPage:
        """API keys without their secrets, oldest first."""
        return tenants.list_keys(request.user, org=org, team=team, limit=limit, after=after)

    @post("/keys", needs=Right.MANAGE)
    async def create_key(request: Visitor, data: JSONBody[NewKey]) -> SecretRow:
        """Make a key. Its text is in the answer, this once."""
        return await tenants.create_key(data, request.user)

    @get("/keys/{key_id:str}", sync_to_thread=False, needs=Right.MANAGE)
    def show_key(request: Visitor, key_id: FromPath[str]) -> KeyRow:
        """One key, by its id or the beginning of it."""
        return tenants.show_key(key_id, request.user)

    @patch("/keys/{key_id:str}", needs=Right.MANAGE)
    async def update_key(
        request: Visitor, key_id: FromPath[str], data: JSONBody[KeyChange]
    ) -> KeyRow:
        """Rename a key, change its role, limits, models or expiry, disable it or enable it again."""
        return await tenants.update_key(key_id, data, request.user)

    @post("/keys/{key_id:str}/rotate", status_code=200, needs=Right.MANAGE)
    async def rotate_key(
        request: Visitor, key_id: FromPath[str], data: JSONBody[Rotation | None] = None
    ) -> SecretRow:
        """Give a key a new secret, which is in the answer, this once. The old one ends after the overlap."""
        return await tenants.rotate_key(key_id, data or Rotation(), request.user)

    @delete("/keys/{key_id:str}", status_code=200, needs=Right.MANAGE)
    async def revoke_key(request: Visitor, key_id: FromPath[str]) -> KeyRow:
        """Revoke a key by its id or the beginning of it."""
        return await tenants.revoke_key(key_id, request.user)

    return [list_keys, create_key, show_key, update_key, rotate_key, revoke_key]
