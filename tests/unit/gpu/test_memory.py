"""The memory ledger: leases never exceed the device, and a refusal carries the numbers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.errors import DoesNotFit
from llmhost.gpu.memory import DeviceMemory

GIB = 2**30

acts = st.lists(
    st.tuples(st.sampled_from("abcde"), st.integers(0, 70), st.integers(0, 70)), max_size=30
)


@given(st.integers(0, 100), acts)
@settings(max_examples=150, deadline=None)
def test_leases_never_exceed_the_device(capacity: int, acts: list[tuple[str, int, int]]) -> None:
    memory = DeviceMemory("cuda:0", capacity)
    expected: dict[str, int] = {}
    for holder, weights, kv in acts:
        if holder in expected:
            memory.give_back(holder)
            del expected[holder]
        elif sum(expected.values()) + weights + kv <= capacity:
            lease = memory.grant(holder, weights_bytes=weights, kv_bytes=kv)
            expected[holder] = lease.total_bytes
            assert lease.total_bytes == weights + kv
        else:
            with pytest.raises(DoesNotFit):
                memory.grant(holder, weights_bytes=weights, kv_bytes=kv)
        assert memory.leased_bytes == sum(expected.values()) <= capacity
        assert memory.free_bytes == capacity - memory.leased_bytes
        assert {lease.holder for lease in memory.leases()} == set(expected)


def test_a_refusal_says_what_was_asked_what_is_free_and_who_has_the_rest() -> None:
    memory = DeviceMemory("cuda:0", 10 * GIB)
    memory.grant("small@1", weights_bytes=2 * GIB, kv_bytes=GIB)
    with pytest.raises(DoesNotFit) as refusal:
        memory.grant("large@2", weights_bytes=8 * GIB, kv_bytes=GIB // 2)
    message = refusal.value.message
    for part in (
        "large@2",
        "8.5 GiB",
        "cuda:0",
        "8.0 GiB weights",
        "512.0 MiB KV",
        "7.0 GiB of 10.0 GiB",
    ):
        assert part in message
    assert "small@1 3.0 GiB" in message
    assert memory.leased_bytes == 3 * GIB


def test_an_empty_device_names_no_holder() -> None:
    with pytest.raises(DoesNotFit) as refusal:
        DeviceMemory("cpu:0", 5).grant("a", weights_bytes=6, kv_bytes=0)
    assert "loaded:" not in refusal.value.message


def test_giving_back_twice_or_without_a_lease_changes_nothing() -> None:
    memory = DeviceMemory("cuda:0", 10)
    memory.grant("a", weights_bytes=4, kv_bytes=0)
    memory.grant("b", weights_bytes=4, kv_bytes=0)
    for _ in range(2):
        memory.give_back("a")
        memory.give_back("nobody")
    assert memory.free_bytes == 6


def test_nobody_holds_two_leases() -> None:
    memory = DeviceMemory("cuda:0", 10)
    memory.grant("a", weights_bytes=1, kv_bytes=0)
    with pytest.raises(AssertionError):
        memory.grant("a", weights_bytes=1, kv_bytes=0)


def test_the_last_byte_can_be_leased_and_not_one_more() -> None:
    memory = DeviceMemory("cuda:0", 10)
    memory.grant("a", weights_bytes=7, kv_bytes=3)
    assert memory.free_bytes == 0
    with pytest.raises(DoesNotFit):
        memory.grant("b", weights_bytes=1, kv_bytes=0)
