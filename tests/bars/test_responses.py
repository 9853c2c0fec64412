"""Responses that run in the background of a server that is killed again and again."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from server_process import Node

from llmhost.testing import fake_chat_words

pytestmark = pytest.mark.bars

ROUNDS, EACH = 6, 24
SETTINGS = """
[models.slow]
engine = "fake"
[models.slow.price]
output = "2.00"
[models.slow.options]
token_delay_ms = 4
"""
PATH = "/v1/responses"


def begun(node: Node, place: int, tokens: int) -> str:
    """The id of a response that its caller was told of."""
    text = f"say number {place}"
    body = {"model": "slow", "input": text, "max_output_tokens": tokens, "background": True}
    answer = node.post(PATH, body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "queued"
    name: str = answer.json()["id"]
    return name


def test_every_response_that_was_told_of_is_found_after_kills_and_billed_once(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node, dice = new_node(SETTINGS).start(), random.Random(1)
    asked: dict[str, tuple[int, int]] = {}
    for round_ in range(ROUNDS):
        for place in range(EACH):
            tokens = dice.choice((4, 40, 400))
            asked[begun(node, round_ * EACH + place, tokens)] = (round_ * EACH + place, tokens)
        time.sleep(
            dice.random()
        )  # a kill at any moment: some have ended by then, and some have not
        node.kill()
        node.start()

    ends = Counter[str]()
    for name, (place, tokens) in asked.items():
        found = node.get(f"{PATH}/{name}").json()
        ends[found["status"]] += 1
        assert found["status"] in ("incomplete", "failed"), found
        if found["status"] == "incomplete":
            text = found["output"][0]["content"][0]["text"]
            said = [{"role": "user", "content": f"say number {place}"}]
            assert text == fake_chat_words(said, tokens)
            assert node.get(f"{PATH}/{name}?stream=true").text.endswith("data: [DONE]\n\n")
    entries = Counter(entry["request_id"] for entry in node.entries())
    assert {entries[name.replace("resp_", "req_")] for name in asked} == {1}
    assert node.verified()["ok"]
    assert len(ends) == 2
    bar(
        f"responses: {len(asked)} told of over {ROUNDS} kills, {ends['incomplete']} ended and found, {ends['failed']}"
        " failed and found, each billed once"
    )


TINY = """
[models.tiny]
engine = "torch"
source = "builtin:tiny"
[models.tiny.options]
device = "cpu"
threads = 1
"""
ASKED = 200
FUNCTION = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rom\u00e9"]}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CUSTOM = {
    "type": "custom",
    "name": "sum",
    "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+\\+[0-9]+"},
}
FORM = {"type": "json_schema", "name": "x", "schema": FUNCTION["parameters"], "strict": True}
OF_ONE = ("id", "created_at", "completed_at", "item_id", "llmhost", "call_id")
OF_FLOATS = ("logprob", "top_logprobs")
"""Which differ in their last digits where a prompt's beginning was computed before."""


def some(dice: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": "tiny",
        "input": dice.choice(
            ["hello", "weather in Oslo?", "\u00fcn\u00efc\u00f6de \N{SNOWMAN}", "what is a budget?"]
        ),
        "max_output_tokens": dice.randrange(1, 40),
        "temperature": dice.choice([0, 0.7, 1.5]),
        "seed": dice.randrange(1000),
        "store": dice.random() < 0.5,
    }
    if dice.random() < 0.4:
        body |= {"tools": [FUNCTION, CUSTOM], "parallel_tool_calls": dice.random() < 0.5}
        body["tool_choice"] = dice.choice(["auto", "required", {"type": "custom", "name": "sum"}])
    elif dice.random() < 0.4:
        body["text"] = {"format": FORM}
    if dice.random() < 0.3:
        body |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    if dice.random() < 0.2:
        body["stop"] = ["e", "nowhere"]
    return body


def alike(value: Any) -> Any:
    """Without what is of one answer alone."""
    if isinstance(value, dict):
        return {
            name: alike(each) for name, each in value.items() if name not in (*OF_ONE, *OF_FLOATS)
        }
    return [alike(each) for each in value] if isinstance(value, list) else value


def test_a_stream_is_its_whole_response(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node, dice, wrong = new_node(TINY).start(), random.Random(2), list[str]()
    for _ in range(ASKED):
        body = some(dice)
        whole = node.post(PATH, body).json()
        text = node.post(PATH, {**body, "stream": True}).text
        told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        last = told[-1]["response"]
        texts = Counter[str]()
        for event in told:
            if event["type"].endswith(".delta"):
                texts[event["item_id"]] += len(event["delta"])
        lengths = [texts[item["id"]] for item in last["output"]]
        said = [len(said_by(item)) for item in last["output"]]
        is_gapless = [event["sequence_number"] for event in told] == list(range(len(told)))
        for each in (whole, last):  # which a prompt that was computed before changes
            each["usage"].pop("input_tokens_details")
        if alike(whole) != alike(last) or lengths != said or not is_gapless:
            wrong.append(json.dumps(body))
    bar(f"responses: {ASKED} requests, whole and streamed: {len(wrong)} differ")
    assert wrong == []
    assert "Traceback" not in node.log()


def said_by(item: dict[str, Any]) -> str:
    for name in ("arguments", "input"):
        if name in item:
            return str(item[name])
    return str(item["content"][0]["text"])
