import pytest

from llmhost.core.units import show_duration


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (12_000_000, "12ms"),
        (100, "1ms"),
        (999_100_000, "1s"),
        (10**9, "1s"),
        (1_500_000_000, "1.5s"),
        (10 * 10**9, "10s"),
        (59_999_900_000, "1m0s"),
        (90_250_000_000, "1m30.25s"),
        (360 * 10**9, "6m0s"),
        (3600 * 10**9, "1h0m0s"),
        (3_661_001_000_000, "1h1m1.001s"),
    ],
)
def test_durations_read_as_openai_writes_them(ns: int, text: str) -> None:
    assert show_duration(ns) == text
