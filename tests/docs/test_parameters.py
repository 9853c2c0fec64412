"""docs/parameters.md says of every parameter what the parsers do with it."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from anthropic.types import MessageCountTokensParams, message_create_params
from openai.types import DecisionCreateParams, EmbeddingCreateParams, ModerationCreateParams
from openai.types.chat import completion_create_params
from openai.types.completion_create_params import CompletionCreateParamsBase
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_compact_params import ResponseCompactParams
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from tests.parameter_tables import EACH, FORMS, ROUTES, STATES, Body, Route, of_row, states

from llmhost.api.bodies import ChatBody
from llmhost.api.extras import FINE, INSTEAD, OF_CHATS, GenerationExtras
from llmhost.api.pooling_wire import EmbeddingBody
from llmhost.core.errors import BadRequest, UnsupportedParameter

ROWS = pytest.mark.parametrize("row", EACH, ids=of_row)


def fields(route: Route) -> set[str]:
    return {each.encode_name for each in msgspec.structs.fields(route.shape)}


def parsed(route: Route, body: Body) -> Any:
    request, beside = route.parse(json.dumps({**route.least, **body}).encode(), "r", None)
    if callable(beside):  # what writes the answer, and what of the body it holds
        beside = (beside.__qualname__, [each.cell_contents for each in beside.__closure__ or ()])
    return request, beside


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_the_tables_have_every_parameter_that_a_parser_knows(route: Route):
    rows = route.rows()

    assert fields(route) <= rows.keys()
    assert {name for name, state in rows.items() if state != "ignored"} <= fields(route)
    assert set(rows.values()) <= set(STATES)


OF_CLIENTS = {
    "chat": (completion_create_params.CompletionCreateParamsBase,),
    "completions": (CompletionCreateParamsBase,),
    "embeddings": (EmbeddingCreateParams,),
    "moderations": (ModerationCreateParams,),
    "decisions": (DecisionCreateParams,),
    "messages": (message_create_params.MessageCreateParamsBase, MessageCountTokensParams),
    "responses": (ResponseCreateParamsBase, ResponseCompactParams, InputTokenCountParams),
}
"""What the vendors' own clients send to each route."""


@pytest.mark.parametrize("name", OF_CLIENTS)
def test_the_tables_have_every_parameter_that_the_vendors_clients_have(name: str):
    (route,) = [each for each in ROUTES if each.name == name]

    for params in OF_CLIENTS[name]:
        assert params.__annotations__.keys() <= route.rows().keys()


@pytest.mark.parametrize("section", FORMS)
def test_the_tables_of_forms_have_every_parameter(section: str):
    rows = states(section)

    assert {name for name, state in rows.items() if state != "refused"} == FORMS[section]
    assert {*rows.values()} <= {*STATES}


@ROWS
def test_a_parameter_does_what_its_row_says(row: tuple[Route, str, str]):
    route, name, state = row
    asked = route.asked(name)
    is_one_of_some = any(name in group for group in route.together)
    without = {} if is_one_of_some else route.beside(name)
    match state:
        case "honoured":
            assert parsed(route, asked) != parsed(route, without)
        case "ignored":
            request, beside = parsed(route, asked)
            assert (replace(request, user=None), beside) == parsed(route, {})
        case _:
            with pytest.raises(UnsupportedParameter) as refusal:
                parsed(route, asked)
            assert refusal.value.param == name


@pytest.mark.parametrize("value", [None, [], {}, "", 0, False])
@pytest.mark.parametrize("name", [*GenerationExtras.__struct_fields__, *OF_CHATS])
def test_what_is_refused_may_ask_for_nothing(name: str, value: Any):
    if value in FINE.get(name, (value,)):
        assert parsed(ROUTES[0], {name: value}) == parsed(ROUTES[0], {})


@pytest.mark.parametrize(("name", "values"), FINE.items(), ids=FINE)
def test_what_happens_anyway_may_be_asked_for(name: str, values: tuple[Any, ...]):
    route = ROUTES[0] if name in fields(ROUTES[0]) else ROUTES[2]

    for value in values:
        assert parsed(route, {name: value}) == parsed(route, {})


def test_a_refusal_that_knows_another_way_says_so():
    with pytest.raises(UnsupportedParameter, match="send 'max_tokens'"):
        parsed(ROUTES[0], {"n_predict": 5})


@pytest.mark.parametrize("text", [b"[" * 99, b'"\xff"', b"[" * 100_000])
def test_a_refused_parameter_that_is_no_json_is_refused_all_the_same(text: bytes):
    body = b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "lora": %b}' % text

    with pytest.raises(BadRequest):
        ROUTES[0].parse(body, "r", None)


def test_what_is_said_of_refused_parameters_is_said_of_known_ones():
    known = {*ChatBody.__struct_fields__, *EmbeddingBody.__struct_fields__}

    assert {*FINE, *INSTEAD, *OF_CHATS} <= known


NOT_ASKING = {
    ("chat", "logprobs"): False,
    ("chat", "top_logprobs"): 0,
    ("chat", "tools"): [],
    ("chat", "functions"): [],
    ("chat", "response_format"): {"type": "text"},
    ("chat", "frequency_penalty"): 0,
    ("chat", "presence_penalty"): 0,
    ("chat", "logit_bias"): {},
    ("chat", "repetition_penalty"): 1,
    ("chat", "min_p"): 0,
    ("chat", "min_tokens"): 0,
    ("chat", "stop_token_ids"): [],
    ("chat", "structured_outputs"): {},
    ("completions", "echo"): False,
    ("completions", "suffix"): "",
    ("completions", "best_of"): 1,
    ("embeddings", "messages"): [],
    ("rerank", "max_chunks_per_doc"): 1,
    ("rerank", "rank_fields"): [],
    ("score", "truncation_side"): "right",
    ("classify", "add_special_tokens"): True,
}
"""What asks for what happens anyway, as the notes say."""


@pytest.mark.parametrize(("route", "name"), NOT_ASKING)
def test_a_value_that_changes_nothing_is_fine(route: str, name: str):
    (found,) = [each for each in ROUTES if each.name == route]

    assert parsed(found, {name: NOT_ASKING[route, name]}) == parsed(found, {})


@pytest.mark.parametrize("value", [{}, {"search_context_size": "low"}])
def test_a_search_is_asked_for_by_an_empty_object_too(value: Any):
    with pytest.raises(UnsupportedParameter):
        parsed(ROUTES[0], {"web_search_options": value})
