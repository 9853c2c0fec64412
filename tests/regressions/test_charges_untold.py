"""Streams did not say what they had cost, and what was sent again was charged to a budget again."""

import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from paid_models import INPUT_NANO, OUTPUT_NANO, Key
from server_process import Node, events

Entries = Callable[[], list[dict[str, Any]]]
Complete = Callable[..., httpx.Response]

WHOLE_NANO = 3 * INPUT_NANO + 5 * OUTPUT_NANO
BODY: dict[str, Any] = {"model": "slow", "prompt": "a b c", "max_tokens": 5}


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_is_sent_again_is_not_charged_again(
    node: Node, key: Key, org: str, entries: Entries, stream: bool
) -> None:
    budget = node.admin("POST", "/budgets", {"org": org, "period": "total", "usd": "1"}).json()
    headers = {**key, "idempotency-key": f"again-{org}"}
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {**BODY, "stream": stream}
        answers.append(node.post("/v1/completions", body, headers=headers))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    ask()

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert [entry["amount_nano"] for entry in entries()] == [WHOLE_NANO]
    row = node.admin("GET", f"/budgets/{budget['id']}").json()
    assert (row["spent_usd"], row["held_usd"]) == ("0.000013", "0.00")


def test_a_failed_request_that_is_sent_again_is_charged_when_it_succeeds(
    node: Node, key: Key, entries: Entries
) -> None:
    headers = {**key, "idempotency-key": "once-more"}
    failed = node.post("/v1/completions", {**BODY, "model": "fragile"}, headers=headers)
    answered = node.post("/v1/completions", BODY, headers=headers)

    assert (failed.status_code, answered.status_code) == (500, 200)
    assert [entry["amount_nano"] for entry in entries()] == [0, WHOLE_NANO]


@pytest.mark.parametrize("with_usage", [False, True])
def test_a_stream_says_at_its_end_what_it_cost(
    entries: Entries, complete: Complete, with_usage: bool
) -> None:
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    response = complete(stream=True, **options)

    (entry,) = entries()
    assert entry["amount_nano"] == WHOLE_NANO
    if with_usage:
        *_, last, _ = events(response)
        assert last["usage"]["llmhost"]["cost_usd"] == "0.000013"
    else:
        assert ": llmhost cost_usd=0.000013 " in response.text


def test_a_choice_that_is_not_shown_is_paid_for_once(entries: Entries, complete: Complete) -> None:
    """Of several answers the best is shown, and all are computed: the prompt was charged for each of them."""
    complete(best_of=3, n=1)

    (entry,) = entries()
    tokens = entry["tokens"]
    assert tokens["fresh_input"] + tokens["cached_input"] == 3
    assert tokens["output"] == 15
