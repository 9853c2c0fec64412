"""Vectors and scores on a whole node with fake models: what is computed, counted, billed, refused and screened."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.unit.pipeline.node import settled
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as Decoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.safety import SafetySettings
from llmhost.config.schema.server import ServerSettings
from llmhost.core.errors import ContextTooLong, InvalidValue, Overloaded
from llmhost.core.ports import RunnerFacts
from llmhost.core.request import GenerationRequest, Kind, PoolingWish
from llmhost.engines.fake_pooling import fake_scores, fake_vector
from llmhost.hooks.spec import Refusal, hookimpl
from llmhost.pipeline.pool import check_purpose, cosine, pooled_terms
from llmhost.testing import TestHost, make_host
from llmhost.text.tokenizer import FileTokenizer
from llmhost.text.words import WordTokenizer

WORDS = WordTokenizer(4096)
PRICE = PriceSettings(input="1.00")


def fake(task: str, **more: Any) -> ModelSpec:
    options = {"task": task, **more.pop("options", {})}
    return ModelSpec(engine="fake", options=options, price=PRICE, **more)


MODELS = {
    "fake": ModelSpec(engine="fake", price=PRICE),
    "embedder": fake("embed", max_sequence_length=32, max_batch_size=4, max_tokens_per_batch=64),
    "crowded": fake("embed", max_batch_size=2, max_queue=2),
    "judge": fake("classify"),
    "sorter": fake("classify", options={"labels": ["good", "bad", "ugly"]}),
}


@pytest.fixture
async def host() -> AsyncIterator[TestHost]:
    async with make_host(models=MODELS) as made:
        yield made


async def ok(host: TestHost, path: str, **body: Any) -> Any:
    response = await host.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def error(host: TestHost, path: str, **body: Any) -> dict[str, Any]:
    response = await host.client.post(path, json=body)
    assert response.status_code == 400, response.text
    found: dict[str, Any] = response.json()["error"]
    return found


async def test_each_text_has_its_vector_and_all_are_billed_as_input(host: TestHost) -> None:
    texts = ["red green", "blue", "red green"]

    answer = await ok(host, "/v1/embeddings", model="embedder", input=texts)

    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    for row, text in zip(answer["data"], texts, strict=True):
        assert row["embedding"] == pytest.approx(fake_vector(WORDS.encode(text)), abs=1e-6)
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    entry = (await settled(host))[-1]
    tokens = {"fresh_input": 0, "cached_input": 0, "output": 0, "embedding": 5}
    assert entry["tokens"] == tokens
    assert (entry["outcome"], entry["amount_nano"]) == ("answered", 5_000)


async def test_more_texts_than_the_queue_holds_are_answered(host: TestHost) -> None:
    texts = [f"word{i}" for i in range(100)]

    answer = await ok(host, "/v1/embeddings", model="crowded", input=texts)

    assert len(answer["data"]) == 100
    assert answer["data"][99]["embedding"] == pytest.approx(
        fake_vector(WORDS.encode("word99")), abs=1e-6
    )


async def test_fewer_dimensions_are_the_first_ones_at_length_one(host: TestHost) -> None:
    asked = {"model": "embedder", "input": "red green"}
    whole = (await ok(host, "/v1/embeddings", **asked))["data"][0]["embedding"]

    short = (await ok(host, "/v1/embeddings", **asked, dimensions=8))["data"][0]["embedding"]
    raw = (await ok(host, "/v1/embeddings", **asked, dimensions=8, normalize=False))["data"][0]

    assert short == pytest.approx(list(np.array(whole[:8]) / np.linalg.norm(whole[:8])), abs=1e-6)
    assert raw["embedding"] == pytest.approx(
        fake_vector(WORDS.encode("red green"), is_raw=True)[:8], abs=1e-6
    )
    assert (await error(host, "/v1/embeddings", **asked, dimensions=65))["param"] == "dimensions"


async def test_an_embedder_ranks_by_cosine_and_counts_each_text_once(host: TestHost) -> None:
    documents = ["red car", "apple tart", "apple pie good"]

    answer = await ok(host, "/v1/rerank", model="embedder", query="apple pie", documents=documents)

    vectors = [np.array(fake_vector(WORDS.encode(text))) for text in ("apple pie", *documents)]
    wanted = [float(vectors[0] @ other) for other in vectors[1:]]
    found = {row["index"]: row["relevance_score"] for row in answer["results"]}
    assert found == pytest.approx(dict(enumerate(wanted)), abs=1e-5)
    assert [row["index"] for row in answer["results"]] == [2, 1, 0]
    assert answer["results"][0]["document"] == {"text": "apple pie good"}
    assert answer["usage"]["total_tokens"] == 2 + 2 + 2 + 3


async def test_a_cross_encoder_reads_both_texts_of_each_pair(host: TestHost) -> None:
    documents = ["red car", "apple tart"]
    body = {"model": "judge", "query": "apple pie", "documents": documents}

    answer = await ok(host, "/v2/rerank", **body, top_n=1, return_documents=False)

    assert answer["results"] == [{"index": 1, "relevance_score": 0.5}]
    assert answer["usage"]["total_tokens"] == 8


async def test_scores_come_in_the_order_of_the_pairs(host: TestHost) -> None:
    body = {"model": "judge", "text_1": ["a b", "c"], "text_2": ["b", "c"]}

    for path in ("/v1/score", "/score"):
        answer = await ok(host, path, **body)
        assert [row["score"] for row in answer["data"]] == [0.5, 1.0]
        assert answer["data"][1] == {"index": 1, "object": "score", "score": 1.0}


async def test_a_classifier_names_the_likeliest_label(host: TestHost) -> None:
    answer = await ok(host, "/v1/classify", model="sorter", input=["red green blue", [5, 5, 5]])

    probs = fake_scores([5, 5, 5], None, 3)
    assert answer["data"][1] == {
        "index": 1,
        "label": ["good", "bad", "ugly"][probs.index(max(probs))],
        "probs": pytest.approx(probs),
        "num_classes": 3,
    }


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/embeddings", {"model": "fake", "input": "x"}, "generates text"),
        ("/v1/embeddings", {"model": "judge", "input": "x"}, "classifies texts"),
        ("/v1/completions", {"model": "embedder", "prompt": "x"}, "makes embeddings"),
        ("/v1/chat/completions", {"model": "judge", "messages": [{"role": "user", "content": "x"}]}, "classifies"),
        ("/v1/classify", {"model": "embedder", "input": "x"}, "makes embeddings"),
        ("/v1/rerank", {"model": "fake", "query": "x", "documents": ["y"]}, "generates text"),
        ("/v1/score", {"model": "sorter", "text_1": "x", "text_2": "y"}, "3 labels"),
    ],
)  # fmt: skip
async def test_a_model_that_is_for_something_else_says_what_it_is_for(
    host: TestHost, path: str, body: dict[str, Any], says: str
) -> None:
    found = await error(host, path, **body)

    assert says in found["message"]
    assert (found["param"], found["code"]) == ("model", "invalid_value")


async def test_a_text_that_is_too_long_is_refused_by_its_name_or_cut(host: TestHost) -> None:
    body = {"model": "embedder", "input": ["a", " ".join("abcdefgh" * 5)]}
    found = await error(host, "/v1/embeddings", **body)

    assert (found["code"], found["param"]) == ("context_length_exceeded", "input[1]")
    cut = await ok(host, "/v1/embeddings", **body, truncate_prompt_tokens=-1)
    assert cut["usage"]["prompt_tokens"] == 33
    shorter = await ok(host, "/v1/embeddings", **body, truncate_prompt_tokens=3)
    assert shorter["usage"]["prompt_tokens"] == 4
    too_many = await error(host, "/v1/embeddings", **body, truncate_prompt_tokens=33)
    assert too_many["param"] == "truncate_prompt_tokens"
    exactly = await ok(host, "/v1/embeddings", model="embedder", input=[7] * 32)
    assert exactly["usage"]["prompt_tokens"] == 32


async def test_an_empty_text_or_an_id_that_is_none_is_refused_by_its_name(host: TestHost) -> None:
    body = {"model": "judge", "query": "", "documents": ["x", ""]}
    assert (await error(host, "/v1/rerank", **body))["param"] == "documents[1]"
    ids = {"model": "embedder", "input": [[1, 2], [4096]]}
    assert (await error(host, "/v1/embeddings", **ids))["param"] == "input[1]"
    assert (await error(host, "/v1/embeddings", model="embedder", input=""))["param"] == "input"


async def test_rules_and_plugins_read_every_text(host: TestHost) -> None:
    class Curious:
        name = "curious"

        @hookimpl
        def check_input(self, request: GenerationRequest) -> Refusal | None:
            return Refusal("no cherries") if "cherry" in request.text else None

    rules = Settings(safety=SafetySettings(blocked_words=("secret",)), server=ServerSettings())
    async with make_host(models=MODELS, settings=rules, plugins=[Curious()]) as guarded:
        for texts in (["fine", "a secret thing"], ["cherry pie"]):
            found = await error(guarded, "/v1/embeddings", model="embedder", input=texts)
            assert found["code"] == "content_policy_violation"
        body = {"model": "judge", "query": "q", "documents": ["x", "secret"]}
        assert (await error(guarded, "/v1/rerank", **body))["param"] == "documents"
        assert (await ok(guarded, "/v1/embeddings", model="embedder", input="fine"))["data"]


async def test_a_key_may_use_only_its_models_and_strangers_nothing(host: TestHost) -> None:
    key = await host.make_key(models=("judge",))
    body = {"model": "embedder", "input": "x"}
    refused = await host.client.post("/v1/embeddings", json=body)
    forbidden = await host.client.post(
        "/v1/embeddings", json=body, headers={"authorization": f"Bearer {key}"}
    )
    wrong_method = await host.client.get("/rerank")

    assert (refused.status_code, forbidden.status_code) == (401, 403)
    assert wrong_method.status_code == 405


SLOW = fake("embed", max_batch_size=1, options={"token_delay_ms": 5})


async def test_who_leaves_stops_the_rest_and_pays_for_what_was_computed() -> None:
    async with make_host(models={"slow": SLOW}) as host:
        request = replace(request_of(*["x y"] * 500), model="slow")
        exchange = await host.host.processor.open(request, None, {})
        await exchange.read()

        exchange.leave()

        entry = (await settled(host))[-1]
    assert entry["outcome"] == "cancelled"
    assert 2 <= entry["tokens"]["embedding"] < 1000
    assert entry["amount_nano"] == 1000 * entry["tokens"]["embedding"]


async def test_a_request_that_the_server_cuts_fails_as_a_whole_and_costs_nothing() -> None:
    async with make_host(models={"slow": SLOW}) as host:
        request = replace(request_of(*["x y"] * 500), model="slow")
        exchange = await host.host.processor.open(request, None, {})

        host.host.processor.cancel_all()
        with pytest.raises(Overloaded):
            while await exchange.read():
                pass

        entry = (await settled(host))[-1]
    assert (entry["outcome"], entry["amount_nano"]) == ("failed", 0)


def request_of(*prompts: Any, **wish: Any) -> GenerationRequest:
    kind = Kind.SCORE if wish.get("pairs") else Kind.EMBEDDING
    fields = (("input", len(prompts)),)
    return GenerationRequest(
        request_id="r",
        kind=kind,
        model="m",
        prompts=prompts,
        pooled=PoolingWish(fields=fields, **wish),
    )


def facts(task: str, labels: tuple[str, ...] = ()) -> RunnerFacts:
    return RunnerFacts(
        device="none",
        vocab_size=4096,
        max_sequence_length=32,
        block_tokens=16,
        kv_block_bytes=0,
        weights_bytes=0,
        task=task,
        pooled_size=8,
        labels=labels,
    )


def test_the_second_text_of_a_pair_is_cut_into_what_the_first_one_leaves() -> None:
    request = request_of("a b c d", "e f g h", pairs=((0, 1),), is_cut=True, most_tokens=5)

    made = pooled_terms(request, WORDS, facts("classify", ("x",)), 32)

    assert made.prompts == (tuple(WORDS.encode("a b") + WORDS.encode("e f g")),)
    assert made.poolings[0].second_from == 2


def test_documents_are_cut_and_what_is_asked_about_them_is_not() -> None:
    texts, pairs = ("a b c d", "e f g h i k l m", "j"), ((0, 1), (0, 2))
    request = request_of(*texts, pairs=pairs, most_document_tokens=2)

    alone = pooled_terms(request, WORDS, facts("embed"), 32)
    paired = pooled_terms(request, WORDS, facts("classify", ("x",)), 32)

    query, long, short = (tuple(WORDS.encode(text)) for text in ("a b c d", "e f", "j"))
    assert alone.prompts == (query, long, short)
    assert paired.prompts == (query + long, query + short)


@pytest.mark.parametrize("task", ["embed", "classify"])
def test_documents_are_cut_to_what_the_model_holds_and_a_query_that_is_too_long_is_refused(
    task: str,
) -> None:
    labels = ("x",)
    request = request_of("a b", " ".join("ab" * 9), pairs=((0, 1),), most_document_tokens=4_096)
    made = pooled_terms(request, WORDS, facts(task, labels), 8)
    assert len(made.prompts[-1]) == 8

    request = request_of(" ".join("ab" * 9), "a", pairs=((0, 1),), most_document_tokens=4_096)
    with pytest.raises(ContextTooLong):
        pooled_terms(request, WORDS, facts(task, labels), 8)


def letters(around: str = "$A") -> FileTokenizer:
    """Each byte of a text is a token, and one of those that mean nothing to it is `[UNK]`."""
    letters = {letter: i for i, letter in enumerate(["[UNK]", *ByteLevel.alphabet()])}
    del letters["~"]
    backend = Tokenizer(BPE(vocab=letters, merges=[], unk_token="[UNK]"))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = Decoder()
    backend.add_special_tokens(["[UNK]"])
    backend.post_processor = TemplateProcessing(around, special_tokens=[("[UNK]", 0)])
    return FileTokenizer(backend)


@pytest.mark.parametrize("text", ["~a~", "abcdef", "ab\u00fc", "a\u00fcb"])
def test_a_document_is_read_as_it_came_up_to_where_it_is_cut(text: str) -> None:
    tokenizer = letters()
    request = request_of("q", text, pairs=((0, 1),), most_document_tokens=3)

    made = pooled_terms(request, tokenizer, replace(facts("classify", ("x",)), vocab_size=300), 4)

    assert made.prompts == ((*tokenizer.encode("q"), *tokenizer.encode(text)[:3]),)


def test_what_stands_around_a_document_is_none_of_its_tokens() -> None:
    tokenizer = letters("[UNK] $A [UNK]")
    request = request_of("q", "abc", pairs=((0, 1),), most_document_tokens=2)

    made = pooled_terms(request, tokenizer, replace(facts("embed"), vocab_size=300), 8)

    assert made.prompts == tuple(tuple(tokenizer.encode(text)) for text in ("q", "ab"))


def test_a_pair_that_is_too_long_is_named_by_its_second_text() -> None:
    request = request_of(" ".join("ab" * 9), " ".join("ab" * 9), pairs=((0, 1),))
    with pytest.raises(ContextTooLong) as caught:
        pooled_terms(request, WORDS, facts("classify", ("x",)), 32)
    assert caught.value.param == "input[1]"


def test_a_score_needs_one_label() -> None:
    request = request_of("a", "b", pairs=((0, 1),))
    check_purpose(request, facts("classify", ("x",)))
    check_purpose(request, facts("embed"))
    with pytest.raises(InvalidValue):
        check_purpose(request, facts("classify", ("x", "y")))


def test_a_text_is_as_like_itself_as_can_be_and_no_more() -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 192)).astype(np.float32)
    units = [vector / np.linalg.norm(vector) for vector in vectors]

    assert max(float(unit @ unit) for unit in units) > 1, "rounding goes beyond it"
    assert max(cosine(unit, unit) for unit in units) == 1.0
    assert min(cosine(unit, -unit) for unit in units) == -1.0
