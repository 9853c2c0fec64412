"""Five hundred streams at once on a budget for forty answers: it is used up, and not passed by a nano-dollar."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from crowd import Told, crowd
from server_process import Node, eventually

pytestmark = pytest.mark.bars

CROWD = 500
AFFORDED = 40
LEAST_USED = 0.95
INPUT_NANO, OUTPUT_NANO = 1000, 2000
PROMPT = "a prompt of six words altogether"

SETTINGS = """
[models.echo]
engine = "fake"
max_batch_size = 512
max_queue = 1000
[models.echo.price]
input = "1.00"
cached_input = "1.00"
output = "2.00"
[models.echo.options]
token_delay_ms = 5
"""

WIDTHS = {
    "answers within one slice": 200,
    "answers of several slices": 1000,
    "answers of a slice and one token": 257,
}


def nano(dollars: str) -> int:
    whole, _, part = dollars.partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0"))


def dollars(amount_nano: int) -> str:
    return f"{amount_nano // 10**9}.{amount_nano % 10**9:09d}"


def how(told: Told) -> str:
    """How one of the crowd ended."""
    if told.status != 200:
        return "refused"
    if not told.is_done:
        return "broken off"
    return "cut" if told.usage["llmhost"].get("stop") == "budget" else "whole"


@pytest.mark.parametrize("over", ["key", "team", "org", "all three"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_crowd_uses_a_budget_up_and_never_passes_it(
    new_node: Callable[..., Node], bar: Callable[[str], None], over: str, width: str
) -> None:
    most_tokens = WIDTHS[width]
    node = new_node(SETTINGS).start()
    made = node.create_key("acme", team="red")
    whole_nano = len(PROMPT.split()) * INPUT_NANO + most_tokens * OUTPUT_NANO
    limit_nano = AFFORDED * whole_nano
    ids = [make_budget(node, made, level, limit_nano) for level in levels(over)]
    body = {
        "model": "echo",
        "prompt": PROMPT,
        "max_tokens": most_tokens,
        "stream_options": {"include_usage": True},
    }

    told = crowd(node.port, "/v1/completions", [body] * CROWD, headers=holder(made))

    eventually(lambda: node.is_idle("echo"), "something goes on")
    rows = [node.admin("GET", f"/budgets/{id_}").json() for id_ in ids]
    entries = {entry["request_id"]: entry for entry in node.entries()}
    paid_nano = sum(entry["amount_nano"] for entry in entries.values())
    ways = Counter(map(how, told))
    refused = [one for one in told if one.status != 200]
    served = [one for one in told if one.status == 200]

    assert paid_nano <= limit_nano, f"overshot by {paid_nano - limit_nano} nano-dollars"
    assert paid_nano >= LEAST_USED * limit_nano, f"only {paid_nano / limit_nano:.1%} were used"
    for row in rows:
        assert nano(row["held_usd"]) == 0, row
        assert nano(row["spent_usd"]) == paid_nano, row
    assert len(served) >= AFFORDED * LEAST_USED
    assert all(one.is_done for one in served), ways
    for one in served:
        entry, usage = entries[one.request_id], one.usage
        assert entry["tokens"]["output"] == usage["completion_tokens"] == len(one.text.split())
        assert usage["completion_tokens"] == most_tokens or how(one) == "cut"
    for one in refused:
        assert one.status == 429, one.chunks
        assert b'"type":"insufficient_quota"' in one.chunks[0], one.chunks
        assert one.headers["x-should-retry"] == "false"
        assert entries[one.request_id]["amount_nano"] == 0
    assert node.verified()["ok"]
    assert "Traceback" not in node.log()
    bar(
        f"{CROWD} streams at once on a budget of {over} for {AFFORDED} {width} ({most_tokens} tokens): overshoot 0,"
        f" {paid_nano / limit_nano:.2%} used; {dict(ways)}"
    )


def levels(over: str) -> list[str]:
    return ["key", "team", "org"] if over == "all three" else [over]


def make_budget(node: Node, made: dict[str, Any], level: str, limit_nano: int) -> str:
    whose = {
        "key": {"key": made["id"]},
        "team": {"org": made["org"], "team": made["team"]},
        "org": {"org": made["org"]},
    }[level]
    wish = {**whose, "period": "total", "usd": dollars(limit_nano)}
    answer = node.admin("POST", "/budgets", wish)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def holder(made: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {made['key']}"}
