"""Vectors and scores as OpenAI's own client and plain HTTP ask for them."""

import math
from collections.abc import Callable

import httpx
import pytest
from openai import BadRequestError, OpenAI
from server_process import Node

from llmhost.engines.builtin import corpus
from llmhost.engines.fake_pooling import fake_vector
from llmhost.text.words import WordTokenizer

ClientOf = Callable[[Node, str], OpenAI]
WORDS = WordTokenizer(4096)


@pytest.mark.parametrize("more", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_the_client_reads_the_vectors_whatever_it_asks_for(
    client: OpenAI, more: dict[str, str]
) -> None:
    answer = client.embeddings.create(model="embedder", input=["red green", "blue"], **more)  # type: ignore[arg-type]

    assert [row.index for row in answer.data] == [0, 1]
    for row, text in zip(answer.data, ("red green", "blue"), strict=True):
        if more.get("encoding_format") != "base64":  # asked for by name it stays as it was sent
            assert row.embedding == pytest.approx(fake_vector(WORDS.encode(text)), abs=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
    assert (answer.object, answer.model) == ("list", "embedder")


def test_dimensions_are_cut_and_too_many_are_an_error_with_its_name(client: OpenAI) -> None:
    short = client.embeddings.create(model="embedder", input="red", dimensions=5).data[0].embedding
    assert len(short) == 5
    assert math.hypot(*short) == pytest.approx(1, abs=1e-5)
    with pytest.raises(BadRequestError) as caught:
        client.embeddings.create(model="embedder", input="red", dimensions=5000)
    assert caught.value.param == "dimensions"


def test_a_generating_model_says_what_it_is_for(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="generates text") as caught:
        client.embeddings.create(model="echo", input="red")
    assert caught.value.param == "model"
    with pytest.raises(BadRequestError, match="makes embeddings"):
        client.completions.create(model="embedder", prompt="red")


def test_two_thousand_texts_in_one_request_are_answered_and_billed_once(open_node: Node) -> None:
    response = open_node.post(
        "/v1/embeddings", {"model": "embedder", "input": ["red green"] * 2048}
    )

    assert response.status_code == 200
    assert len(response.json()["data"]) == 2048
    entry = open_node.entry(response.headers["x-request-id"])
    assert entry["tokens"]["embedding"] == 4096
    assert entry["amount_nano"] == 4096 * 1000
    assert open_node.is_idle("embedder")


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
@pytest.mark.parametrize("model", ["embedder", "judge"])
def test_the_best_document_comes_first(open_node: Node, path: str, model: str) -> None:
    documents = ["red car", {"text": "apple pie"}, "apple tart"]

    answer = open_node.post(
        path, {"model": model, "query": "apple pie", "documents": documents, "top_n": 2}
    ).json()

    assert [row["index"] for row in answer["results"]] == [1, 2]
    assert answer["results"][0]["document"] == {"text": "apple pie"}
    assert answer["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert answer["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_pairs_are_scored(open_node: Node, path: str) -> None:
    body = {"model": "judge", "text_1": "apple pie", "text_2": ["apple tart", "red car"]}
    answer = open_node.post(path, body).json()
    assert [row["score"] for row in answer["data"]] == [0.5, 0.0]


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
def test_texts_are_classified(open_node: Node, path: str) -> None:
    answer = open_node.post(path, {"model": "judge", "input": "apple"}).json()
    assert answer["data"][0]["label"] == "relevant"


def test_a_stranger_gets_no_vectors_and_a_key_does(keyed_node: Node, client_of: ClientOf) -> None:
    for path in ("/v1/embeddings", "/rerank", "/score", "/classify"):
        assert keyed_node.post(path, {"model": "echo"}).status_code == 401
    key = keyed_node.create_key("readers")["key"]
    with pytest.raises(BadRequestError, match="generates text"):
        client_of(keyed_node, key).embeddings.create(model="echo", input="x")


def test_what_is_wrong_is_said_in_the_usual_shape(open_node: Node) -> None:
    def error(path: str, body: dict[str, object]) -> dict[str, str]:
        response: httpx.Response = open_node.post(path, body)
        assert response.status_code == 400
        found: dict[str, str] = response.json()["error"]
        assert found.keys() == {"message", "type", "param", "code"}
        return found

    long = {"model": "embedder", "input": ["a", "b " * 99]}
    assert error("/v1/embeddings", long)["code"] == "context_length_exceeded"
    assert error("/v1/embeddings", long)["param"] == "input[1]"
    assert error("/v1/embeddings", {"model": "embedder"})["param"] == "input"
    assert error("/v1/rerank", {"model": "judge", "query": "x"})["param"] == "documents"


def test_the_built_in_embedder_finds_a_question_in_other_words(
    tiny_node: Node, client_of: ClientOf
) -> None:
    questions = [pair.questions[0] for pair in corpus.pairs()[::10]]
    asked = ["How do I create an API key?", "How do I make a key?", *questions]

    answer = client_of(tiny_node, "any").embeddings.create(model="tiny-embed", input=asked)

    vector, *others = (row.embedding for row in answer.data)
    alike = [sum(map(float.__mul__, vector, other)) for other in others]
    assert alike.index(max(alike)) == 0
    assert len(vector) == 192


def test_the_built_in_embedder_ranks(tiny_node: Node) -> None:
    documents = [pair.questions[0] for pair in corpus.pairs()[::10]] + ["How do I make a key?"]
    body = {"model": "tiny-embed", "query": "making keys", "documents": documents, "top_n": 3}

    results = tiny_node.post("/v1/rerank", body).json()["results"]

    assert len(documents) - 1 in [row["index"] for row in results]
