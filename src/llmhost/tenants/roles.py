"""What a key of each role may reach, and how far the sight of whoever asks goes."""

from dataclasses import dataclass
from enum import StrEnum

from llmhost.core.caller import Caller, Role
from llmhost.core.errors import Forbidden


class Right(StrEnum):
    """Something that some may and others may not."""

    INFER = "ask models"
    OWN_USAGE = "see its own usage"
    ORG_USAGE = "see its organisation's usage and ledger"
    MANAGE = "manage its organisation's teams and keys"
    REVIEW = "decide on its organisation's reviews"


RIGHTS = {
    Role.ADMIN: frozenset(Right),
    Role.BILLING: frozenset({Right.OWN_USAGE, Right.ORG_USAGE}),
    Role.MEMBER: frozenset({Right.INFER, Right.OWN_USAGE}),
    Role.INFERENCE: frozenset({Right.INFER}),
    Role.REVIEWER: frozenset({Right.REVIEW}),
}


@dataclass(frozen=True, slots=True)
class Access:
    """Who uses the admin API: the operator, for whom all is None, or a key, which sees its organisation at most."""

    org: str | None = None
    key_id: str | None = None
    role: Role | None = None

    @property
    def is_operator(self) -> bool:
        return self.role is None

    @property
    def who(self) -> str:
        """As logs say it."""
        return self.key_id or "operator"

    @property
    def usage_key(self) -> str | None:
        """The only key whose usage may be seen; None for all of `org`."""
        return None if self.may(Right.ORG_USAGE) else self.key_id

    def may(self, right: Right) -> bool:
        return self.role is None or right in RIGHTS[self.role]


OPERATOR = Access()
"""Whoever holds the node's admin token."""


def access_of(caller: Caller) -> Access:
    return Access(org=caller.org, key_id=caller.key_id, role=caller.role)


def check_right(caller: Caller, right: Right) -> None:
    """Raises Forbidden, saying what the key's role is for."""
    if right not in RIGHTS[caller.role]:
        raise refusal(caller.role, right)


def refusal(role: Role, right: Right | None) -> Forbidden:
    """Why a role is not enough; no right is enough where only the operator may."""
    allowed = ", ".join(known.value for known in Right if known in RIGHTS[role])
    wanted = "is for the node's admin token" if right is None else f"takes a key that may {right}"
    return Forbidden(f"A key of the role '{role}' may {allowed}; this {wanted}.")
