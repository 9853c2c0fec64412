"""However a request ends, it is metered once, with what it used: in the ledger, in analytics and in the metrics."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from openai import OpenAI
from server_process import Node, chat_body, events, eventually, http_bytes

INPUT_NANO, OUTPUT_NANO = 1_000, 2_000
ClientOf = Callable[[Node, str], OpenAI]


def metered(node: Node, request_id: str) -> dict[str, Any]:
    """The one ledger entry of a request, after a look that analytics say the same."""
    entry = node.entry(request_id)
    row = eventually(lambda: analytics_row(node, request_id), "no analytics row")
    assert row["outcome"] == entry["outcome"]
    assert row["code"] == entry["code"]
    assert row["prompt_tokens"] == entry["tokens"]["fresh_input"] + entry["tokens"]["cached_input"]
    assert row["completion_tokens"] == entry["tokens"]["output"]
    assert row["amount_nano"] == entry["amount_nano"]
    assert row["org"] == entry["org"]
    return entry


def analytics_row(node: Node, request_id: str) -> dict[str, Any] | None:
    path = node.data_dir / "analytics.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute(
            "SELECT * FROM requests WHERE request_id = ?", (request_id,)
        ).fetchall()
    assert len(rows) <= 1
    return dict(rows[0]) if rows else None


def new_entries(node: Node, before: int) -> list[dict[str, Any]]:
    return node.entries()[before:]


# ------------------------------------------------------------ answered


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_is_billed_what_its_usage_says(open_node: Node, stream: bool, n: int) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = open_node.chat(max_tokens=6, n=n, stream=stream, **options)
    usage = (list(events(response))[-2] if stream else response.json())["usage"]

    entry = metered(open_node, response.headers["x-request-id"])

    assert entry["outcome"] == "answered"
    assert entry["model"] == "echo@1"
    assert entry["tokens"] == {
        "fresh_input": usage["prompt_tokens"],
        "cached_input": 0,
        "output": usage["completion_tokens"],
    }
    assert entry["amount_nano"] == 4 * INPUT_NANO + 6 * n * OUTPUT_NANO
    assert entry["price_version"] == "echo/1"


def test_a_stream_without_usage_is_billed_all_the_same(open_node: Node) -> None:
    response = open_node.chat(max_tokens=6, stream=True)

    assert metered(open_node, response.headers["x-request-id"])["tokens"]["output"] == 6


def test_the_entry_is_in_the_ledger_before_the_answer_ends(open_node: Node) -> None:
    body = chat_body(max_tokens=2, stream=True)
    for _ in range(10):
        with open_node.http.stream(
            "POST", f"{open_node.url}/v1/chat/completions", json=body
        ) as response:
            response.read()
        ids = [entry["request_id"] for entry in open_node.entries()]
        assert ids.count(response.headers["x-request-id"]) == 1


def test_every_prompt_of_a_list_is_billed_once_however_many_choices_it_has(
    open_node: Node,
) -> None:
    body = {"model": "echo", "prompt": ["a b c", "d e"], "n": 4, "max_tokens": 3}

    response = open_node.post("/v1/completions", body)

    entry = metered(open_node, response.headers["x-request-id"])
    assert (entry["tokens"]["fresh_input"], entry["tokens"]["output"]) == (5, 24)


# ------------------------------------------------------------ refused and failed


REFUSALS: dict[str, tuple[str, Any, int, str | None]] = {
    "wrong field": ("/v1/chat/completions", chat_body(n=0), 400, "invalid_value"),
    "bad JSON": ("/v1/completions", b"{", 400, "BadRequest"),
    "too long": (
        "/v1/completions",
        {"model": "narrow", "prompt": "x " * 99},
        400,
        "context_length_exceeded",
    ),
    "unknown model": ("/v1/chat/completions", chat_body(model="ecco"), 404, "model_not_found"),
    "too large": ("/v1/chat/completions", b" " * 1_000_001, 413, "request_too_large"),
}


@pytest.mark.parametrize(("path", "body", "status", "code"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_metered_and_free(
    open_node: Node, path: str, body: Any, status: int, code: str
) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    response = open_node.post(path, content=raw)

    assert response.status_code == status
    entry = metered(open_node, response.headers["x-request-id"])
    assert (entry["outcome"], entry["code"]) == ("refused", code)
    assert set(entry["tokens"].values()) == {0}
    assert entry["amount_nano"] == 0


def test_refusals_of_keys_are_metered_to_their_organisation(keyed_node: Node) -> None:
    made = keyed_node.create_key("metered", requests_per_minute=1, models=["echo"])
    headers = {"authorization": f"Bearer {made['key']}"}

    def ask(**body: Any) -> str:
        response = keyed_node.post(
            "/v1/chat/completions", chat_body(max_tokens=1, **body), headers=headers
        )
        return str(response.headers["x-request-id"])

    denied, answered, limited = ask(model="other"), ask(), ask()

    entries = [metered(keyed_node, request_id) for request_id in (denied, answered, limited)]
    assert [entry["code"] for entry in entries] == [
        "model_not_allowed",
        None,
        "rate_limit_exceeded",
    ]
    assert [entry["outcome"] for entry in entries] == ["refused", "answered", "refused"]
    assert {entry["org"] for entry in entries} == {"metered"}
    assert {entry["key_id"] for entry in entries} == {made["id"]}


def test_a_stranger_is_counted_and_has_no_account(keyed_node: Node) -> None:
    before = keyed_node.metric("llmhost_requests_total", code="invalid_api_key")

    response = keyed_node.chat()

    request_id = response.headers["x-request-id"]
    row = eventually(lambda: analytics_row(keyed_node, request_id), "no analytics row")
    assert (row["outcome"], row["org"], row["status"]) == ("refused", "-", 401)
    assert keyed_node.metric("llmhost_requests_total", code="invalid_api_key") == before + 1
    assert not [e for e in keyed_node.entries() if e["request_id"] == request_id]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_metered_with_what_it_used_and_is_free(open_node: Node, stream: bool) -> None:
    response = open_node.chat(model="fragile", max_tokens=9, stream=stream)

    entry = metered(open_node, response.headers["x-request-id"])

    assert (entry["outcome"], entry["code"]) == ("failed", "engine_failed")
    assert entry["tokens"]["output"] == 3
    assert entry["amount_nano"] == 0
    eventually(lambda: open_node.is_idle("fragile"), "a failed sequence holds something")


# ------------------------------------------------------------ clients that leave


def leave_mid_stream(node: Node, body: dict[str, Any], after: int) -> tuple[str, int]:
    """Read some pieces and go; the request's id, and how many words had come."""
    words = 0
    with node.http.stream("POST", f"{node.url}/v1/completions", json=body) as response:
        for event in events(response):
            words += len(event["choices"][0]["text"].split())
            if words >= after:
                break
    return response.headers["x-request-id"], words


def test_a_client_that_leaves_mid_stream_pays_for_what_was_made_and_stops_it(
    open_node: Node,
) -> None:
    body = {"model": "slow", "prompt": "x y", "max_tokens": 5000, "stream": True}
    before = open_node.metric("llmhost_step_tokens_total", model_name="slow@1")

    request_id, words = leave_mid_stream(open_node, body, after=3)

    eventually(lambda: open_node.is_idle("slow"), "the sequence of a client that left goes on")
    entry = metered(open_node, request_id)
    fed = open_node.metric("llmhost_step_tokens_total", model_name="slow@1") - before
    made = entry["tokens"]["output"]
    assert entry["outcome"] == "cancelled"
    assert words <= made < 5000
    assert entry["amount_nano"] == 2 * INPUT_NANO + made * OUTPUT_NANO
    # What was fed is the prompt and every token made but the last; a step may have been under way.
    assert 2 + made - 1 <= fed <= 2 + made + 1


def test_a_client_that_leaves_before_a_whole_answer_is_billed_likewise(open_node: Node) -> None:
    before = len(open_node.entries())
    request = http_bytes("/v1/completions", {"model": "slow", "prompt": "x y", "max_tokens": 5000})
    with open_node.raw() as connection:
        connection.sendall(request)
        eventually(lambda: open_node.loaded("slow")["running"], "nothing runs")

    (entry,) = eventually(lambda: new_entries(open_node, before), "it was not metered")

    assert entry["outcome"] == "cancelled"
    assert entry["tokens"]["output"] < 5000
    eventually(lambda: open_node.is_idle("slow"), "the sequence goes on")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_with_a_large_body_is_seen_to_leave_too(open_node: Node, stream: bool) -> None:
    body = {"model": "slow", "prompt": "x", "max_tokens": 5000, "stream": stream}
    with open_node.raw() as connection:
        connection.sendall(http_bytes("/v1/completions", {**body, "padding": "y" * 500_000}))
        eventually(lambda: open_node.loaded("slow")["running"], "nothing runs")

    eventually(lambda: open_node.is_idle("slow"), "the sequence of a client that left goes on")


def test_a_client_that_leaves_while_it_is_queued_pays_for_nothing(open_node: Node) -> None:
    body = {"model": "single", "prompt": "x y z", "max_tokens": 5000, "stream": True}
    with open_node.raw() as running:
        running.sendall(http_bytes("/v1/completions", body))
        eventually(lambda: open_node.loaded("single")["running"], "nothing runs")
        before = len(open_node.entries())
        with open_node.raw() as waiting:
            waiting.sendall(http_bytes("/v1/completions", body))
            eventually(lambda: open_node.loaded("single")["waiting"], "nothing waits")
        (left,) = eventually(lambda: new_entries(open_node, before), "it was not metered")
        assert open_node.loaded("single")["running"] == 1

    assert left["outcome"] == "cancelled"
    assert set(left["tokens"].values()) == {0}
    assert left["amount_nano"] == 0
    eventually(lambda: open_node.is_idle("single"), "the sequence goes on")


def test_all_choices_of_a_client_that_leaves_stop(open_node: Node) -> None:
    body = {"model": "slow", "prompt": ["x", "y z"], "n": 3, "max_tokens": 5000, "stream": True}

    request_id, _ = leave_mid_stream(open_node, body, after=12)

    eventually(lambda: open_node.is_idle("slow"), "a choice goes on")
    entry = metered(open_node, request_id)
    assert entry["outcome"] == "cancelled"
    assert entry["tokens"]["fresh_input"] == 3


def test_the_next_reader_of_a_connection_that_was_left_is_not_disturbed(open_node: Node) -> None:
    """Leaving after the last byte is no cancellation."""
    request = http_bytes("/v1/completions", {"model": "echo", "prompt": "x", "max_tokens": 2})
    before = len(open_node.entries())
    with open_node.raw() as connection:
        connection.sendall(request)
        assert connection.recv(65536)

    (entry,) = eventually(lambda: new_entries(open_node, before), "it was not metered")
    assert entry["outcome"] == "answered"


# ------------------------------------------------------------ the sums


def test_metrics_count_each_way_of_ending(open_node: Node) -> None:
    def count(outcome: str, model: str) -> float:
        return open_node.metric("llmhost_requests_total", outcome=outcome, model_name=model)

    kinds = [
        ("answered", "echo@1"),
        ("refused", "narrow@1"),
        ("refused", "unknown"),
        ("failed", "fragile@1"),
    ]
    before = [count(*kind) for kind in kinds]
    tokens = open_node.metric("vllm:generation_tokens_total", model_name="echo@1")
    amount = open_node.metric("llmhost_amount_nano_total", model_name="echo@1")

    open_node.chat(max_tokens=5)
    open_node.chat(model="narrow", max_tokens=500)
    open_node.chat(model="ecco")
    open_node.chat(model="fragile", max_tokens=9)

    assert [count(*kind) for kind in kinds] == [b + 1 for b in before]
    assert open_node.metric("vllm:generation_tokens_total", model_name="echo@1") == tokens + 5
    paid = 4 * INPUT_NANO + 5 * OUTPUT_NANO
    assert open_node.metric("llmhost_amount_nano_total", model_name="echo@1") == amount + paid


def test_usage_adds_up_by_key_team_org_model_and_day(keyed_node: Node, client_of: ClientOf) -> None:
    one = keyed_node.create_key("sums", team="red")
    two = keyed_node.create_key("sums", team="blue")
    for made, tokens in ((one, 3), (one, 4), (two, 5)):
        client_of(keyed_node, made["key"]).completions.create(
            model="echo", prompt="a b", max_tokens=tokens
        )

    def usage(by: str) -> dict[str, dict[str, Any]]:
        rows = keyed_node.admin("GET", "/usage", by=by).json()["data"]
        return {row[by]: row for row in rows}

    by_key, by_team, by_org = usage("key"), usage("team"), usage("org")
    assert by_key[one["id"]]["output_tokens"] == 7
    assert by_key[two["id"]]["requests"] == 1
    assert by_team["sums/red"]["fresh_input_tokens"] == 4
    assert by_org["sums"]["output_tokens"] == 12
    assert by_org["sums"]["amount_nano"] == 6 * INPUT_NANO + 12 * OUTPUT_NANO
    entries = [entry for entry in keyed_node.entries() if entry["kind"] == "request"]
    for by, rows in (("model", usage("model")), ("day", usage("day"))):
        total = sum(row["amount_nano"] for row in rows.values())
        assert total == sum(entry["amount_nano"] for entry in entries), by
    assert keyed_node.verified()["ok"] is True


def test_the_command_line_exports_what_the_server_holds(open_node: Node) -> None:
    answer = open_node.chat(max_tokens=2)

    done = open_node.cli("ledger", "export", "--json")

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    ours = [row for row in rows if row["request_id"] == answer.headers["x-request-id"]]
    assert done.returncode == 0, done.stderr
    assert [row["tokens"]["output"] for row in ours] == [2]
    assert open_node.cli("ledger", "verify").returncode == 0
