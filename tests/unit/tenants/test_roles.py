"""Roles: what each may, and that nobody but the operator may all."""

import pytest

from llmhost.core.caller import Caller, Role
from llmhost.core.errors import Forbidden
from llmhost.tenants.roles import OPERATOR, Right, access_of, check_right, refusal

MAY = {
    Role.ADMIN: set(Right),
    Role.BILLING: {Right.OWN_USAGE, Right.ORG_USAGE},
    Role.MEMBER: {Right.INFER, Right.OWN_USAGE},
    Role.INFERENCE: {Right.INFER},
    Role.REVIEWER: {Right.REVIEW},
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("right", Right)
def test_a_role_may_what_it_is_for(role: Role, right: Right) -> None:
    caller = Caller(key_id="k", org="acme", role=role)
    access = access_of(caller)

    assert access.may(right) == (right in MAY[role])
    assert OPERATOR.may(right)
    if right in MAY[role]:
        check_right(caller, right)
    else:
        with pytest.raises(Forbidden, match=f"role '{role}'"):
            check_right(caller, right)


@pytest.mark.parametrize("role", Role)
def test_a_key_sees_its_own_organisation_and_perhaps_only_itself(role: Role) -> None:
    access = access_of(Caller(key_id="k", org="acme", role=role))

    assert access.org == "acme"
    assert not access.is_operator
    assert access.who == "k"
    assert access.usage_key == (None if role in (Role.ADMIN, Role.BILLING) else "k")


def test_the_operator_sees_all() -> None:
    assert OPERATOR.is_operator
    assert (OPERATOR.org, OPERATOR.usage_key, OPERATOR.who) == (None, None, "operator")


def test_what_only_the_operator_may_is_said_to_be_so() -> None:
    assert "is for the node's admin token" in refusal(Role.ADMIN, None).message
