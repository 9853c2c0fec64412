"""Money, sizes and their text: exact both ways, and anything unclear is refused."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.units import (
    NANO,
    dollars_to_nano,
    moment,
    nano_to_dollars,
    parse_bytes,
    show_bytes,
)


@given(st.integers(-(10**18), 10**18))
@settings(max_examples=150, deadline=None)
def test_nano_dollars_survive_the_way_to_text_and_back(nano: int) -> None:
    text = nano_to_dollars(nano)
    assert dollars_to_nano(text) == nano
    assert len(text.split(".")[1]) >= 2


@given(st.integers(0, 4 * 10**18))
def test_a_moment_is_exact_to_the_microsecond(utc_ns: int) -> None:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    assert moment(utc_ns) - epoch == timedelta(microseconds=utc_ns // 1000)
    assert moment(utc_ns).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "nano"),
    [("0.10", NANO // 10), ("0", 0), ("1", NANO), ("0.000000001", 1), ("-2.5", -5 * NANO // 2)],
)
def test_dollars_are_read_exactly(text: str, nano: int) -> None:
    assert dollars_to_nano(text) == nano


@pytest.mark.parametrize("text", ["", "abc", "1,5", "$1", "nan", "inf", "-inf", "1.2.3", "0x10"])
def test_what_is_no_amount_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="amount of dollars") as refusal:
        dollars_to_nano(text)
    assert repr(text) in str(refusal.value)


def test_a_part_of_a_nano_dollar_is_refused() -> None:
    with pytest.raises(ValueError, match="finer"):
        dollars_to_nano("0.0000000001")


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (NANO // 10, "0.10"),
        (0, "0.00"),
        (1, "0.000000001"),
        (-NANO, "-1.00"),
        (NANO - 1, "0.999999999"),
        (NANO, "1.00"),
        (12 * NANO + 1, "12.000000001"),
        (125 * 10**7, "1.25"),
    ],
)
def test_dollars_are_shown_with_two_places_at_least(nano: int, text: str) -> None:
    assert nano_to_dollars(nano) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 * 2**30),
        ("8g", 8 * 2**30),
        ("8Gi", 8 * 2**30),
        ("512 MB", 512 * 2**20),
        (" 1.5k ", 1536),
        ("4096", 4096),
        ("10b", 10),
        ("2TiB", 2 * 2**40),
    ],
)
def test_sizes_are_read_in_powers_of_1024(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "8XB", "1e3", "8 G B", "1,5g", "nan", "8GiBs"])
def test_what_is_no_size_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="not a size") as refusal:
        parse_bytes(text)
    assert repr(text) in str(refusal.value)


@given(st.integers(0, 2**50))
@settings(max_examples=100, deadline=None)
def test_a_size_shown_and_read_again_is_within_its_last_digit(count: int) -> None:
    unit = 1024 ** max((count.bit_length() - 1) // 10, 0)
    assert abs(parse_bytes(show_bytes(count)) - count) <= unit * 0.05 + 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (7 * 2**20, "7.0 MiB"), (2**40, "1.0 TiB")],
)
def test_sizes_are_shown_with_one_place(count: int, text: str) -> None:
    assert show_bytes(count) == text
