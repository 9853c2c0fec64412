"""docs/api.md says what the routes for vectors and scores do with every parameter."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmhost.api.pooling import POOLING
from llmhost.api.pooling_wire import ClassifyBody, EmbeddingBody, RerankBody, ScoreBody
from llmhost.core.errors import BadRequest, UnsupportedParameter

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
SECTION = TEXT.partition("\n## Vectors and scores\n")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| (\w+) \|", SECTION, re.MULTILINE)
BODIES = {
    "embeddings": EmbeddingBody,
    "rerank": RerankBody,
    "score": ScoreBody,
    "classify": ClassifyBody,
}
LEAST: dict[str, dict[str, Any]] = {
    "embeddings": {"model": "m", "input": "hi"},
    "rerank": {"model": "m", "query": "q", "documents": ["d"]},
    "score": {"model": "m", "text_1": "a", "text_2": "b"},
    "classify": {"model": "m", "input": "hi"},
}
REFUSED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "truncation_side": "left",
    "add_special_tokens": False,
    "max_tokens_per_doc": 8,
    "max_chunks_per_doc": 2,
    "rank_fields": ["title"],
}
FINE: dict[str, Any] = {
    "messages": [],
    "truncation_side": "right",
    "add_special_tokens": True,
    "max_chunks_per_doc": 1,
    "rank_fields": [],
}


def routes(named: str) -> list[str]:
    return list(BODIES) if named == "all" else named.split(", ")


def parse(route: str, **more: Any) -> Any:
    (found,) = [r for r in POOLING if f"/v1/{route}" in r.paths]
    return found.parse(json.dumps({**LEAST[route], **more}).encode(), "r", None)[0]


@pytest.mark.parametrize("route", BODIES)
def test_the_table_has_every_parameter_of_the_route_and_no_other(route: str):
    known = {field.encode_name for field in msgspec.structs.fields(BODIES[route])}

    assert {name for name, named, _ in ROWS if route in routes(named)} == known


@pytest.mark.parametrize(
    ("name", "named"), [(n, on) for n, on, state in ROWS if state == "refused"]
)
def test_what_the_table_calls_refused_is_refused_unless_it_asks_for_nothing(name: str, named: str):
    for route in routes(named):
        with pytest.raises(UnsupportedParameter) as caught:
            parse(route, **{name: REFUSED[name]})
        assert caught.value.param == name
        if name in FINE:
            assert parse(route, **{name: FINE[name]}) == parse(route)


@pytest.mark.parametrize(
    ("name", "named"), [(n, on) for n, on, state in ROWS if state != "refused"]
)
def test_what_the_table_calls_known_has_a_type(name: str, named: str):
    for route in routes(named):
        with pytest.raises(BadRequest) as caught:
            parse(route, **{name: {"no": "such"}})
        assert (caught.value.param or "").startswith(name)
