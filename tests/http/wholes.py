"""Random requests, and whether what is streamed of each adds up to the whole answer, to the byte.

Both are asked with the same seed and in a cache of their own, one after the other, so that the same is computed.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from server_process import Node

from llmhost.engines.builtin.corpus import tool_dialogues, tools

Body = dict[str, Any]
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
TEXTS = (
    "Once upon a time",
    "What is llmhost?",
    "héé 😀 zz — „quoted“",
    "数える: 一 二 三",
    "a\u0301 e\u0308 \u200d\U0001f469\u200d\U0001f4bb",
    "tabs\tand\nlines\r\n",
    " ",
)
SCHEMAS: tuple[Body, ...] = (
    {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
    {"type": "array", "items": {"enum": ["ä", "b\n", '"', "😀"]}, "maxItems": 4},
    {"type": "object", "properties": {"n": {"type": "integer"}, "t": {"type": "boolean"}}},
    {"type": "string", "maxLength": 12},
)
ODDS: dict[str, tuple[float, list[Any]]] = {
    "n": (0.3, [2, 3]),
    "stop": (0.35, ["e", ["a", "the"], [" ", "."], ["ne", "n"], "</", "}", "\n"]),
    "include_stop_str_in_output": (0.3, [True]),
    "skip_special_tokens": (0.2, [False]),
    "min_tokens": (0.2, [1, 4]),
    "top_p": (0.2, [0.5, 0.9]),
    "frequency_penalty": (0.2, [-0.5, 1.5]),
    "ignore_eos": (0.15, [True]),
}
FORMS: tuple[Body, ...] = (
    *(
        {"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": each}}}
        for each in SCHEMAS
    ),
    {"response_format": {"type": "json_object"}},
    {"structured_outputs": {"regex": "[a-zé😀]{2,9}( [0-9]{1,3})?"}},
    {"structured_outputs": {"choice": ["yes", "nö", "may be"]}},
    {"structured_outputs": {"grammar": 'start: WORD (", " WORD)*\nWORD: /[a-z]{1,5}/'}},
)
CUSTOM: tuple[Body, ...] = (
    {"type": "text"},
    {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[0-9é]{1,4}( \\+ [0-9]+)?"}},
    {
        "type": "grammar",
        "grammar": {"syntax": "lark", "definition": 'start: "\\"" /[a-zäé\\n]{1,9}/ "}"'},
    },
)
"""What custom tools take."""
SAYABLE: tuple[Body, ...] = ({"structured_outputs": {"regex": "( ?[a-z]+){1,6}"}},)
"""Forms that a model of words can be held to."""


def some(dice: random.Random, model: str, *, has_forms: bool, most_tokens: int) -> tuple[str, Body]:
    """A path, and a body for it."""
    is_chat = dice.random() < 0.7
    body: Body = {
        "model": model,
        "max_tokens": dice.choice([1, 3, most_tokens // 2, most_tokens]),
        "temperature": dice.choice([0, 0.7, 1.5]),
        "seed": dice.randrange(10**6),
        "return_token_ids": True,
    }
    body |= {k: dice.choice(values) for k, (odds, values) in ODDS.items() if dice.random() < odds}
    if dice.random() < 0.4:
        body |= {"logprobs": True, "top_logprobs": 2} if is_chat else {"logprobs": 2}
    if has_forms and is_chat and dice.random() < 0.45:
        return CHAT, body | _calling(dice)
    if dice.random() < 0.3:
        body |= dice.choice(FORMS if has_forms else SAYABLE)
    text = dice.choice(TEXTS)
    if not is_chat:
        prompt = dice.choice([text, [text, "b c"], [5, 6, 7]])
        return COMPLETION, {**body, "prompt": prompt, "echo": dice.random() < 0.2}
    messages = [{"role": "user", "content": text}]
    if dice.random() < 0.2:
        messages.append({"role": "assistant", "content": "So, "})
        body |= {"echo": True}
    return CHAT, {**body, "messages": messages}


def _calling(dice: random.Random) -> Body:
    """Tools, and a question that calls for them."""
    dialogue = dice.choice(tool_dialogues())
    offered = [tools()[name] for name in dialogue.tools]
    is_strict = dice.random() < 0.5
    listed = [{**one, "function": {**one["function"], "strict": is_strict}} for one in offered]
    named = {"type": "function", "function": {"name": dialogue.tools[0]}}
    if dice.random() < 0.3:
        name = listed[0]["function"]["name"]
        listed[0] = {"type": "custom", "custom": {"name": name, "format": dice.choice(CUSTOM)}}
        named = {"type": "custom", "custom": {"name": name}}
    body: Body = {
        "messages": [{"role": "user", "content": dice.choice(dialogue.questions)}],
        "tools": listed,
        "tool_choice": dice.choice(["auto", "auto", "required", named]),
        "parallel_tool_calls": dice.random() < 0.7,
        "max_tokens": 60,
        "temperature": dice.choice([0, 0, 1]),
    }
    return body


@dataclass
class Token:
    """One with its log probability, and those of the likeliest in its place."""

    name: Any
    weights: list[float | None]

    def __eq__(self, other: object) -> bool:
        """Computed twice, floats may differ in their last bits."""
        assert isinstance(other, Token)
        return self.name == other.name and self.weights == pytest.approx(other.weights, abs=1e-3)


@dataclass
class Told:
    """One choice, as far as both ways of telling it have it."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[Any]] = field(default_factory=list)
    reason: str | None = None
    logprobs: list["Token"] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    prompt_ids: list[int] | None = None


def whole(answer: Body) -> tuple[dict[int, Told], Body]:
    """The choices of a whole answer, and its usage."""
    made: dict[int, Told] = {}
    for choice in answer["choices"]:
        told = made[choice["index"]] = Told(reason=choice["finish_reason"])
        message = choice.get("message", {})
        told.text = choice["text"] if "text" in choice else message["content"] or ""
        told.reasoning = message.get("reasoning", "")
        told.calls = [_call(call) for call in message.get("tool_calls", ())]
        told.logprobs = _entries(choice["logprobs"])
        told.ids = choice["token_ids"]
        told.prompt_ids = choice.get("prompt_token_ids", answer.get("prompt_token_ids"))
    return made, answer["usage"]


def put_together(raw: str) -> tuple[dict[int, Told], Body]:
    """The same of a stream."""
    *parts, done, end = raw.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    events = [json.loads(part[6:]) for part in parts if part.startswith("data: {")]
    assert len({(e["id"], e["created"], e["model"], e["object"]) for e in events}) == 1
    assert events[-1]["choices"] == []
    made: dict[int, Told] = defaultdict(Told)
    for event in events[:-1]:
        for piece in event["choices"]:
            of_prompt = {k: v for k, v in event.items() if k == "prompt_token_ids"}
            _add(made[piece["index"]], {**of_prompt, **piece})
    usage = {name: fact for name, fact in events[-1]["usage"].items() if name != "llmhost"}
    return dict(made), usage


def _add(told: Told, piece: Body) -> None:
    assert told.reason is None, "nothing comes after the end"
    delta = piece.get("delta", {})
    told.text += piece["text"] if "text" in piece else delta.get("content") or ""
    told.reasoning += delta.get("reasoning") or ""
    for call in delta.get("tool_calls", ()):
        kind = call.get("type")
        if kind is not None:
            assert call["index"] == len(told.calls)
            told.calls.append(_call(call))
            continue
        inner = call.get("function") or call["custom"]
        (said,) = inner.values()
        told.calls[call["index"]][-1] += said
    told.reason = piece["finish_reason"]
    told.logprobs += _entries(piece["logprobs"])
    told.ids += piece.get("token_ids", [])
    if "prompt_token_ids" in piece:
        told.prompt_ids = piece["prompt_token_ids"]


def _call(call: Body) -> list[Any]:
    inner = call[call["type"]]
    return [call["type"], inner["name"], inner.get("arguments", inner.get("input"))]


def _entries(told: Body | None) -> list[Token]:
    """Each token's, in either shape."""
    if told is None:
        return []
    if "content" in told:
        return [
            Token(
                (each["token"], each["bytes"]),
                [each["logprob"], *sorted(one["logprob"] for one in each["top_logprobs"])],
            )
            for each in told["content"]
        ]
    columns = ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    return [
        Token((token, offset), [logprob, *sorted((top or {}).values())])
        for token, offset, logprob, top in zip(*(told[name] for name in columns), strict=True)
    ]


def faults(node: Node, path: str, body: Body, number: int) -> Iterator[str]:
    """What is wrong with one request's answers; nothing where it is refused both ways."""
    first = node.post(path, {**body, "cache_salt": f"{number} whole"})
    asked = {**body, "cache_salt": f"{number} stream", "stream": True}
    second = node.post(path, {**asked, "stream_options": {"include_usage": True}})
    if first.status_code != 200 or second.status_code != 200:
        if first.status_code != 400 or first.json() != second.json():
            yield f"{first.status_code} {first.text} but {second.status_code} {second.text}"
        return
    (one, usage), (other, streamed) = whole(first.json()), put_together(second.text)
    if one != other:
        yield f"{one} but streamed {other}"
    if usage != streamed:
        yield f"{usage} but streamed {streamed}"
    told = sum(len(each.ids) for each in one.values())
    if usage["completion_tokens"] != told:
        yield f"{usage} for {told} ids"
    choices = len(one) // body.get("n", 1)
    asked_ids = sum(len(one[i * body.get("n", 1)].prompt_ids or ()) for i in range(choices))
    if usage["prompt_tokens"] != asked_ids:
        yield f"{usage} for {asked_ids} ids of prompts"
