"""What the admin API takes and gives of organisations, teams and keys. Times are UTC seconds.

In a change, what is absent stays as it is, and null takes away.
"""

from dataclasses import fields, replace

import msgspec
from msgspec import UNSET, UnsetType

from llmhost.core.caller import Limits, Role
from llmhost.core.errors import InvalidValue
from llmhost.tenants.periods import Period
from llmhost.tenants.records import KeyRecord, Org, Team

LAST_S = 9_000_000_000
"""A UTC time in the year 2255: nanoseconds up to it fit in 64 bits."""
DAY_S = 86_400
_LIMITS = tuple(field.name for field in fields(Limits))


class _LimitFields(msgspec.Struct, frozen=True, kw_only=True):
    """Most per minute, and most at the same time. Null: no limit of its own."""

    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    max_concurrency: int | None = None


class _LimitChanges(msgspec.Struct, frozen=True, kw_only=True):
    requests_per_minute: int | UnsetType | None = UNSET
    input_tokens_per_minute: int | UnsetType | None = UNSET
    output_tokens_per_minute: int | UnsetType | None = UNSET
    max_concurrency: int | UnsetType | None = UNSET

    def limits(self, before: Limits) -> Limits:
        given = {name: getattr(self, name) for name in _LIMITS}
        return replace(before, **{name: v for name, v in given.items() if v is not UNSET})


class _NewFields(_LimitFields, frozen=True, kw_only=True):
    """The same with the most dollars that may be spent per `day` or `month`, or in `total`. Null: no budget."""

    budget_usd: str | None = None
    budget_period: Period = Period.TOTAL


class NewOrg(_NewFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that makes an organisation."""

    name: str


class OrgChange(_LimitChanges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that changes an organisation. Keys of a disabled one are refused."""

    disabled: bool | UnsetType = UNSET

    def apply(self, org: Org, now_ns: int) -> Org:
        disabled_ns = _since(self.disabled, org.disabled_ns, now_ns)
        return replace(org, limits=self.limits(org.limits), disabled_ns=disabled_ns)


class NewTeam(_NewFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that makes a team of an organisation."""

    org: str
    name: str


class TeamChange(_LimitChanges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that changes a team. Keys of an archived one are refused."""

    archived: bool | UnsetType = UNSET

    def apply(self, team: Team, now_ns: int) -> Team:
        archived_ns = _since(self.archived, team.archived_ns, now_ns)
        return replace(team, limits=self.limits(team.limits), archived_ns=archived_ns)


class NewKey(_NewFields, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that makes a key."""

    org: str
    team: str | None = None
    name: str | None = None
    role: Role = Role.MEMBER
    models: list[str] | None = None
    expires_at: int | None = None


class KeyChange(_LimitChanges, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that changes a key. A disabled one is refused until it is enabled again."""

    name: str | UnsetType | None = UNSET
    role: Role | UnsetType = UNSET
    models: list[str] | UnsetType | None = UNSET
    expires_at: int | UnsetType | None = UNSET
    disabled: bool | UnsetType = UNSET

    def apply(self, key: KeyRecord, now_ns: int) -> KeyRecord:
        models = self.models
        return replace(
            key,
            name=key.name if self.name is UNSET else self.name,
            role=key.role if self.role is UNSET else self.role,
            limits=self.limits(key.limits),
            models=key.models if models is UNSET else None if models is None else tuple(models),
            expires_ns=key.expires_ns if self.expires_at is UNSET else expiry_ns(self.expires_at),
            disabled_ns=_since(self.disabled, key.disabled_ns, now_ns),
        )


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body that gives a key a new secret. The old one ends after so many seconds."""

    overlap_s: int = DAY_S


class OrgRow(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation. `state` is active or disabled."""

    id: str
    name: str
    requests_per_minute: int | None
    input_tokens_per_minute: int | None
    output_tokens_per_minute: int | None
    max_concurrency: int | None
    state: str
    created_at: int
    disabled_at: int | None


class TeamRow(msgspec.Struct, frozen=True, kw_only=True):
    """A team; its id is ORG/NAME. `state` is active or archived."""

    id: str
    org: str
    name: str
    requests_per_minute: int | None
    input_tokens_per_minute: int | None
    output_tokens_per_minute: int | None
    max_concurrency: int | None
    state: str
    created_at: int
    archived_at: int | None


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret. `state` is active, disabled, expired or revoked."""

    id: str
    org: str
    team: str | None
    name: str | None
    role: Role
    models: list[str] | None
    requests_per_minute: int | None
    input_tokens_per_minute: int | None
    output_tokens_per_minute: int | None
    max_concurrency: int | None
    state: str
    created_at: int
    expires_at: int | None
    disabled_at: int | None
    rotated_at: int | None
    revoked_at: int | None


class SecretRow(KeyRow, frozen=True, kw_only=True):
    """The same with the whole text of the key, which is shown this once."""

    key: str


class OrgPage(msgspec.Struct, frozen=True, kw_only=True):
    """Organisations, oldest first. The next page comes `after` `last_id`."""

    data: list[OrgRow]
    has_more: bool
    last_id: str | None


class TeamPage(msgspec.Struct, frozen=True, kw_only=True):
    """Teams, oldest first. The next page comes `after` `last_id`."""

    data: list[TeamRow]
    has_more: bool
    last_id: str | None


class KeyPage(msgspec.Struct, frozen=True, kw_only=True):
    """Keys, oldest first. The next page comes `after` `last_id`."""

    data: list[KeyRow]
    has_more: bool
    last_id: str | None


def limits_of(new: NewOrg | NewTeam | NewKey) -> Limits:
    return Limits(**_limits(new))


def org_row(org: Org) -> OrgRow:
    return OrgRow(
        id=org.name,
        name=org.name,
        state=org.state,
        created_at=org.created_ns // 10**9,
        disabled_at=_s(org.disabled_ns),
        **_limits(org.limits),
    )


def team_row(team: Team) -> TeamRow:
    return TeamRow(
        id=team.id,
        org=team.org,
        name=team.name,
        state=team.state,
        created_at=team.created_ns // 10**9,
        archived_at=_s(team.archived_ns),
        **_limits(team.limits),
    )


def key_row(key: KeyRecord, utc_ns: int) -> KeyRow:
    return KeyRow(
        id=key.id,
        org=key.org,
        team=key.team,
        name=key.name,
        role=key.role,
        models=None if key.models is None else list(key.models),
        state=key.state(utc_ns),
        created_at=key.created_ns // 10**9,
        expires_at=_s(key.expires_ns),
        disabled_at=_s(key.disabled_ns),
        rotated_at=_s(key.rotated_ns),
        revoked_at=_s(key.revoked_ns),
        **_limits(key.limits),
    )


def secret_row(row: KeyRow, token: str) -> SecretRow:
    return SecretRow(key=token, **{name: getattr(row, name) for name in row.__struct_fields__})


def expiry_ns(expires_at: int | None) -> int | None:
    """Raises InvalidValue for a time that 64 bits can't hold."""
    if expires_at is None:
        return None
    if abs(expires_at) > LAST_S:
        raise InvalidValue(
            f"'expires_at' is {expires_at}, and {LAST_S} is the most it may be.", param="expires_at"
        )
    return expires_at * 10**9


def _limits(holder: object) -> dict[str, int | None]:
    return {name: getattr(holder, name) for name in _LIMITS}


def _since(wanted: bool | UnsetType, since_ns: int | None, now_ns: int) -> int | None:
    """When a state began that is wanted, or None; what it was where nothing is said."""
    if wanted is UNSET:
        return since_ns
    return (since_ns or now_ns) if wanted else None


def _s(ns: int | None) -> int | None:
    return None if ns is None else ns // 10**9
