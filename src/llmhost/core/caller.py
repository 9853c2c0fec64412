"""Who asks, as authentication finds it, and how much one key, team or organisation may ask for."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much at once a key, a team or an organisation may ask for. None limits nothing of its own."""

    requests_per_minute: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    """Requests that run at the same time."""


NO_LIMITS = Limits()


class Role(StrEnum):
    """What a key is for, see `tenants/roles.py`."""

    ADMIN = "admin"
    BILLING = "billing"
    MEMBER = "member"
    INFERENCE = "inference"
    REVIEWER = "reviewer"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as found by authentication. The secret itself never gets this far."""

    key_id: str | None
    org: str
    team: str | None = None
    models: tuple[str, ...] | None = None
    """Names that the key may use; None allows all."""
    role: Role = Role.MEMBER
    limits: Limits = NO_LIMITS
    """Of the key itself. Those of its team and organisation hold for all their keys together."""
    team_limits: Limits = NO_LIMITS
    org_limits: Limits = NO_LIMITS

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models

    def scope(self, width: str) -> str:
        """Those who share with this caller when sharing is as wide as `key`, `team`, `org` or `public`.

        A caller without a key or a team has those of its organisation.
        """
        if width == "public":
            return "public"
        if width == "key" and self.key_id is not None:
            return f"key:{self.key_id}"
        if width == "team" and self.team is not None:
            return f"team:{self.org}\0{self.team}"  # names may hold anything else
        return f"org:{self.org}"


LOCAL_CALLER = Caller(key_id=None, org="local")
"""Whoever asks a loopback-only server while no key exists."""
