"""Wrong keys are limited by address; right ones are not shut out by them."""

import pytest

from llmhost.tenants.refusals import LimitReached
from llmhost.tenants.strangers import Strangers, address_of, networks_of

SECOND = 10**9


def fail(strangers: Strangers, times: int, address: str = "a", now_ns: int = 0) -> list[bool]:
    return [strangers.failed(address, "wrong", now_ns) for _ in range(times)]


def is_looked_at(strangers: Strangers, bearer: str | None, address: str = "a", at: int = 0) -> bool:
    try:
        strangers.check(address, bearer, at)
    except LimitReached as refusal:
        assert (refusal.dimension, refusal.limit) == ("ip", "failed_auth")
        return False
    return True


def test_an_address_that_failed_too_often_is_not_looked_at_for_a_while() -> None:
    strangers = Strangers(3)
    assert fail(strangers, 3) == [False, False, True]
    with pytest.raises(LimitReached) as refused:
        strangers.check("a", "right", 0)

    assert refused.value.retry_after_s == 20
    assert is_looked_at(strangers, None, "b")
    assert is_looked_at(strangers, None, "a", 20 * SECOND)


def test_a_key_that_worked_from_there_goes_on_working() -> None:
    strangers = Strangers(3)
    strangers.worked("a", "right")
    fail(strangers, 9)

    assert is_looked_at(strangers, "right")
    assert not is_looked_at(strangers, "guess")
    assert not is_looked_at(strangers, None)


def test_a_key_that_stopped_working_is_a_wrong_one() -> None:
    strangers = Strangers(1)
    strangers.worked("a", "right")
    strangers.failed("a", "right", 0)

    assert not is_looked_at(strangers, "right")


def test_failures_beyond_the_limit_do_not_lengthen_the_wait() -> None:
    strangers = Strangers(60)
    fail(strangers, 1000)

    assert is_looked_at(strangers, None, at=SECOND)


def test_zero_limits_nothing() -> None:
    strangers = Strangers(0)
    fail(strangers, 1000)

    assert is_looked_at(strangers, None)
    assert len(strangers) == 0


def test_addresses_are_forgotten_when_they_owe_nothing() -> None:
    strangers = Strangers(60)
    for i in range(10_000):
        strangers.failed(str(i), None, i * SECOND // 10)

    assert len(strangers) < 200


TRUSTED = ("10.0.0.0/8", "192.0.2.7", "fd00::/8")


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "trusted", "address"),
    [
        ("198.51.100.1", None, TRUSTED, "198.51.100.1"),
        ("198.51.100.1", "203.0.113.9", TRUSTED, "198.51.100.1"),
        ("10.1.1.1", "203.0.113.9", (), "10.1.1.1"),
        ("10.1.1.1", "203.0.113.9", TRUSTED, "203.0.113.9"),
        ("10.1.1.1", "1.1.1.1, 203.0.113.9", TRUSTED, "203.0.113.9"),
        ("10.1.1.1", "203.0.113.9,192.0.2.7, 10.9.9.9", TRUSTED, "203.0.113.9"),
        ("10.1.1.1", "10.2.2.2", TRUSTED, "10.2.2.2"),
        ("10.1.1.1", "nonsense", TRUSTED, "10.1.1.1"),
        ("10.1.1.1", "203.0.113.9, nonsense", TRUSTED, "10.1.1.1"),
        ("10.1.1.1", "203.0.113.9:4711", TRUSTED, "203.0.113.9"),
        ("fd00::1", "[2001:db8:1:2:3::4]:99", TRUSTED, "2001:db8:1:2::/64"),
        ("::ffff:198.51.100.1", None, (), "198.51.100.1"),
        ("2001:db8::5", None, (), "2001:db8::/64"),
        (None, None, (), "-"),
        ("testclient", None, (), "testclient"),
    ],
)
def test_who_is_counted(
    peer: str | None, forwarded_for: str | None, trusted: tuple[str, ...], address: str
) -> None:
    assert address_of(peer, forwarded_for, networks_of(trusted)) == address
