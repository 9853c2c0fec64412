"""Parameters in combinations that nobody thought of: each answer is whole, or refused, and streams the same again."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from server_process import Node

pytestmark = pytest.mark.bars

Bar = Callable[[str], None]
Body = dict[str, Any]

ASKED = 400
PATHS = {True: "/v1/chat/completions", False: "/v1/completions"}
TINY = """
[models.roomy]
engine = "torch"
source = "builtin:tiny"
[models.roomy.options]
device = "cpu"
threads = 1

[models.crowded]
engine = "torch"
source = "builtin:tiny"
kv_memory = "3MiB"
max_sequence_length = 512
max_tokens_per_batch = 64
[models.crowded.options]
device = "cpu"
threads = 1
"""
MARKS = ("<think>", "<tool_call>")
"""Behind which the model's text is a thought or a call, and no content."""
CHOICES: dict[str, tuple[float, list[Any]]] = {
    "n": (0.3, [2, 5]),
    "frequency_penalty": (0.3, [-2, -0.5, 1.5]),
    "presence_penalty": (0.3, [-2, 0.5, 2]),
    "repetition_penalty": (0.2, [0.01, 1.3, 10]),
    "min_p": (0.2, [0.05, 0.5, 1]),
    "top_p": (0.2, [0, 0.3, 0.9]),
    "top_k": (0.2, [1, 5, -1, 10**6]),
    "stop": (0.15, ["e", ["a", "the"], ".", " "]),
    "min_tokens": (0.15, [1, 3, 20]),
    "bad_words": (0.15, [["the"], ["a", "e", "i"], ["<|im_end|>"]]),
    "ignore_eos": (0.2, [True]),
    "return_token_ids": (0.3, [True]),
    "service_tier": (0.2, ["auto", "flex"]),
    "timeout_ms": (0.1, [1, 50, 60_000]),
    "cache_salt": (0.1, ["s"]),
    "truncate_prompt_tokens": (0.1, [1, 3]),
    "prompt_logprobs": (0.15, [0, 2]),
}
"""How often a parameter is sent, and with what."""
OF_CHATS: dict[str, tuple[float, list[Any]]] = {"top_logprobs": (0.4, [0, 1, 5, 20])}
OF_COMPLETIONS: dict[str, tuple[float, list[Any]]] = {
    "logprobs": (0.5, [0, 1, 5]),
    "echo": (0.3, [True]),
    "best_of": (0.2, [3, 6]),
    "max_tokens": (0.1, [0]),
}


def some(dice: random.Random) -> tuple[bool, Body]:
    """Whether it is a chat, and a body."""
    is_chat = dice.random() < 0.5
    body: Body = {
        "model": dice.choice(["roomy", "crowded"]),
        "max_tokens": dice.choice([1, 2, 7, 30]),
        "temperature": dice.choice([0, 0.7, 2]),
        "seed": dice.randrange(1000),
    }
    text = dice.choice(["Once upon", "What is llmhost?", "héé 😀 zz"])
    if is_chat:
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = dice.choice([text, ["a", "b c"], [5, 6, 7]])
    table = {**CHOICES, **(OF_CHATS if is_chat else OF_COMPLETIONS)}
    body |= {k: dice.choice(values) for k, (odds, values) in table.items() if dice.random() < odds}
    if "top_logprobs" in body:
        body["logprobs"] = True
    for name, most in (("stop_token_ids", 300), ("allowed_token_ids", 500)):
        if dice.random() < 0.12:
            body[name] = dice.sample(range(2048), dice.choice([1, most]))
    if dice.random() < 0.2:
        ids = dice.sample(range(2048), dice.choice([1, 50]))
        body["logit_bias"] = {str(token): dice.choice([-100, 3, 100]) for token in ids}
    return is_chat, body


def faults(is_chat: bool, body: Body, choice: Body) -> Iterator[str]:
    """What is wrong with one choice of a whole answer."""
    text, told = text_of(is_chat, choice), choice["logprobs"]
    has_asked = body.get("logprobs") is not None
    if (told is not None) is not has_asked:
        yield "log probabilities are not there as they were asked for"
    ids = choice.get("token_ids")
    if ids is not None and len(ids) < body.get("min_tokens", 0):
        yield "it is too short"
    if told is None:
        return
    if not is_chat:
        if len({len(column) for column in told.values()}) != 1:
            yield "columns are not of one length"
        return
    entries = told["content"]
    if any(len(entry["top_logprobs"]) != body.get("top_logprobs", 0) for entry in entries):
        yield "there are not as many of the likeliest as were asked for"
    if ids is not None and len(ids) != len(entries):
        yield "ids and entries are not as many"
    said = b"".join(bytes(entry["bytes"] or ()) for entry in entries).decode(errors="replace")
    is_own_end = choice["finish_reason"] == "length" and ids is None
    is_content = not any(mark in said for mark in MARKS)
    if is_own_end and is_content and said != text:
        yield "entries do not add up to the text"


def text_of(is_chat: bool, choice: Body) -> str:
    return str(choice["message"]["content"] if is_chat else choice["text"])


def put_together(is_chat: bool, raw: str) -> tuple[dict[int, Body], int]:
    """A stream's choices as those of a whole answer, as far as they are compared, and its output tokens."""
    events = [json.loads(part[6:]) for part in raw.split("\n\n") if part.startswith("data: {")]
    assert "error" not in events[-1], events[-1]
    made: dict[int, Body] = defaultdict(lambda: {"text": "", "ids": [], "tokens": []})
    for piece in (choice for event in events for choice in event["choices"]):
        mine = made[piece["index"]]
        mine["text"] += (piece["delta"].get("content") or "") if is_chat else piece["text"]
        mine["ids"] += piece.get("token_ids", [])
        mine["tokens"] += tokens_of(is_chat, piece["logprobs"])
    return made, events[-1]["usage"]["completion_tokens"]


def tokens_of(is_chat: bool, told: Body | None) -> list[str]:
    if told is None:
        return []
    return [e["token"] for e in told["content"]] if is_chat else list(told["tokens"])


def check(node: Node, number: int) -> str:
    """Ask once whole and once streamed; what became of it."""
    is_chat, body = some(random.Random(number))
    response = node.post(PATHS[is_chat], body)
    assert response.status_code in (200, 400, 504), (response.text, body)
    if response.status_code != 200:
        return "late" if response.status_code == 504 else "refused"
    answer = response.json()
    for choice in answer["choices"]:
        assert not list(faults(is_chat, body, choice)), (list(faults(is_chat, body, choice)), body)
    if "best_of" in body or body["max_tokens"] == 0:
        return "whole"
    less = {k: v for k, v in body.items() if k not in ("prompt_logprobs", "timeout_ms")}
    again = {**less, "stream": True, "stream_options": {"include_usage": True}}
    made, output_tokens = put_together(is_chat, node.post(PATHS[is_chat], again).text)
    if any(made[c["index"]]["text"] != text_of(is_chat, c) for c in answer["choices"]):
        return "said otherwise"  # in another batch, a draw between two tokens as good as equal
    for choice in answer["choices"]:
        mine = made[choice["index"]]
        assert mine["ids"] == choice.get("token_ids", []), body
        assert mine["tokens"] == tokens_of(is_chat, choice["logprobs"]), body
    assert output_tokens == answer["usage"]["completion_tokens"], body
    return "whole and streamed"


def test_any_parameters_together_are_answered_or_refused(
    new_node: Callable[..., Node], bar: Bar
) -> None:
    node = new_node(TINY).start()

    with ThreadPoolExecutor(6) as pool:
        became = Counter(pool.map(lambda number: check(node, number), range(ASKED)))

    assert became["whole and streamed"] > ASKED / 3
    assert became["said otherwise"] <= ASKED / 100
    assert node.verified()["ok"]
    assert "Traceback" not in node.log()
    bar(f"{ASKED} mixtures of parameters: " + ", ".join(f"{n} {k}" for k, n in became.items()))
