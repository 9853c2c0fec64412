"""Streams were billed at nothing, twice, or differently from what reports and their own breakdown said."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from paid_models import INPUT_NANO, OUTPUT_NANO, Key
from server_process import Node, chat_body, events, eventually

Entries = Callable[[], list[dict[str, Any]]]
Complete = Callable[..., httpx.Response]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("options", [{}, {"include_usage": True}, {"include_usage": False}])
def test_a_streamed_answer_is_never_recorded_as_free(
    node: Node, key: Key, entries: Entries, path: str, options: dict[str, Any]
) -> None:
    more: dict[str, Any] = {"stream": True, "max_tokens": 7}
    body = {"model": "echo", "prompt": "say something", **more}
    if "chat" in path:
        body = chat_body(**more)
    if options:
        body["stream_options"] = options

    response = node.post(path, body, headers=key)

    assert list(events(response))[-1] == "[DONE]"
    (entry,) = entries()
    assert entry["tokens"]["output"] == 7
    assert entry["amount_nano"] == (entry["tokens"]["fresh_input"] * INPUT_NANO + 7 * OUTPUT_NANO)
    assert entry["amount_nano"] > 7 * OUTPUT_NANO


def test_a_stream_is_counted_once_in_every_sum(
    node: Node, key: Key, entries: Entries, complete: Complete, org: str
) -> None:
    before = node.metric("llmhost_amount_nano_total", model_name="echo@1")
    for _ in range(5):
        complete(stream=True, stream_options={"include_usage": True})

    paid = sum(entry["amount_nano"] for entry in entries())
    usage = {by: node.admin("GET", "/usage", by=by).json()["data"] for by in ("org", "key", "team")}
    (by_org,) = [row for row in usage["org"] if row["org"] == org]
    key_id = entries()[0]["key_id"]
    (by_key,) = [row for row in usage["key"] if row["key"] == key_id]

    assert len(entries()) == 5
    assert paid == 5 * (3 * INPUT_NANO + 5 * OUTPUT_NANO)
    for row in (by_org, by_key):
        assert (row["requests"], row["output_tokens"], row["amount_nano"]) == (5, 25, paid)
    assert node.metric("llmhost_amount_nano_total", model_name="echo@1") == before + paid


def test_a_streams_own_usage_is_what_is_billed(entries: Entries, complete: Complete) -> None:
    for n in (1, 3):
        response = complete(stream=True, n=n, stream_options={"include_usage": True})
        usage = list(events(response))[-2]["usage"]
        entry = entries()[-1]
        tokens = entry["tokens"]
        assert tokens["output"] == usage["completion_tokens"] == 5 * n
        assert tokens["fresh_input"] + tokens["cached_input"] == usage["prompt_tokens"]


@pytest.mark.parametrize("after", [1, 20])
def test_disconnecting_clients_pay_for_what_was_made_and_no_more(
    node: Node, key: Key, entries: Entries, after: int
) -> None:
    """Leaving early was free, or was billed as if the answer had come to its end, and the engine went on with it."""
    body = {"model": "slow", "prompt": "x y", "max_tokens": 5000, "stream": True}
    fed = node.metric("llmhost_step_tokens_total", model_name="slow@1")
    heard = 0
    with node.http.stream("POST", f"{node.url}/v1/completions", json=body, headers=key) as response:
        for event in events(response):
            heard += len(event["choices"][0]["text"].split())
            if heard >= after:
                break

    (entry,) = eventually(entries, "it was not metered")
    made = entry["tokens"]["output"]
    eventually(lambda: node.is_idle("slow"), "its sequence goes on")
    fed = node.metric("llmhost_step_tokens_total", model_name="slow@1") - fed
    assert entry["outcome"] == "cancelled"
    assert heard <= made < 5000
    assert entry["amount_nano"] == 2 * INPUT_NANO + made * OUTPUT_NANO
    assert made - 1 <= fed - 2 <= made + 2  # nothing was made that nobody pays for


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_stream_is_not_charged(
    node: Node, entries: Entries, complete: Complete, stream: bool
) -> None:
    response = complete(model="fragile", max_tokens=50, stream=stream)
    if stream:
        assert "error" in list(events(response))[-1]

    (entry,) = entries()

    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 0)
