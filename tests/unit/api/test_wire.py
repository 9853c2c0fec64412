"""Bodies at the edge: whatever a client sends becomes a checked request or a refusal that names the field."""

import contextlib
import gzip
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.api.bodies import MAX_CHOICES, ChatBody, CompletionBody
from llmhost.api.openai import parse_chat, parse_completion
from llmhost.api.sampling import (
    MAX_ALLOWED_IDS,
    MAX_BAD_WORDS,
    MAX_BIASED,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOPS,
)
from llmhost.api.wire import FLEX_PRIORITY
from llmhost.core.errors import BadRequest, MissingParameter
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
    looks_at_prompt = request.echo or request.sampling.prompt_logprobs is not None
    assert request.n >= 1
    assert request.max_tokens is None or request.max_tokens >= 1 or looks_at_prompt
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
    assert take(route, metadata_of_mine={"a": 1}, top_a=0.1) == take(route)


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


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ],
)
def test_what_must_be_there_within_a_field_is_missed_by_name(
    body: dict[str, Any], param: str
) -> None:
    with pytest.raises(MissingParameter) as refused:
        parse_chat(json.dumps({**CHAT, **body}).encode(), "req_1", None)
    assert refused.value.param == param


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
        ("presence_penalty", -2.1, "presence_penalty"),
        ("repetition_penalty", 0.009, "repetition_penalty"),
        ("repetition_penalty", 10.1, "repetition_penalty"),
        ("min_p", 1.1, "min_p"),
        ("logit_bias", {"1": 100.1}, "logit_bias"),
        ("logit_bias", {"one": 1}, "logit_bias"),
        ("logit_bias", {"-1": 1}, "logit_bias"),
        ("logit_bias", {"1": "much"}, "logit_bias"),
        ("logit_bias", [1, 2], "logit_bias"),
        ("logit_bias", {str(i): 1 for i in range(MAX_BIASED + 1)}, "logit_bias"),
        ("stop_token_ids", [1, -1], "stop_token_ids[1]"),
        ("stop_token_ids", [1, True], "stop_token_ids[1]"),
        ("stop_token_ids", 5, "stop_token_ids"),
        ("stop_token_ids", [2**31], "stop_token_ids[0]"),
        ("stop_token_ids", [1] * (MAX_STOP_IDS + 1), "stop_token_ids"),
        ("allowed_token_ids", [], "allowed_token_ids"),
        ("allowed_token_ids", ["1"], "allowed_token_ids[0]"),
        ("allowed_token_ids", [1] * (MAX_ALLOWED_IDS + 1), "allowed_token_ids"),
        ("bad_words", "no", "bad_words"),
        ("bad_words", ["a", 1], "bad_words[1]"),
        ("bad_words", ["a", ""], "bad_words"),
        ("bad_words", ["a"] * (MAX_BAD_WORDS + 1), "bad_words"),
        ("bad_words", ["a" * (MAX_STOP_CHARS + 1)], "bad_words"),
        ("bad_words", ["a" * 100] * 21, "bad_words"),
        ("bad_words", ["a" * 100_000], "bad_words"),
        ("min_tokens", -1, "min_tokens"),
        ("min_tokens", 1.5, "min_tokens"),
        ("prompt_logprobs", 21, "prompt_logprobs"),
        ("prompt_logprobs", True, "prompt_logprobs"),
        ("return_token_ids", 1, "return_token_ids"),
        ("service_tier", "gold", "service_tier"),
        ("timeout_ms", 0, "timeout_ms"),
        ("timeout_ms", 86_400_001, "timeout_ms"),
        ("cache_salt", "x" * 129, "cache_salt"),
        ("truncate_prompt_tokens", 0, "truncate_prompt_tokens"),
        ("ignore_eos", "yes", "ignore_eos"),
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
        ("chat", {"functions": [{}]}),
        ("chat", {"modalities": ["audio"]}),
        ("completion", {"use_beam_search": True}),
        ("chat", {"chat_template": "{{ messages }}"}),
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
        ("chat", {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}),
        ("chat", {"structured_outputs": {}, "guided_json": None}),
        ("chat", {"response_format": {"type": "text"}, "modalities": ["text"]}),
        ("chat", {"logprobs": False, "top_logprobs": 0, "top_k": 0}),
        ("completion", {"echo": False, "suffix": "", "best_of": 1, "top_k": -1}),
    ],
)
def test_values_that_ask_for_nothing_special_change_nothing(
    route: str, fields: dict[str, Any]
) -> None:
    assert take(route, **fields) == take(route)


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("chat", {"top_logprobs": 1}, "top_logprobs"),
        ("chat", {"top_logprobs": 1, "logprobs": False}, "top_logprobs"),
        ("chat", {"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ("chat", {"logprobs": 1}, "logprobs"),
        ("chat", {"logprobs": True, "top_logprobs": 20, "n": 49}, "logprobs"),
        ("completion", {"logprobs": True}, "logprobs"),
        ("completion", {"logprobs": 21}, "logprobs"),
        ("completion", {"logprobs": 8, "prompt": ["a"] * 40, "n": 3}, "logprobs"),
        ("completion", {"logprobs": 8, "prompt": ["a"] * 40, "best_of": 3}, "logprobs"),
        ("chat", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("completion", {"best_of": 2, "n": 3}, "best_of"),
        ("completion", {"best_of": 2, "stream": True}, "best_of"),
        ("completion", {"best_of": 129}, "best_of"),
        ("completion", {"best_of": 64, "prompt": ["a", "b", "c"]}, "prompt"),
        ("completion", {"max_tokens": 0}, "max_tokens"),
        ("completion", {"max_tokens": 0, "logprobs": 1}, "max_tokens"),
        ("chat", {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("chat", {"max_completion_tokens": 5, "max_tokens": 0}, "max_tokens"),
        ("chat", {"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ("completion", {"min_tokens": 17}, "min_tokens"),
        ("completion", {"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens"),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_the_name_of_one(
    route: str, fields: dict[str, Any], param: str
) -> None:
    refused = refusal(route, **fields)

    assert (refused.code, refused.param) == ("invalid_value", param)


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_said_of_drawing_arrives_where_tokens_are_drawn(route: str) -> None:
    taken = take(
        route,
        min_p=0.1,
        frequency_penalty=-2,
        presence_penalty=2,
        repetition_penalty=10,
        logit_bias={"7": -100, "3": 100, "5": 0},
        allowed_token_ids=[9, 3, 9],
        prompt_logprobs=0,
    ).sampling

    assert (taken.min_p, taken.repetition_penalty) == (0.1, 10)
    assert (taken.frequency_penalty, taken.presence_penalty) == (-2, 2)
    assert taken.logit_bias == ((7, -100), (3, 100))
    assert taken.allowed_token_ids == (3, 9)
    assert (taken.logprobs, taken.prompt_logprobs) == (None, 0)


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_said_of_the_end_and_the_place_in_the_queue_is_kept(route: str) -> None:
    taken = take(
        route,
        max_tokens=9,
        min_tokens=9,
        stop_token_ids=[5, 1, 5],
        bad_words=["no", "never"],
        timeout_ms=1500,
        cache_salt="mine",
        return_token_ids=True,
    )

    assert (taken.min_tokens, taken.stop_token_ids) == (9, (1, 5))
    assert (taken.bad_words, taken.timeout_ms) == (("no", "never"), 1500)
    assert (taken.cache_salt, taken.return_token_ids) == ("mine", True)


def test_log_probabilities_are_asked_for_in_two_ways() -> None:
    assert take("chat", logprobs=True).sampling.logprobs == 0
    assert take("chat", logprobs=True, top_logprobs=20).sampling.logprobs == 20
    assert take("chat", logprobs=False).sampling.logprobs is None
    assert take("completion", logprobs=0).sampling.logprobs == 0
    assert take("completion", logprobs=20).sampling.logprobs == 20


def test_nothing_is_said_where_only_the_prompt_is_looked_at() -> None:
    assert take("completion", max_tokens=0, echo=True).max_tokens == 0
    assert take("completion", max_tokens=0, prompt_logprobs=1).max_tokens == 0


def test_more_may_be_run_than_is_answered_with() -> None:
    taken = take("completion", best_of=5, n=2)

    assert (taken.best_of, taken.n, taken.runs) == (5, 2, 5)
    assert take("completion", best_of=2, n=2, stream=True).best_of is None
    assert take("completion", best_of=0).best_of is None


def test_a_chats_prompt_ends_with_an_answer_begun_a_message_or_within_it() -> None:
    ends = [
        (taken.add_generation_prompt, taken.continue_final_message)
        for taken in (
            take("chat"),
            take("chat", add_generation_prompt=False),
            take("chat", continue_final_message=True),
            take("chat", continue_final_message=True, add_generation_prompt=False),
        )
    ]

    assert ends == [(True, False), (False, False), (False, True), (False, True)]
    both = refusal("chat", continue_final_message=True, add_generation_prompt=True)
    assert both.param == "continue_final_message"


def test_special_tokens_are_a_matter_of_completions() -> None:
    assert not take("completion", add_special_tokens=False).add_special_tokens
    assert take("chat", add_special_tokens=False) == take("chat")
    assert refusal("chat", add_special_tokens=True).code == "unsupported_parameter"


@pytest.mark.parametrize("tier", ["auto", "default", "priority", "scale", "fast"])
def test_no_tier_comes_before_others(tier: str) -> None:
    assert take("chat", service_tier=tier) == take("chat")


def test_the_flex_tier_steps_back() -> None:
    flex = take("chat", service_tier="flex", priority=7)

    assert (flex.priority, flex.is_flex) == (7 + FLEX_PRIORITY, True)


LOOSE = ["tools", "functions", "logit_bias", "response_format", "structured_outputs", "audio"]
LOOSE += ["modalities", "stop_token_ids", "tool_choice", "function_call", "chat_template_kwargs"]
LOOSE += ["bad_words", "allowed_token_ids"]


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
        ({"content": "x"}, "messages[0].role"),
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


@pytest.mark.parametrize(
    ("text", "place"),
    [(r"a\ud83d", 12), (r"a\ud83db", 12), (r"\ude00", 11), (r"\ud83d\ude00\ud83d\ud83d\ude00", 23)],
)
def test_a_text_that_was_cut_within_a_character_is_told_so(text: str, place: int):
    with pytest.raises(BadRequest, match=rf"\\u\w+ at byte {place} is half of a character"):
        parse_completion(b'{"prompt":"%b","model":"m"}' % text.encode(), "req_1", None)


def test_a_backslash_that_stands_for_itself_cuts_no_character():
    with pytest.raises(BadRequest, match="not valid JSON: JSON is malformed"):
        parse_completion(rb'{"prompt":"\\ud83d","model":"m",}', "req_1", None)
    with pytest.raises(BadRequest, match=r"\\ud83d at byte 13 is half"):
        parse_completion(rb'{"prompt":"\\\ud83d","model":"m"}', "req_1", None)


def test_what_means_a_character_together_is_one():
    body = rb'{"model":"m","prompt":"\ud83d\ude00 \\ud83d"}'

    assert parse_completion(body, "req_1", None)[0].prompts == ("\U0001f600 \\ud83d",)


def test_a_compressed_body_is_told_so():
    with pytest.raises(BadRequest, match="it is compressed"):
        parse_chat(gzip.compress(json.dumps(CHAT).encode()), "req_1", None)
