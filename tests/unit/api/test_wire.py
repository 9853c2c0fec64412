"""Bodies at the edge: whatever a client sends becomes a checked request or a refusal that names the field."""

import contextlib
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.api.openai import parse_chat, parse_completion
from llmhost.api.wire import MAX_CHOICES, MAX_STOP_CHARS, MAX_STOPS, ChatBody, CompletionBody
from llmhost.core.errors import BadRequest
from llmhost.core.request import GenerationRequest, Kind

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "m", "prompt": "hi"}
ROUTES = {"chat": (parse_chat, CHAT), "completion": (parse_completion, COMPLETION)}
CHAT_FIELDS = tuple(ChatBody.__struct_fields__)
COMPLETION_FIELDS = tuple(CompletionBody.__struct_fields__)

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(max_size=8)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool", "function", "other"]),
            "content": TEXT
            | VALUES
            | st.lists(st.fixed_dictionaries({"type": TEXT, "text": TEXT})),
        }
    ),
    max_size=3,
)


def take(route: str, **fields: Any) -> GenerationRequest:
    parse, base = ROUTES[route]
    return parse(json.dumps({**base, **fields}).encode(), "req_1", None)[0]


def refusal(route: str, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        take(route, **fields)
    return refused.value


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(CHAT_FIELDS), VALUES | MESSAGES, max_size=4))
def test_any_value_in_any_field_of_a_chat_is_taken_or_refused(fields: dict[str, Any]) -> None:
    check_any("chat", fields)


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(COMPLETION_FIELDS), VALUES, max_size=4))
def test_any_value_in_any_field_of_a_completion_is_taken_or_refused(fields: dict[str, Any]) -> None:
    check_any("completion", fields)


def check_any(route: str, fields: dict[str, Any]) -> None:
    try:
        request = take(route, **fields)
    except BadRequest as refused:
        assert refused.param is not None, refused.message
        assert refused.param.split(".")[0].split("[")[0] in {*fields, "messages", "prompt"}
        json.dumps(refused.message)
        return
    assert request.n >= 1
    assert request.max_tokens is None or request.max_tokens >= 1
    assert 0 <= request.sampling.temperature <= 2
    assert request.sampling.top_k is None or request.sampling.top_k >= 1
    assert request.sampling.seed is None or 0 <= request.sampling.seed < 2**63
    assert all(request.stop)
    assert bool(request.prompts) == (request.kind is Kind.COMPLETION)
    request.text.encode()


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode()))
def test_any_bytes_are_taken_or_refused(raw: bytes) -> None:
    for parse, _ in ROUTES.values():
        with pytest.raises(BadRequest):
            parse(raw, "req_1", None)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'"text"',
        b"{",
        b"\xff",
        b'{"model":"\\ud800","prompt":"x"}',
        b"[" * 100_000,
        b'{"model":"m","prompt":"x","options":' + b"[" * 100_000,
        b'{"model":"m","prompt":"x","seed":1e400}',
        b'{"model":"m","prompt":"x","temperature":NaN}',
    ],
    ids=range(10),
)
def test_what_is_no_object_of_ours_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_completion(raw, "req_1", None)


@pytest.mark.parametrize("route", ROUTES)
def test_unknown_fields_are_taken_because_clients_send_their_vendors_extras(route: str) -> None:
    assert take(route, metadata={"a": 1}, store=True, top_a=0.1) == take(route)


@pytest.mark.parametrize("route", ROUTES)
def test_null_means_absent_in_every_field(route: str) -> None:
    fields = CHAT_FIELDS if route == "chat" else COMPLETION_FIELDS
    needed = {"model", "messages"} if route == "chat" else {"model", "prompt"}
    for name in fields:
        if name not in needed:
            assert take(route, **{name: None}) == take(route), name


@pytest.mark.parametrize(
    ("route", "field"),
    [("chat", "model"), ("chat", "messages"), ("completion", "model"), ("completion", "prompt")],
)
def test_what_must_be_there_is_missed_by_name(route: str, field: str) -> None:
    missed = refusal(route, **{field: None})

    assert (missed.code, missed.param) == ("missing_required_parameter", field)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 2.01, "temperature"),
        ("temperature", "warm", "temperature"),
        ("top_p", -0.1, "top_p"),
        ("top_k", -2, "top_k"),
        ("n", 0, "n"),
        ("n", MAX_CHOICES + 1, "n"),
        ("n", 1.5, "n"),
        ("max_tokens", 0, "max_tokens"),
        ("stop", [""], "stop"),
        ("stop", ["x"] * (MAX_STOPS + 1), "stop"),
        ("stop", ["x", 1], "stop[1]"),
        ("stop", "x" * (MAX_STOP_CHARS + 1), "stop"),
        ("stop", ["x" * MAX_STOP_CHARS] * 8 + ["x"], "stop"),
        ("stream_options", {"include_usage": True}, "stream_options"),
        ("frequency_penalty", 3, "frequency_penalty"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_its_field(
    route: str, field: str, value: Any, param: str
) -> None:
    refused = refusal(route, **{field: value})

    assert (refused.code, refused.param) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("chat", {"frequency_penalty": 0.5}),
        ("chat", {"presence_penalty": -0.5}),
        ("chat", {"logit_bias": {"1": 1}}),
        ("chat", {"logprobs": True}),
        ("chat", {"tools": [{}]}),
        ("chat", {"functions": [{}]}),
        ("chat", {"response_format": {"type": "json_object"}}),
        ("chat", {"modalities": ["audio"]}),
        ("completion", {"logprobs": 0}),
        ("completion", {"echo": True}),
        ("completion", {"suffix": "x"}),
        ("completion", {"best_of": 2}),
    ],
)
def test_what_would_change_the_answer_and_is_not_honoured_is_refused(
    route: str, fields: dict[str, Any]
) -> None:
    refused = refusal(route, **fields)

    assert (refused.code, refused.param) == ("unsupported_parameter", next(iter(fields)))


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("chat", {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}),
        ("chat", {"tools": [{}], "tool_choice": "none"}),
        ("chat", {"response_format": {"type": "text"}, "modalities": ["text"]}),
        ("chat", {"logprobs": False, "top_logprobs": 0, "top_k": 0}),
        ("completion", {"echo": False, "suffix": "", "best_of": 1, "top_k": -1}),
    ],
)
def test_values_that_ask_for_nothing_special_change_nothing(
    route: str, fields: dict[str, Any]
) -> None:
    assert take(route, **fields) == take(route)


LOOSE = ["tools", "functions", "logit_bias", "response_format", "structured_outputs", "audio"]
LOOSE += ["modalities", "stop_token_ids", "tool_choice", "function_call", "chat_template_kwargs"]


@pytest.mark.parametrize("field", [*LOOSE, "tool_calls", "content"])
def test_a_body_takes_no_more_memory_than_a_few_times_its_size(field: str) -> None:
    many = b"[" + b"{}," * 500_000 + b"{}]"
    extra = b'"%s":%s' % (field.encode(), many)
    message = b'{"role":"assistant",%s}' % extra if field in ("tool_calls", "content") else b"{}"
    raw = b'{"model":"m",%s,"messages":[%s]}' % (extra, message)

    tracemalloc.start()
    with contextlib.suppress(BadRequest):
        parse_chat(raw, "req_1", None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * len(raw)


def test_objects_in_a_prompt_are_refused_at_the_first() -> None:
    raw = b'{"model":"m","prompt":[%s{}]}' % (b"{}," * 500_000)

    tracemalloc.start()
    with pytest.raises(BadRequest):
        parse_completion(raw, "req_1", None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4 * len(raw)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"response_format": 5}, "response_format"),
        ({"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages[0].tool_calls"),
    ],
)
def test_a_loose_field_of_a_wrong_type_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    refused = refusal("chat", **fields)

    assert (refused.code, refused.param) == ("invalid_value", param)


def test_limits_themselves_are_allowed() -> None:
    request = take("chat", n=MAX_CHOICES, stop=["x"] * MAX_STOPS, temperature=2, top_p=0)

    assert (request.n, len(request.stop)) == (MAX_CHOICES, MAX_STOPS)


def test_stop_strings_may_be_as_long_as_is_allowed() -> None:
    assert len(take("chat", stop=["x" * MAX_STOP_CHARS] * 8).stop) == 8


def test_prompts_times_choices_are_limited_together() -> None:
    assert len(take("completion", prompt=["x"] * 64, n=2).prompts) == 64
    assert refusal("completion", prompt=["x"] * 65, n=2).param == "prompt"


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("text", ("text",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [1]], ("a", (1,))),
    ],
)
def test_a_prompt_is_text_or_token_ids_or_a_list_of_either(prompt: Any, taken: Any) -> None:
    assert take("completion", prompt=prompt).prompts == taken


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt"),
        ([1, "a"], "prompt[0]"),
        (["a", True], "prompt[1]"),
        ([[1.5]], "prompt[0][0]"),
    ],
)
def test_other_prompts_are_refused_with_their_place(prompt: Any, param: str) -> None:
    assert refusal("completion", prompt=prompt).param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": ["x"]}, "messages[0].content[0]"),
        ({"role": "king", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0]"),
        ("text", "messages[0]"),
    ],
)
def test_a_bad_message_is_refused_with_its_place(message: Any, param: str) -> None:
    assert refusal("chat", messages=[message]).param == param


def test_text_parts_are_joined_and_the_rest_of_a_message_is_kept() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = take("chat", messages=[{"role": "user", "content": parts, "name": "ann"}])

    assert request.messages == ({"role": "user", "content": "ab", "name": "ann"},)


def test_an_assistant_may_have_said_nothing() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}

    assert take("chat", messages=[message]).messages == (message,)


@given(st.integers(-(2**63), 2**64 - 1))
def test_any_seed_is_a_seed(seed: int) -> None:
    taken = take("completion", seed=seed).sampling.seed

    assert taken is not None and 0 <= taken < 2**63


def test_the_newer_name_of_the_limit_counts_more() -> None:
    assert take("chat", max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert take("chat").max_tokens is None
    assert take("completion").max_tokens == 16
