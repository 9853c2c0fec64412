"""What OpenAI's own client is told of the price of an answer, whole and streamed."""

import json
from typing import Any

from openai import OpenAI
from server_process import Node, chat_body

SAY = [{"role": "user", "content": "hello"}]


def told(headers: Any) -> dict[str, str]:
    return {name: headers[name] for name in headers if name.startswith("x-llmhost-")}


def test_a_whole_answer_says_its_cost_in_headers(client: OpenAI, open_node: Node) -> None:
    raw = client.chat.completions.with_raw_response.create(model="echo", messages=SAY, max_tokens=4)
    usage = raw.parse().usage

    nano = 1000 * usage.prompt_tokens + 2000 * usage.completion_tokens
    cost = {"x-llmhost-cost-usd": f"0.{nano:09d}".rstrip("0"), "x-llmhost-price-version": "echo/1"}
    assert told(raw.headers) == cost


def test_a_stream_says_its_price_first_and_its_cost_in_the_last_usage(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="echo",
        messages=SAY,
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(raw.parse())

    assert told(raw.headers) == {"x-llmhost-price-version": "echo/1"}
    usage = chunks[-1].usage
    nano = 1000 * usage.prompt_tokens + 2000 * usage.completion_tokens
    assert usage.model_dump()["llmhost"] == {
        "cost_usd": f"0.{nano:09d}".rstrip("0"),
        "price_version": "echo/1",
    }


def test_a_stream_without_usage_says_it_in_a_comment_that_clients_skip(
    client: OpenAI, open_node: Node
) -> None:
    with client.chat.completions.create(
        model="echo", messages=SAY, max_tokens=4, stream=True
    ) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    raw = open_node.chat(max_tokens=4, stream=True).text

    assert len(text.split()) == 4
    *_, comment, done, rest = raw.split("\n\n")
    assert comment.startswith(": llmhost cost_usd=0.0000")
    assert comment.endswith(" price_version=echo/1")
    assert (done, rest) == ("data: [DONE]", "")


def test_vectors_say_their_cost(client: OpenAI, open_node: Node) -> None:
    raw = client.embeddings.with_raw_response.create(model="embedder", input="two words")
    ranked = open_node.post(
        "/v1/rerank", {"model": "embedder", "query": "a", "documents": ["b", "c"]}
    )

    assert raw.parse().usage.prompt_tokens == 2
    assert told(raw.headers) == {
        "x-llmhost-cost-usd": "0.000002",
        "x-llmhost-price-version": "embedder/1",
    }
    assert set(told(ranked.headers)) == {"x-llmhost-cost-usd", "x-llmhost-price-version"}


def test_a_model_without_a_price_and_an_error_say_nothing_of_cost(open_node: Node) -> None:
    free = open_node.chat(model="narrow", max_tokens=2)
    streamed = open_node.chat(model="narrow", max_tokens=2, stream=True)
    wrong = open_node.chat(max_tokens=-1)
    broken = open_node.chat(model="fragile", max_tokens=9)
    cut = open_node.chat(model="fragile", max_tokens=9, stream=True)

    assert [r.status_code for r in (free, streamed, wrong, broken, cut)] == [
        *(200, 200, 400, 500, 200)
    ]
    assert [told(r.headers) for r in (free, streamed, wrong, broken)] == [{}, {}, {}, {}]
    assert ": llmhost" not in streamed.text
    assert ": llmhost" not in cut.text


def test_pages_may_read_what_it_cost(open_node: Node) -> None:
    body = chat_body(max_tokens=1)
    page = {"origin": "http://localhost:3000"}
    answer = open_node.post("/v1/chat/completions", body, headers=page)

    exposed = answer.headers["access-control-expose-headers"].split(", ")
    assert {"x-llmhost-cost-usd", "x-llmhost-stop"} <= set(exposed)
    assert json.loads(answer.text)["usage"]["completion_tokens"] == 1
