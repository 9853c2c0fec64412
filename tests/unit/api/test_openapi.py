"""The OpenAPI document: it is well formed, and what it says of answers written by hand is what is written."""

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from strictly import strictly

from llmhost.api.bodies import ChatBody
from llmhost.api.openapi.answers import (
    ChatCompletion,
    Classes,
    DecisionAnswer,
    Detokenized,
    EmbeddingList,
    ErrorAnswer,
    EstimateAnswer,
    ModelList,
    ModelObject,
    Moderations,
    Ranking,
    Rendered,
    Scores,
    TextCompletion,
    Tokens,
)
from llmhost.api.openapi.message_answers import CountedTokens, MessageAnswer, MessageError
from llmhost.api.openapi.ollama_answers import (
    OllamaChatAnswer,
    OllamaError,
    OllamaGenerateAnswer,
    OllamaProcesses,
    OllamaPulled,
    OllamaShown,
    OllamaTags,
    OllamaVector,
    OllamaVectors,
    OllamaVersion,
)
from llmhost.api.openapi.operations import ALL
from llmhost.api.openapi.response_answers import CompactionAnswer, InputTokens, ResponseAnswer
from llmhost.config.schema import Settings
from llmhost.config.schema.server import ServerSettings
from llmhost.testing import FAKE_MODEL, TestHost, make_host

Json = dict[str, Any]
pytestmark = pytest.mark.asyncio(loop_scope="module")

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[TestHost]:
    models = {
        "fake": FAKE_MODEL,
        "embedder": msgspec.structs.replace(FAKE_MODEL, options={"task": "embed"}),
        "judge": msgspec.structs.replace(FAKE_MODEL, options={"task": "classify"}),
    }
    async with make_host(models=models) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(host: TestHost) -> Json:
    answer = await host.client.get("/schema")
    assert answer.headers["content-type"] == "application/json"
    found: Json = answer.json()
    return found


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        assert item.keys() <= METHODS
        for method, operation in item.items():
            yield path, method, operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def pointed(document: Json, reference: str) -> Any:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


# ---------------------------------------------------------------------------------------------------- it is well formed


@pytest.mark.parametrize("path", ["/schema/openapi.json", "/admin/openapi/openapi.json"])
async def test_the_document_is_the_same_under_every_name(
    host: TestHost, document: Json, path: str
) -> None:
    assert (await host.client.get(path)).json() == document


async def test_every_reference_leads_to_something(document: Json) -> None:
    for reference in set(references(document)):
        assert pointed(document, reference)


async def test_every_schema_is_a_schema(document: Json) -> None:
    from jsonschema import Draft202012Validator  # takes a second, which nobody shall wait for

    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_operations_have_names_of_their_own(document: Json) -> None:
    named = Counter(operation["operationId"] for _, _, operation in operations(document))
    assert [name for name, count in named.items() if count > 1] == []


async def test_every_operation_says_what_it_does_who_may_ask_and_what_comes_back(
    document: Json,
) -> None:
    for path, method, operation in operations(document):
        place = f"{method} {path}"
        assert operation["summary"], place
        assert "security" in operation, place
        assert any(status.startswith("2") for status in operation["responses"]), place
        assert "400" in operation["responses"], place


async def test_what_stands_in_a_path_is_a_parameter(document: Json) -> None:
    for path, method, operation in operations(document):
        said = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert said == set(re.findall(r"{(\w+)}", path)), f"{method} {path}"


# ------------------------------------------------------------------------------------------------------ it is true


CHAT: Json = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
TEXT: Json = {"model": "fake", "prompt": "hi", "max_tokens": 3}
SAID: Json = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}
WHOLE: Json = {"echo": True, "logprobs": 2, "prompt_logprobs": 1, "return_token_ids": True}

DECISION: Json = {
    "model": "fake",
    "input": "hi",
    "include_cost": True,
    "questions": [
        {"type": "predicate", "instructions": "a"},
        {"type": "choice", "instructions": "a", "choices": [{"value": "b"}, {"value": True}]},
        {"type": "score", "instructions": "a", "levels": [{"label": "b"}, {"label": "c"}]},
    ],
}
READ = ("/api/tags", "/api/ps", "/api/version")
OLLAMA: Json = {"stream": False, "options": {"num_predict": 3}}

RESPONSE: Json = {"model": "fake", "input": "hi", "max_output_tokens": 3}
ANSWERS: list[tuple[str, Json, Any]] = [
    ("/v1/chat/completions", CHAT, ChatCompletion),
    ("/v1/chat/completions", {**CHAT, **SAID, "prompt_logprobs": 1, "n": 2}, ChatCompletion),
    ("/v1/chat/completions", {**CHAT, "include_cost": True}, ChatCompletion),
    ("/v1/completions", TEXT, TextCompletion),
    ("/v1/completions", {**TEXT, **WHOLE}, TextCompletion),
    ("/v1/messages", CHAT, MessageAnswer),
    ("/v1/messages", {**CHAT, "include_cost": True}, MessageAnswer),
    ("/v1/messages/count_tokens", CHAT, CountedTokens),
    ("/v1/embeddings", {"model": "embedder", "input": ["a", "b"]}, EmbeddingList),
    (
        "/v1/embeddings",
        {"model": "embedder", "input": "a", "encoding_format": "base64", "include_cost": True},
        EmbeddingList,
    ),
    ("/v1/rerank", {"model": "judge", "query": "a", "documents": ["b", "c"]}, Ranking),
    (
        "/v1/rerank",
        {"model": "judge", "query": "a", "documents": ["b"], "return_documents": False},
        Ranking,
    ),
    ("/v1/score", {"model": "judge", "text_1": "a", "text_2": "b"}, Scores),
    ("/v1/classify", {"model": "judge", "input": "a"}, Classes),
    ("/v1/decisions", DECISION, DecisionAnswer),
    ("/v1/moderations", {"model": "judge", "input": ["a", "b"]}, Moderations),
    ("/v1/moderations", {"model": "judge", "input": "a", "include_cost": True}, Moderations),
    ("/v1/tokenize", {**TEXT, "return_token_strs": True}, Tokens),
    ("/v1/tokenize", {"model": "fake", "content": "a", "with_pieces": True}, Tokens),
    ("/v1/detokenize", {"model": "fake", "tokens": [1]}, Detokenized),
    ("/v1/apply-template", CHAT, Rendered),
    ("/api/chat", {**CHAT, **OLLAMA, "top_logprobs": 1, "logprobs": True}, OllamaChatAnswer),
    ("/api/chat", {**OLLAMA, "model": "fake"}, OllamaChatAnswer),
    ("/api/generate", {**TEXT, **OLLAMA, "include_cost": True}, OllamaGenerateAnswer),
    ("/api/embed", {"model": "embedder", "input": ["a", "b"]}, OllamaVectors),
    ("/api/embeddings", {"model": "embedder", "prompt": "a"}, OllamaVector),
    ("/api/show", {"model": "fake"}, OllamaShown),
    ("/api/pull", {"model": "fake"}, OllamaPulled),
    ("/api/tags", {}, OllamaTags),
    ("/api/ps", {}, OllamaProcesses),
    ("/api/version", {}, OllamaVersion),
    ("/api/chat", {"model": "nobody"}, OllamaError),
    ("/v1/responses", RESPONSE, ResponseAnswer),
    ("/v1/responses/compact", RESPONSE, CompactionAnswer),
    ("/v1/responses/input_tokens", RESPONSE, InputTokens),
    ("/v1/estimate", CHAT, EstimateAnswer),
    ("/v1/models", {}, ModelList),
    ("/v1/models/fake", {}, ModelObject),
    ("/v1/chat/completions", {"model": "nobody", "messages": CHAT["messages"]}, ErrorAnswer),
    ("/v1/messages", {**CHAT, "model": "nobody"}, MessageError),
    ("/v1/messages", {}, MessageError),
]


@pytest.mark.parametrize(("path", "body", "shape"), ANSWERS)
async def test_an_answer_is_exactly_what_is_described(
    host: TestHost, path: str, body: Json, shape: Any
) -> None:
    client = host.client
    is_read = path.startswith("/v1/models") or path in READ
    answer = await (client.get(path) if is_read else client.post(path, json=body))

    assert (answer.status_code != 200) == (shape in (ErrorAnswer, MessageError, OllamaError)), (
        answer.text
    )
    strictly(shape, answer.content)


async def test_every_described_answer_is_tried() -> None:
    tried = {shape for _, _, shape in ANSWERS}
    assert {operation.answer for operation in ALL} <= tried


@pytest.mark.parametrize("operation", [o for o in ALL if o.body], ids=lambda o: o.paths[0])
async def test_what_is_required_is_missed_by_name(host: TestHost, operation: Any) -> None:
    """Each field by itself: the body of an answer above, without it."""
    body = next(body for path, body, _ in ANSWERS if path == operation.paths[0])
    for field in operation.required:
        rest = {name: value for name, value in body.items() if name != field}
        answer = await host.client.post(operation.paths[0], json=rest)
        assert answer.status_code == 400, field
        assert field in answer.text


async def test_a_field_that_is_kept_as_text_is_described_by_what_it_holds(document: Json) -> None:
    fields = document["components"]["schemas"][ChatBody.__name__]["properties"]

    assert {"$ref": "#/components/schemas/Tool"} in [
        s.get("items") for s in fields["tools"]["anyOf"]
    ]
    assert document["components"]["schemas"]["ChatBody"]["required"] == ["model", "messages"]
    assert fields["model"]["type"] == "string"


@pytest.mark.parametrize(("root", "url"), [("", "/"), ("/llm", "/llm")])
async def test_the_document_says_where_a_proxy_has_put_the_server(root: str, url: str) -> None:
    settings = Settings(server=ServerSettings(root_path=root))
    async with make_host(settings=settings) as host:
        found = (await host.client.get(f"{root}/schema")).json()

    assert found["servers"] == [{"url": url}]
