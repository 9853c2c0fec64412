"""Ollama's bodies: what each field becomes, and what is refused with its name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.api.ollama.routes import PARSERS
from llmhost.core.errors import BadRequest, Forbidden
from llmhost.core.request import GenerationRequest, Kind

LEAST: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "generate": {"model": "m", "prompt": "hi"},
    "embed": {"model": "m", "input": "hi"},
    "embeddings": {"model": "m", "prompt": "hi"},
}
CALL = {"function": {"name": "now", "arguments": {"zone": "UTC"}}}


def parsed(route: str, **changes: Any) -> GenerationRequest:
    raw = json.dumps({**LEAST[route], **changes}).encode()
    return PARSERS[f"/api/{route}"][1](raw, "req_1", "mine")[0]


def refused(route: str, **changes: Any) -> str | None:
    with pytest.raises(BadRequest) as caught:
        parsed(route, **changes)
    return caught.value.param


def test_what_is_absent_has_ollamas_defaults() -> None:
    request = parsed("chat")

    drawn = request.sampling
    assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.8, 40, 0.9)
    assert (drawn.repetition_penalty, drawn.seed, drawn.min_p) == (1.0, None, 0.0)
    assert (request.stream, request.max_tokens, request.stop) == (True, None, ())


def test_options_say_how_tokens_are_drawn() -> None:
    options = {
        **{"temperature": 0, "top_k": 0, "top_p": 0.5, "min_p": 0.1, "seed": 7},
        **{"num_predict": 9, "stop": ["x"], "num_ctx": 64, "num_gpu": 99, "use_mmap": True},
        **{"repeat_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.1},
    }
    request = parsed("generate", options=options, stream=False)

    drawn = request.sampling
    assert (drawn.temperature, drawn.top_k, drawn.top_p, drawn.min_p) == (0, None, 0.5, 0.1)
    assert (drawn.seed, drawn.repetition_penalty) == (7, 1.3)
    assert (drawn.presence_penalty, drawn.frequency_penalty) == (0.2, 0.1)
    assert (request.max_tokens, request.stop, request.context_tokens) == (9, ("x",), 64)
    assert not request.stream


@given(st.integers(max_value=0))
def test_a_number_of_tokens_that_is_none_limits_nothing(number: int) -> None:
    assert parsed("chat", options={"num_predict": number}).max_tokens is None


def test_a_penalty_that_looks_at_no_tokens_is_none() -> None:
    options = {"repeat_penalty": 1.5, "repeat_last_n": 0}
    assert parsed("chat", options=options).sampling.repetition_penalty == 1.0


@pytest.mark.parametrize("route", LEAST)
def test_latest_is_no_part_of_a_name(route: str) -> None:
    assert parsed(route, model="org/m:latest").model == "org/m"
    assert parsed(route, model="m:adapter").model == "m:adapter"


def test_a_prompt_is_a_chat_and_raw_is_none() -> None:
    request = parsed("generate", system="Be short.")
    assert [m["role"] for m in request.messages] == ["system", "user"]
    raw = parsed("generate", raw=True)
    assert (raw.kind, raw.prompts) == (Kind.COMPLETION, ("hi",))


def test_results_of_tools_find_their_calls_by_name_and_place() -> None:
    messages = [
        {"role": "user", "content": "now?"},
        {"role": "assistant", "tool_calls": [CALL, CALL, {"function": {"name": "other"}}]},
        {"role": "tool", "content": "a", "tool_name": "other"},
        {"role": "tool", "content": "b"},
        {"role": "tool", "content": "c", "tool_name": "now"},
        {"role": "tool", "content": "d", "tool_name": "nobody"},
    ]
    made = parsed("chat", messages=messages).messages

    ids = [call["id"] for call in made[1]["tool_calls"]]
    assert made[1]["content"] is None
    assert made[1]["tool_calls"][0]["function"] == {"name": "now", "arguments": '{"zone": "UTC"}'}
    assert made[1]["tool_calls"][2]["function"]["arguments"] == "{}"
    assert [m.get("tool_call_id") for m in made[2:]] == [ids[2], ids[0], ids[1], None]


def test_thoughts_are_asked_for_by_every_name_that_templates_know() -> None:
    assert parsed("chat", think=True).template_kwargs == {"enable_thinking": True, "thinking": True}
    assert parsed("chat", think="low").template_kwargs["reasoning_effort"] == "low"
    assert parsed("chat", think=False).hides_thoughts
    assert parsed("chat").template_kwargs == {}


def test_a_format_is_json_or_a_schema() -> None:
    held = parsed("chat", format={"type": "object"}).grammar
    assert held is not None
    assert (held.kind, json.loads(held.text)) == ("json_schema", {"type": "object"})
    assert parsed("generate", format="json").grammar is not None
    assert parsed("generate", format="").grammar is None


@pytest.mark.parametrize(("route", "field"), [("chat", "messages"), ("generate", "prompt")])
def test_nothing_to_answer_asks_for_the_model_and_never_to_unload_it(
    route: str, field: str
) -> None:
    nothing: Any = [] if field == "messages" else ""
    assert parsed(route, **{field: nothing}, keep_alive="5m").only_loads
    for gone in (0, "0", "0s", 0.0):
        with pytest.raises(Forbidden, match="llmhost unload"):
            parsed(route, **{field: nothing}, keep_alive=gone)


def test_a_suffix_asks_for_what_is_between() -> None:
    request = parsed("generate", prompt="def f(", suffix="return 1")

    assert (request.kind, request.prompts) == (Kind.COMPLETION, ("def f(",))
    assert request.suffix == "return 1"


def test_texts_are_cut_unless_it_is_said_that_they_are_not() -> None:
    request = parsed("embed", input=["a", "b"], dimensions=3)
    assert request.pooled is not None
    assert (request.prompts, request.pooled.is_cut) == (("a", "b"), True)
    assert request.pooled.dimensions == 3
    whole = parsed("embed", truncate=False).pooled
    assert whole is not None and not whole.is_cut


@pytest.mark.parametrize(
    ("route", "changes", "param"),
    [
        ("chat", {"model": None}, "model"),
        ("chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("chat", {"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aa"]}]}, "messages[0].images"),
        (
            "chat",
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ("chat", {"options": {"temperature": 3}}, "options.temperature"),
        ("chat", {"options": {"num_ctx": 0}}, "options.num_ctx"),
        ("chat", {"options": {"mirostat": 1}}, "options.mirostat"),
        ("chat", {"options": {"typical_p": 0.5}}, "options.typical_p"),
        ("chat", {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n"),
        ("chat", {"options": {"stop": [""]}}, "options.stop"),
        ("chat", {"keep_alive": "soon"}, "keep_alive"),
        ("chat", {"format": "xml"}, "format"),
        ("chat", {"format": [1]}, "format"),
        ("chat", {"think": "much"}, "think"),
        ("chat", {"top_logprobs": 3}, "top_logprobs"),
        ("chat", {"tools": [{"type": "web"}]}, "tools[0].type"),
        ("generate", {"suffix": "x", "system": "y"}, "system"),
        ("generate", {"template": "x"}, "template"),
        ("generate", {"context": [1]}, "context"),
        ("generate", {"images": ["aa"]}, "images"),
        ("generate", {"width": 5}, "width"),
        ("generate", {"raw": True, "system": "x"}, "system"),
        ("generate", {"raw": True, "think": True}, "think"),
        ("embed", {"input": None}, "input"),
        ("embed", {"input": []}, "input"),
        ("embed", {"input": [1]}, "input[0]"),
        ("embed", {"dimensions": 0}, "dimensions"),
        ("embeddings", {"prompt": None}, "prompt"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_name(
    route: str, changes: dict[str, Any], param: str
) -> None:
    assert refused(route, **changes) == param


def test_what_tools_answer_is_found_at_once_among_many_calls() -> None:
    """Looking through all that are open for each would take hours."""
    calls = [{"function": {"name": "now"}}] * 20_000
    answers = [{"role": "tool", "content": "", "tool_name": "other"}] * 20_000
    first = {"role": "tool", "content": "", "tool_name": "now"}
    messages = [{"role": "assistant", "tool_calls": calls}, *answers, first]

    found = parsed("chat", messages=messages).messages

    assert "tool_call_id" not in found[1]
    assert found[-1]["tool_call_id"] == "call00001"
