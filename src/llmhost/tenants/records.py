"""What is known of organisations, teams and keys, and what they may be called. Nothing in here is secret."""

import re
from dataclasses import dataclass, fields

from llmhost.core.caller import NO_LIMITS, Limits, Role
from llmhost.core.errors import InvalidValue

MOST = 10**9
"""Of any limit."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Org:
    """An organisation: whom a bill goes to. Times are UTC nanoseconds here and below."""

    name: str
    limits: Limits = NO_LIMITS
    created_ns: int
    disabled_ns: int | None = None
    """Since then its keys are refused."""

    @property
    def state(self) -> str:
        """`active` or `disabled`."""
        return "active" if self.disabled_ns is None else "disabled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Some of an organisation's keys, which share limits and are reported together."""

    org: str
    name: str
    limits: Limits = NO_LIMITS
    created_ns: int
    archived_ns: int | None = None
    """Since then its keys are refused, and it gets no new ones."""

    @property
    def id(self) -> str:
        return f"{self.org}/{self.name}"

    @property
    def state(self) -> str:
        """`active` or `archived`."""
        return "active" if self.archived_ns is None else "archived"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key without its secrets."""

    id: str
    """The public part, as logs and usage show it."""
    org: str
    team: str | None = None
    name: str | None = None
    role: Role = Role.MEMBER
    limits: Limits = NO_LIMITS
    models: tuple[str, ...] | None = None
    """Names that the key may use; None allows all."""
    created_ns: int
    expires_ns: int | None = None
    disabled_ns: int | None = None
    rotated_ns: int | None = None
    """When its newest secret was made, if that is not its first."""
    revoked_ns: int | None = None

    def state(self, utc_ns: int) -> str:
        """`active`, `revoked`, `expired` or `disabled`."""
        if self.revoked_ns is not None:
            return "revoked"
        if self.expires_ns is not None and utc_ns >= self.expires_ns:
            return "expired"
        return "active" if self.disabled_ns is None else "disabled"


def check_name(name: str, param: str) -> None:
    """Raises InvalidValue for what can't name an organisation or a team, and stand in a path."""
    if _NAME.fullmatch(name) is None or name in (".", ".."):
        raise InvalidValue(
            f"{name[:80]!r} can't be a name: 1 to 64 letters, digits, '.', '_' or '-'.", param=param
        )


def check_limits(limits: Limits) -> None:
    """Raises InvalidValue, naming the limit that makes no sense."""
    for field in fields(limits):
        value = getattr(limits, field.name)
        if value is not None and not 1 <= value <= MOST:
            raise InvalidValue(
                f"{field.name} is {value}; it may be 1 to {MOST}. Leave it out for no limit of its own.",
                param=field.name,
            )


def check_key(key: KeyRecord) -> None:
    """Raises InvalidValue for anything that a key can't have, whatever else there is."""
    if key.team is not None:
        check_name(key.team, "team")
    if key.name is not None and not (key.name.isprintable() and len(key.name) <= 64):
        raise InvalidValue("A key's name is at most 64 printable characters.", param="name")
    check_limits(key.limits)
    if key.models is not None and (not key.models or not all(key.models)):
        raise InvalidValue(
            "models must name at least one model; leave it out to allow all.", param="models"
        )
