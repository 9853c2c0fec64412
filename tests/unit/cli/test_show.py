"""Columns for people."""

from llmhost.cli import show


def test_numbers_stand_right_and_text_left():
    data = [{"name": "a", "n": 5}, {"name": "long", "n": 12345}, {"name": None, "n": None}]

    assert show.table(data, {"name": "name", "count": "n"}) == (
        "NAME  COUNT\na         5\nlong  12345\n-         -"
    )


def test_text_from_elsewhere_keeps_to_its_line_and_cannot_steer_the_terminal():
    assert show.table([{"x": "a\x1b[31m\nb\tc"}], {"x": "x"}) == "X\na[31m b c"


def test_ages_have_one_unit():
    now = 10**18
    seconds = [0, 119, 120, 7199, 7200, 172799, 172800, -5]

    assert [show.age(now - s * 10**9, now) for s in seconds] == [
        *("0s", "119s", "2m", "119m", "2h", "47h", "2d", "0s")
    ]
    assert show.age(None) is None


def test_amounts_and_dates():
    assert show.dollars(1_500_000_000) == "$1.50"
    assert show.date(0) == "1970-01-01 00:00"
    assert show.price({"input": "1", "output": "2"}) == "1 / - / 2"
    assert (show.dollars(None), show.date(None), show.price(None), show.memory(None)) == (None,) * 4
