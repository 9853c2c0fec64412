"""Texts that wait for humans, over HTTP: what callers get meanwhile and afterwards, and what reviewers may do."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from tests.unit.api.reviewed_node import WORD, ReviewedNode, reviewed_node
from tests.unit.api.test_visits import app_of, visit
from tests.unit.api.test_wires import WiredConnection
from tests.unit.pipeline.hook_taker import taker
from tests.unit.pipeline.node import until
from typer.testing import CliRunner

from llmhost.cli.main import app
from llmhost.config.schema.models import ModelSpec
from llmhost.core.caller import Role
from llmhost.safety.verdict import Direction, ReviewMode
from llmhost.testing import FAKE_MODEL, at, fake_chat_words

BLOCK, HOLD, RELEASE = ReviewMode
TEXT = f"say {WORD} things"
SAID = fake_chat_words([{"role": "user", "content": TEXT}], 4)


def entries(node: ReviewedNode) -> list[tuple[str, str, int]]:
    return [
        (one["request_id"], one["outcome"], one["amount_nano"])
        for one in node.host.entries()
        if one["kind"] == "request"
    ]


async def test_a_refused_text_waits_and_passes_once_it_is_approved():
    async with reviewed_node(BLOCK) as node:
        refused = await node.chat()
        [row] = await node.pending()
        again = await node.chat()
        told = (await node.poll(row["id"])).json()
        shown = (await node.admin("GET", f"/{row['id']}")).json()
        assert (await node.decide(row["id"])).json()["state"] == "approved"
        passed = await node.chat()
        other = await node.chat(TEXT + "!")

        assert refused.status_code == again.status_code == 400
        assert row["id"] in refused.json()["error"]["message"]
        assert row["id"] in again.json()["error"]["message"]
        assert (row["direction"], row["mode"], row["org"]) == ("input", "block", "acme")
        assert (told["status"], told["response"]) == ("pending", None)
        assert shown["history"][0]["event"] == "referred"
        assert passed.json()["choices"][0]["message"]["content"] == SAID
        assert other.status_code == 400
        assert (await node.poll(row["id"])).json()["status"] == "approved"


CALLS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "fake", "messages": [{"role": "user", "content": TEXT}]},
    "/v1/completions": {"model": "fake", "prompt": TEXT},
    "/v1/responses": {"model": "fake", "input": TEXT},
    "/v1/embeddings": {"model": "embedder", "input": TEXT},
    "/v1/messages": {
        "model": "fake",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": TEXT}],
    },
    "/v1/rerank": {"model": "embedder", "query": TEXT, "documents": ["d"]},
    "/v1/score": {"model": "embedder", "text_1": TEXT, "text_2": "b"},
    "/v1/classify": {"model": "judge", "input": TEXT},
    "/v1/moderations": {"model": "judge", "input": TEXT},
    "/v1/decisions": {
        "model": "fake",
        "input": TEXT,
        "questions": [{"type": "predicate", "instructions": "so"}],
    },
    "/api/chat": {"model": "fake", "messages": [{"role": "user", "content": TEXT}]},
    "/api/embed": {"model": "embedder", "input": TEXT},
}
"""Of each route that asks models, a call with a text that a reviewer has to see."""


async def test_the_routes_whose_calls_wait_are_those_that_are_told_of():
    models = {
        "fake": FAKE_MODEL,
        "embedder": msgspec.structs.replace(FAKE_MODEL, options={"task": "embed"}),
        "judge": msgspec.structs.replace(FAKE_MODEL, options={"task": "classify"}),
    }
    page = (Path(__file__).parents[3] / "docs" / "review.md").read_text()
    told = page.partition("\nCalls of ")[2].partition(" can be held")[0]
    async with reviewed_node(HOLD, models=models) as node:
        headers = {"authorization": f"Bearer {node.sender}"}
        statuses = {
            path: (await node.host.client.post(path, json=body, headers=headers)).status_code
            for path, body in CALLS.items()
        }
        document = (await node.host.client.get("/schema")).json()

    waiting = {path for path, status in statuses.items() if status == 202}
    described = {
        path
        for path, item in document["paths"].items()
        if "202" in item.get("post", {}).get("responses", ())
    }
    assert statuses.pop("/v1/moderations") == 200
    assert {statuses[path] for path in statuses.keys() - waiting} == {400}
    assert waiting == {*re.findall("`(.+?)`", told)} == described & CALLS.keys()


async def test_a_released_text_passes_and_is_looked_at_afterwards():
    async with reviewed_node(RELEASE) as node:
        passed = await node.chat()
        [row] = await node.pending()
        await node.decide(row["id"], "reject")
        stats = (await node.admin("GET", "/stats")).json()

        assert passed.status_code == 200
        assert (await node.chat()).status_code == 200
        assert (stats["rejected"], stats["approved"]) == (1, 0)
        assert stats["rules"][0]["precision"] == 1.0


async def test_a_held_call_is_answered_once_it_is_approved_and_charged_once():
    async with reviewed_node(HOLD, retry_after_s=7) as node:
        held = await node.chat(stream=True)
        review_id = held.json()["id"]

        assert held.status_code == 202
        assert held.json()["status"] == "pending"
        assert held.headers["retry-after"] == "7"
        assert held.headers["location"] == f"/v1/reviews/{review_id}"
        assert held.headers["x-llmhost-review"] == review_id
        waiting = await node.poll(review_id)
        assert (waiting.status_code, waiting.headers["retry-after"]) == (202, "7")

        await node.decide(review_id)
        await node.settled()
        told = await node.poll(review_id)
        body = told.json()["response"]["body"]
        assert (told.status_code, told.json()["status"]) == (200, "approved")
        assert body["object"] == "chat.completion"
        assert body["choices"][0]["message"]["content"] == SAID
        assert (await node.poll(review_id)).json() == told.json()
        first, second = entries(node)
        assert (first[1], first[2]) == ("refused", 0)
        assert second[0] == told.json()["response"]["request_id"]
        assert second[1] == "answered"
        assert second[2] > 0


async def test_a_held_call_that_is_rejected_is_never_run():
    async with reviewed_node(HOLD) as node:
        review_id = (await node.chat()).json()["id"]
        await node.decide(review_id, "reject")
        told = await node.poll(review_id)

        assert (told.status_code, told.json()["status"]) == (200, "rejected")
        assert told.json()["response"] is None
        assert len(entries(node)) == 1
        assert (await node.chat()).status_code == 400


async def test_what_was_approved_while_the_node_was_stopped_is_answered_when_it_starts(
    tmp_path: Path,
):
    async with reviewed_node(HOLD, data_dir=tmp_path) as node:
        review_id = (await node.chat()).json()["id"]
        keys = node.sender, node.reviewer

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["reviews", *words, "--data-dir", str(tmp_path)])

    assert review_id in (await asyncio.to_thread(run, "list")).stdout
    decided = await asyncio.to_thread(run, "decide", review_id, "approve", "--note", "fine")
    assert "is approved" in decided.stdout
    assert (await asyncio.to_thread(run, "decide", review_id, "reject")).exit_code == 1

    async with reviewed_node(HOLD, data_dir=tmp_path, keys=keys) as node:
        await node.settled()
        told = (await node.poll(review_id)).json()
        assert told["response"]["body"]["choices"][0]["message"]["content"] == SAID


async def test_a_held_answer_goes_out_as_it_was_made():
    word = SAID.split()[1]
    async with reviewed_node(HOLD, Direction.OUTPUT, words=(word,)) as node:
        held = await node.chat()
        review_id = held.json()["id"]
        shown = (await node.admin("GET", f"/{review_id}")).json()
        made = entries(node)
        await node.decide(review_id)
        told = (await node.poll(review_id)).json()

        assert held.status_code == 202
        original = (await node.admin("GET", f"/{review_id}/original")).json()
        assert shown["direction"] == "output"
        assert word not in shown["text"]
        assert original["text"] == SAID
        assert told["response"]["body"]["choices"][0]["message"]["content"] == SAID
        assert [one[1] for one in made] == ["answered"]
        assert entries(node) == made


async def test_a_stream_that_has_begun_is_not_held_but_ended():
    word = SAID.split()[1]
    async with reviewed_node(HOLD, Direction.OUTPUT, words=(word,)) as node:
        streamed = await node.chat(stream=True)
        twice = await node.chat(n=2)

        assert '"finish_reason":"content_filter"' in streamed.text.replace(" ", "")
        assert word not in streamed.text
        assert {one["finish_reason"] for one in twice.json()["choices"]} == {"content_filter"}
        assert len(await node.pending()) >= 2


async def test_a_call_that_nobody_could_fetch_is_refused_and_waits_all_the_same():
    async with reviewed_node(HOLD) as node:
        body: dict[str, Any] = {
            "model": "fake",
            "stream": False,
            "messages": [{"role": "user", "content": TEXT}],
        }
        body["options"] = {"num_predict": 4}
        headers = {"authorization": f"Bearer {node.sender}"}
        refused = await node.host.client.post("/api/chat", json=body, headers=headers)
        [row] = await node.pending()

        assert refused.status_code == 400
        await node.decide(row["id"])
        passed = await node.host.client.post("/api/chat", json=body, headers=headers)
        assert passed.status_code == 200


ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 4, "messages": [{"role": "user", "content": TEXT}]},
    "/v1/responses": {"max_output_tokens": 4, "input": TEXT},
}


def said_in(body: dict[str, Any]) -> str:
    if "choices" in body:
        return str(body["choices"][0]["message"]["content"])
    parts = body["content"] if "content" in body else body["output"][0]["content"]
    return str(parts[0]["text"])


@pytest.mark.parametrize("path", ANSWERS)
async def test_whole_answers_of_other_routes_wait_as_well(path: str):
    word = SAID.split()[1]
    async with reviewed_node(HOLD, Direction.OUTPUT, words=(word,)) as node:
        headers = {"authorization": f"Bearer {node.sender}"}
        body = {"model": "fake", **ANSWERS[path]}
        held = await node.host.client.post(path, json=body, headers=headers)
        assert (held.status_code, held.json()["object"]) == (202, "review")
        await node.decide(held.json()["id"])
        answered = (await node.poll(held.json()["id"])).json()["response"]["body"]

        assert said_in(answered) == SAID
        assert [one[1] for one in entries(node)] == ["answered"]
        if path == "/v1/responses":
            assert answered["store"] is False
            kept = await node.host.client.get(f"{path}/{answered['id']}", headers=headers)
            assert kept.status_code == 404
        streamed = await node.host.client.post(path, json={**body, "stream": True}, headers=headers)
        assert streamed.status_code == 200


async def test_answers_that_nobody_waits_for_end_at_what_was_found():
    word = SAID.split()[1]
    async with reviewed_node(HOLD, Direction.OUTPUT, words=(word,)) as node:
        headers = {"authorization": f"Bearer {node.sender}"}
        body = {"model": "fake", **ANSWERS["/v1/responses"], "background": True}
        begun = await node.host.client.post("/v1/responses", json=body, headers=headers)
        path = f"/v1/responses/{begun.json()['id']}"
        await asyncio.gather(*node.host.host.responses.runs._tasks)
        now = (await node.host.client.get(path, headers=headers)).json()
        assert now["incomplete_details"] == {"reason": "content_filter"}


async def test_a_held_call_of_anthropics_is_answered_in_its_words():
    async with reviewed_node(HOLD) as node:
        headers = {"authorization": f"Bearer {node.sender}"}
        body = {"model": "fake", **ANSWERS["/v1/messages"]}
        held = (await node.host.client.post("/v1/messages", json=body, headers=headers)).json()
        await node.decide(held["id"])
        await node.settled()
        told = (await node.poll(held["id"])).json()["response"]
        assert (told["status_code"], told["body"]["type"]) == (200, "message")
        assert said_in(told["body"]) == SAID
        assert [
            one["event"] for one in (await node.admin("GET", f"/{held['id']}")).json()["history"]
        ] == [
            "referred",
            "approved",
            "answered",
        ]


async def test_nobody_sees_anothers_reviews_and_a_reviewer_may_do_nothing_else():
    async with reviewed_node(HOLD) as node:
        review_id = (await node.chat()).json()["id"]
        stranger = await node.host.make_key("globex", role=Role.ADMIN)
        colleague = await node.host.make_key("acme")

        assert (await node.poll(review_id, stranger)).status_code == 404
        assert (await node.poll(review_id, colleague)).status_code == 404
        assert (await node.admin("GET", "", key=stranger)).json()["data"] == []
        assert (await node.admin("GET", "", key=stranger, org="acme")).status_code == 404
        for path in ("", "/original"):
            assert (await node.admin("GET", f"/{review_id}{path}", key=stranger)).status_code == 404
        for verb in ("claim", "release", "escalate"):
            refused = await node.admin("POST", f"/{review_id}/{verb}", key=stranger)
            assert refused.status_code == 404
        assert (await node.admin("GET", "", key=node.sender)).status_code == 403
        assert (await node.chat("hello", key=node.reviewer)).status_code == 403
        headers = {"authorization": f"Bearer {node.reviewer}"}
        for path in ("keys", "usage", "orgs", "prices"):
            answer = await node.host.client.get(f"/admin/v1/{path}", headers=headers)
            assert answer.status_code == 403, path


async def test_reviewers_claim_and_read_and_escalate_and_admins_decide():
    async with reviewed_node(BLOCK) as node:
        await node.chat()
        claimed = (await node.admin("POST", "/claim")).json()
        boss = await node.host.make_key("acme", role=Role.ADMIN)
        busy = await node.admin(
            "POST", f"/{claimed['id']}/decide", {"decision": "approve"}, key=boss
        )
        original = (await node.admin("GET", f"/{claimed['id']}/original")).json()
        raised = (await node.admin("POST", f"/{claimed['id']}/escalate", {"note": "hm"})).json()
        refused = await node.decide(claimed["id"])
        ruled = await node.admin(
            "POST", f"/{claimed['id']}/decide", {"decision": "reject"}, key=boss
        )
        shown = (await node.admin("GET", f"/{claimed['id']}")).json()

        assert claimed["state"] == "claimed"
        assert busy.status_code == 409
        assert original["text"] == TEXT
        assert raised["state"] == "escalated"
        assert refused.status_code == 403
        assert ruled.json()["state"] == "rejected"
        events = [one["event"] for one in shown["history"]]
        assert events == ["referred", "claimed", "original_read", "escalated", "rejected"]
        assert (await node.admin("POST", "/claim")).status_code == 404


async def test_with_four_eyes_two_keys_have_to_agree():
    async with reviewed_node(BLOCK, four_eyes=True) as node:
        await node.chat()
        [row] = await node.pending()
        second = await node.host.make_key("acme", role=Role.REVIEWER)

        assert (await node.decide(row["id"])).json()["state"] == "open"
        assert (await node.decide(row["id"])).status_code == 409
        ruling = {"decision": "approve"}
        ruled = await node.admin("POST", f"/{row['id']}/decide", ruling, key=second)
        assert ruled.json()["state"] == "approved"
        stats = (await node.admin("GET", "/stats")).json()
        assert stats["agreement"] == {"texts": 1, "agreed": 1, "share": 1.0, "kappa": None}


WRONG: list[tuple[str, Any, str | None]] = [
    ("?state=lost", None, None),
    ("?limit=0", None, "limit"),
    ("?after=review_none", None, "after"),
    ("/stats?since=soon", None, "since"),
    ("/review_none/decide", {"decision": "perhaps"}, None),
    ("/review_none/decide", {"decision": "approve", "why": "x"}, None),
]


async def test_what_can_not_be_meant_is_refused():
    async with reviewed_node(BLOCK) as node:
        for path, body, param in WRONG:
            answer = await node.admin("GET" if body is None else "POST", path, body)

            assert answer.status_code == 400, path
            assert param in (None, answer.json()["error"]["param"])


async def test_what_waits_is_measured():
    async with reviewed_node(BLOCK) as node:
        await node.chat()
        text = (await node.host.client.get("/metrics")).text
        [row] = await node.pending()
        await node.decide(row["id"])
        after = (await node.host.client.get("/metrics")).text

        assert 'llmhost_reviews_open{state="open"} 1.0' in text
        assert 'llmhost_reviews_referred_total{mode="block"} 1.0' in text
        assert "llmhost_reviews_overdue 0.0" in text
        assert 'llmhost_reviews_open{state="open"} 0.0' in after
        assert 'llmhost_reviews_ended_total{state="approved"} 1.0' in after


async def test_events_are_posted_signed_in_their_order_until_they_are_taken():
    async with (
        taker("500 No", "302 Found") as hook,
        reviewed_node(HOLD, webhook=hook.url, webhook_private=True) as node,
    ):
        held = (await node.chat()).json()
        await node.decide(held["id"])
        await hook.until(3)
        facts = await node.admin("GET", "/webhook", key=node.host.host.admin_token)
        hidden = await node.admin("GET", "/webhook")

    assert hidden.status_code == 403
    assert facts.json()["url"] == hook.url
    client = openai.OpenAI(api_key="none", webhook_secret=facts.json()["secret"])
    told = []
    for headers, body in hook.taken:
        client.webhooks.verify_signature(body.decode(), headers)
        told.append(msgspec.json.decode(body))
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body.decode() + " ", headers)
    assert [one["type"] for one in told] == [
        "review.referred",
        "review.approved",
        "review.answered",
    ]
    assert {one["data"]["id"] for one in told} == {held["id"]}
    assert told[0]["data"]["org"] == "acme"
    assert TEXT not in str(told)
    assert len({headers["webhook-id"] for headers, _ in hook.taken}) == 3


async def test_what_was_not_told_when_the_node_stopped_is_told_by_the_next(tmp_path: Path):
    async with taker("500 No") as hook:
        facts: dict[str, Any] = {"webhook": hook.url, "webhook_private": True}
        async with reviewed_node(BLOCK, data_dir=tmp_path, **facts) as node:
            await node.chat()
            keys = node.sender, node.reviewer
        before = len(hook.taken)
        async with reviewed_node(BLOCK, data_dir=tmp_path, keys=keys, **facts):
            await hook.until(1)
    assert before == 0
    assert [msgspec.json.decode(body)["type"] for _, body in hook.taken] == ["review.referred"]


async def test_an_event_that_nobody_takes_for_a_day_is_dropped():
    clock = at("2026-01-01")
    async with taker(*["500 No"] * 2) as hook:
        facts: dict[str, Any] = {"webhook": hook.url, "webhook_private": True}
        async with reviewed_node(BLOCK, clock=clock, expire_hours=1000, **facts) as node:
            await node.chat()
            await hook.until(1, tries=True)
            clock.advance(86_401)
            await node.chat("say forbidden words")
            await hook.until(1)
            metrics = (await node.host.client.get("/metrics")).text
    assert 'llmhost_reviews_webhooks_total{result="dropped"} 1.0' in metrics


async def test_a_held_call_has_its_wishes_for_the_cache_when_it_runs():
    async with reviewed_node(HOLD) as node:
        headers = {
            "authorization": f"Bearer {node.sender}",
            "x-llmhost-cache": "on",
            "x-llmhost-cache-tag": "nightly",
        }
        body: dict[str, Any] = {"model": "fake", "max_tokens": 4, "temperature": 0}
        body["messages"] = [{"role": "user", "content": TEXT}]
        held = await node.host.client.post("/v1/chat/completions", json=body, headers=headers)
        await node.decide(held.json()["id"])
        await node.settled()
        again = await node.host.client.post("/v1/chat/completions", json=body, headers=headers)
        counts = node.host.host.cache.stats.total()
        assert counts.misses == 2  # both took part, and what a reviewer let pass is not kept
        assert again.status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", *ANSWERS])
async def test_a_whole_answer_waits_for_its_reviewer_where_its_client_has_left(
    path: str, monkeypatch: pytest.MonkeyPatch
):
    word = SAID.split()[1]
    async with reviewed_node(HOLD, Direction.OUTPUT, words=(word,)) as node:
        bodies = {"/v1/chat/completions": {**CALLS["/v1/chat/completions"], "max_tokens": 4}}
        connection = connected(node, path, {"model": "fake", **{**bodies, **ANSWERS}[path]})
        queue = node.host.host.holds.queue
        refer = queue.refer

        async def refer_and_lose_the_client(*facts: Any) -> Any:
            connection.gone.set()
            return await refer(*facts)

        monkeypatch.setattr(queue, "refer", refer_and_lose_the_client)
        await visit(app_of(node.host), connection)
        [row] = await node.pending()
        await node.decide(row["id"])
        told = (await node.poll(row["id"])).json()

        assert connection.sent == []
        assert said_in(told["response"]["body"]) == SAID
        assert [one[1] for one in entries(node)] == ["answered"]


def connected(node: ReviewedNode, path: str, body: dict[str, Any]) -> WiredConnection:
    connection = WiredConnection(json.dumps(body).encode())
    connection.scope.update(path=path, raw_path=path.encode())
    connection.scope["headers"] += [(b"authorization", f"Bearer {node.sender}".encode())]
    return connection


async def test_an_answer_that_may_wait_is_not_kept_where_its_client_left_before_its_end():
    slow = ModelSpec(engine="fake", options={"token_delay_ms": 2.0}, price=FAKE_MODEL.price)
    word = fake_chat_words([{"role": "user", "content": "hi"}], 200).split()[1]
    async with reviewed_node(HOLD, Direction.OUTPUT, words=(word,), models={"fake": slow}) as node:
        processor = node.host.host.processor
        body = {"model": "fake", "input": "hi", "max_output_tokens": 2_000}
        connection = connected(node, "/v1/responses", body)
        bearer = {"authorization": f"Bearer {node.sender}"}
        call = visit(app_of(node.host), connection)
        await until(lambda: any(word in _text(live) for live in processor._live))
        [live] = processor._live
        connection.gone.set()
        await call
        await until(lambda: processor.in_flight == 0)
        name = live.context.request.request_id.replace("req_", "resp_")
        kept = await node.host.client.get(f"/v1/responses/{name}", headers=bearer)
        assert await node.pending() == [], "nobody could fetch it"

    assert word not in kept.text, "no reviewer has let it out"
    assert kept.status_code == 404


def _text(live: Any) -> str:
    return "".join(delta.text for delta in live.stream.so_far())
