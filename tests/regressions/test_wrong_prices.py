"""Cached tokens were charged twice, prices were mistyped or missing, and what a key had paid for changed afterwards."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from paid_models import CACHED_NANO, INPUT_NANO, OUTPUT_NANO
from server_process import Node, eventually, http_bytes

Entries = Callable[[], list[dict[str, Any]]]
Complete = Callable[..., httpx.Response]

LONG = " ".join(f"w{i}" for i in range(100))


def test_cached_tokens_are_not_charged_twice(entries: Entries, complete: Complete) -> None:
    for _ in range(3):
        complete(LONG)

    for entry in entries():
        tokens = entry["tokens"]
        assert tokens["fresh_input"] + tokens["cached_input"] == 100
        assert entry["amount_nano"] == (
            tokens["fresh_input"] * INPUT_NANO
            + tokens["cached_input"] * CACHED_NANO
            + tokens["output"] * OUTPUT_NANO
        )
    first, *later = entries()
    assert first["tokens"]["cached_input"] == 0
    assert all(entry["tokens"]["cached_input"] > 50 for entry in later)


def test_a_model_without_a_cached_price_takes_its_input_price_for_both(
    entries: Entries, complete: Complete
) -> None:
    for _ in range(2):
        complete(LONG, model="slow", max_tokens=1)

    assert entries()[1]["tokens"]["cached_input"] > 50
    assert {entry["amount_nano"] for entry in entries()} == {100 * INPUT_NANO + OUTPUT_NANO}


def test_nobody_is_served_or_billed_by_anothers_cache(
    node: Node, entries: Entries, complete: Complete
) -> None:
    """What one organisation had computed was given to another, and told it what had been asked."""
    complete(LONG)
    other = node.create_key("another-cache")["key"]
    answer = node.post(
        "/v1/completions",
        {"model": "echo", "prompt": LONG, "max_tokens": 1},
        headers={"authorization": f"Bearer {other}"},
    )

    entry = node.entry(answer.headers["x-request-id"])
    assert entry["tokens"]["cached_input"] == 0
    assert answer.json()["usage"].get("prompt_tokens_details", {}).get("cached_tokens", 0) == 0


def test_a_price_that_changes_is_not_that_of_what_runs(
    new_node: Callable[..., Node],
) -> None:
    node = new_node().start()
    key = {"authorization": f"Bearer {node.create_key('acme')['key']}"}
    body = {"model": "slow", "prompt": "x", "max_tokens": 100, "stream": True}
    with node.raw() as running:
        running.sendall(http_bytes("/v1/completions", body, headers=key))
        eventually(lambda: node.loaded("slow")["running"], "nothing runs")
        set_ = node.admin(
            "POST",
            "/prices",
            {"model": "slow", "input": "3.00", "output": "5.00"},
        )
        assert set_.status_code == 201, set_.text
        eventually(lambda: node.is_idle("slow"), "it does not end")
    after = node.post("/v1/completions", {**body, "stream": False, "max_tokens": 1}, headers=key)

    entries = node.entries()
    assert [entry["amount_nano"] for entry in entries] == [
        INPUT_NANO + 100 * OUTPUT_NANO,
        3_000 + 5_000,
    ]
    assert after.status_code == 200
    assert len({entry["price_version"] for entry in entries}) == 2


@pytest.mark.parametrize("factor", [100, 0.001])
def test_a_slip_in_a_price_has_to_be_meant(node: Node, factor: float) -> None:
    """A price that was wrong by factors poisoned what had been spent until rows were deleted by hand."""
    before = node.admin("GET", "/prices", model="echo").json()
    change = {"model": "echo", "input": f"{factor:.4f}", "output": "2.00"}

    answer = node.admin("POST", "/prices", change)

    assert answer.status_code in (400, 409), answer.text
    assert node.admin("GET", "/prices", model="echo").json() == before
