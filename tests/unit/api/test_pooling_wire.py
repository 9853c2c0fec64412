"""Bodies of the routes for vectors and scores: what each shape becomes, and what is refused with its name."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llmhost.api.loose import read_body
from llmhost.api.pooling_wire import (
    ClassifyBody,
    EmbeddingBody,
    RerankBody,
    ScoreBody,
    classify_request,
    embedding_request,
    rerank_request,
    score_request,
)
from llmhost.core.errors import BadRequest
from llmhost.core.request import GenerationRequest, Kind, PoolingWish
from llmhost.pipeline.pool import param_of

LEAST: dict[str, dict[str, Any]] = {
    "embed": {"model": "m", "input": "hi"},
    "classify": {"model": "m", "input": "hi"},
    "rerank": {"model": "m", "query": "q", "documents": ["d"]},
    "score": {"model": "m", "text_1": "a", "text_2": "b"},
}
ROUTES: dict[str, tuple[type[msgspec.Struct], Callable[..., GenerationRequest]]] = {
    "embed": (EmbeddingBody, embedding_request),
    "classify": (ClassifyBody, classify_request),
    "rerank": (RerankBody, rerank_request),
    "score": (ScoreBody, score_request),
}


def parsed(route: str, **changes: Any) -> GenerationRequest:
    shape, request_of = ROUTES[route]
    raw = msgspec.json.encode({**LEAST[route], **changes})
    return request_of(read_body(raw, shape), "req_1", "mine")


def wish(route: str, **changes: Any) -> PoolingWish:
    found = parsed(route, **changes).pooled
    assert found is not None
    return found


def refusal(route: str, **changes: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parsed(route, **changes)
    return caught.value


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("hi", ("hi",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
@pytest.mark.parametrize("route", ["embed", "classify"])
def test_an_input_is_text_or_ids_or_a_list_of_either(
    route: str, given: Any, prompts: tuple[Any, ...]
) -> None:
    request = parsed(route, input=given)
    assert request.prompts == prompts
    assert request.kind is (Kind.EMBEDDING if route == "embed" else Kind.CLASSIFY)
    assert wish(route, input=given).fields == (("input", len(prompts)),)


@pytest.mark.parametrize(
    ("route", "changes", "param"),
    [
        ("embed", {"input": None}, "input"),
        ("embed", {"input": []}, "input"),
        ("embed", {"input": ["x"] * 2049}, "input"),
        ("embed", {"input": [[1], ["x"]]}, "input[1][0]"),
        ("embed", {"input": [1, "x"]}, "input[0]"),
        ("embed", {"input": 5}, "input"),
        ("embed", {"model": None}, "model"),
        ("embed", {"model": ""}, "model"),
        ("embed", {"encoding_format": "int8"}, "encoding_format"),
        ("embed", {"dimensions": 0}, "dimensions"),
        ("embed", {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ("embed", {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("embed", {"truncation_side": "left"}, "truncation_side"),
        ("embed", {"add_special_tokens": False}, "add_special_tokens"),
        ("embed", {"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ("classify", {"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ("rerank", {"query": None}, "query"),
        ("rerank", {"documents": None}, "documents"),
        ("rerank", {"documents": []}, "documents"),
        ("rerank", {"documents": ["x"] * 2049}, "documents"),
        ("rerank", {"documents": [{"title": "x"}]}, "documents[0].text"),
        ("rerank", {"top_n": -1}, "top_n"),
        ("rerank", {"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ("rerank", {"rank_fields": ["title"]}, "rank_fields"),
        ("score", {"text_1": None}, "text_1"),
        ("score", {"text_2": None}, "text_2"),
        ("score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1"),
        ("score", {"text_1": [], "text_2": ["c"]}, "text_1"),
        ("score", {"text_2": []}, "text_2"),
    ],
)
def test_what_is_wrong_is_refused_with_its_name(
    route: str, changes: dict[str, Any], param: str
) -> None:
    assert refusal(route, **changes).param == param


def test_a_query_is_paired_with_every_document() -> None:
    request = parsed("rerank", query={"text": "q"}, documents=["a", {"text": "b"}])
    assert request.prompts == ("q", "a", "b")
    assert request.pooled is not None
    assert request.pooled.pairs == ((0, 1), (0, 2))
    assert [param_of(request.pooled, i) for i in range(3)] == [
        "query",
        "documents[0]",
        "documents[1]",
    ]


@pytest.mark.parametrize(
    ("one", "other", "pairs"),
    [
        ("a", "b", ((0, 1),)),
        ("a", ["b", "c"], ((0, 1), (0, 2))),
        (["a"], ["b", "c"], ((0, 1), (0, 2))),
        (["a", "x"], ["b", "c"], ((0, 2), (1, 3))),
    ],
)
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2")]
)
def test_scores_are_of_one_and_one_one_and_many_or_as_many(
    names: tuple[str, str], one: Any, other: Any, pairs: tuple[Any, ...]
) -> None:
    given = {"text_1": None, "text_2": None, names[0]: one, names[1]: other}
    assert wish("score", **given).pairs == pairs
    assert parsed("score", **given).kind is Kind.SCORE


def test_a_cut_is_to_a_number_or_to_what_the_model_holds() -> None:
    assert not wish("embed").is_cut
    assert wish("embed", truncate_prompt_tokens=-1) == PoolingWish(is_cut=True)
    assert wish("embed", truncate_prompt_tokens=7) == PoolingWish(is_cut=True, most_tokens=7)


@pytest.mark.parametrize("name", ["normalize", "use_activation"])
def test_a_raw_vector_can_be_asked_for(name: str) -> None:
    assert wish("embed", **{name: False}, dimensions=3) == PoolingWish(is_raw=True, dimensions=3)
    assert not wish("embed", **{name: True}).is_raw


def test_what_all_requests_have_is_kept() -> None:
    for route in ROUTES:
        request = parsed(route, priority=3, user="u", no_such_field=1)
        assert (request.priority, request.user, request.client_request_id) == (3, "u", "mine")
        assert not request.stream
