"""Encoders in GGUF files: vectors and scores are those of the torch engine, and callers get them over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs the extra gguf")

from tests.unit.engines.llama.encoders import write_encoder
from tests.unit.engines.llama.gguf_files import write
from tests.unit.engines.pooling_checkpoints import save_classifier, save_embedder
from tests.unit.engines.pooling_contract import TEXTS, PoolingContract, pooled, row
from tokenizers import BertWordPieceTokenizer

from llmhost.config.schema.engines import TorchOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ModelUnavailable
from llmhost.core.ports import Runner
from llmhost.engines.llama.header import read_header
from llmhost.engines.llama.kind import LlamaKind
from llmhost.engines.llama.tokenizer import CONTROL, NORMAL, UNKNOWN, load_gguf_tokenizer
from llmhost.engines.torch.pooling_load import load_pooling
from llmhost.testing import make_host

XLM = "xlm-roberta"
KIND = LlamaKind()
"""Which knows files that it has loaded before."""


def spec(path: Path, **options: object) -> ModelSpec:
    asked = {"threads": 1, "flash_attention": "off", **options}
    return ModelSpec(engine="llama", source=str(path), max_tokens_per_batch=128, options=asked)


def load(path: Path, **options: object) -> Runner:
    asked = spec(path, **options)
    return KIND.load(asked, path, KIND.footprint(asked, path))


def by_torch(
    folder: Path, task: str, texts: list[tuple[int, ...]], **pooling: object
) -> np.ndarray:
    runner = load_pooling(
        folder, task=task, block_tokens=16, options=TorchOptions(task=task, threads=1)
    )
    return np.array(pooled(runner, [row(runner, text, **pooling) for text in texts]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for labels in (1, 3):
        made = save_classifier(folder / f"c{labels}", XLM, labels, type_vocab_size=1)
        names = [f"n{at}" for at in range(labels)] if labels > 1 else None
        write_encoder(folder / f"c{labels}.gguf", made, pooling="rank", labels=names)
    made = save_embedder(folder / "e", XLM)
    write_encoder(folder / "e.gguf", made, pooling="mean")
    return folder


class TestEmbeds(PoolingContract):
    @pytest.fixture
    def runner(self, folder: Path) -> Iterator[Runner]:
        runner = load(folder / "e.gguf")
        yield runner
        runner.close()


class TestScores(PoolingContract):
    @pytest.fixture
    def runner(self, folder: Path) -> Iterator[Runner]:
        runner = load(folder / "c3.gguf")
        yield runner
        runner.close()


@pytest.mark.parametrize("name", ["c1", "c3", "e"])
@pytest.mark.parametrize("is_raw", [False, True])
def test_what_comes_out_is_what_the_torch_engine_says(
    folder: Path, name: str, is_raw: bool
) -> None:
    runner = load(folder / f"{name}.gguf")
    found = np.array(pooled(runner, [row(runner, text, is_raw=is_raw) for text in TEXTS]))

    task = runner.facts.task
    assert task == ("embed" if name == "e" else "classify")
    if not (name == "e" and is_raw):  # the torch engine's checkpoint says nothing of a last step
        wanted = by_torch(folder / name, task, [*TEXTS], is_raw=is_raw)
        if name == "e":
            wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        assert np.allclose(found, wanted, atol=2e-3)
    assert runner.facts.labels == {"c1": ("LABEL_0",), "c3": ("n0", "n1", "n2")}.get(name, ())
    runner.close()


def test_pairs_are_put_together_as_the_model_was_trained(folder: Path) -> None:
    tokenizer = load_gguf_tokenizer(read_header(folder / "c1.gguf"))
    one, two = (tokenizer.encode(text, add_special_tokens=False) for text in ("one tree", "two"))

    assert tokenizer.encode("one tree") == [0, *one, 2]
    assert tokenizer.encode_whole("one tree", "two") == ([0, *one, 2, 2, *two, 2], None)
    cut, _ = tokenizer.encode_whole("one tree " * 9, "two", most_tokens=9)
    assert len(cut) == 9
    assert cut[-2:] == [*two[-1:], 2]
    short, _ = tokenizer.encode_whole("two", "one tree", most_second=1)
    assert short == [0, *two, 2, 2, one[0], 2]
    assert tokenizer.decode(tokenizer.encode("small trees")) == "small trees"


def test_what_is_not_computed_as_it_was_trained_is_refused_by_name(
    folder: Path, tmp_path: Path
) -> None:
    apart = write_encoder(tmp_path / "apart.gguf", folder / "c1", pooling="rank", types=2)
    with pytest.raises(ModelUnavailable, match="tells the texts of a pair apart"):
        load(apart)
    with pytest.raises(ModelUnavailable, match=r"made to classify, and options\.task is 'embed'"):
        load(folder / "c1.gguf", task="embed")
    with pytest.raises(ModelUnavailable, match=r"made to embed, and options\.task is 'classify'"):
        load(folder / "e.gguf", task="classify")


async def test_documents_are_ranked_and_texts_embedded(folder: Path) -> None:
    models = {name: spec(folder / f"{name}.gguf") for name in ("c1", "c3", "e")}
    documents = ["two small trees", "one", "growing trees ranked"]
    async with make_host(models=models) as host:
        body = {"model": "c1", "query": "small tree", "documents": documents}
        ranked = (await host.client.post("/v1/rerank", json=body)).json()
        embedded = await host.client.post("/v1/embeddings", json={"model": "e", "input": documents})
        sorted_in = await host.client.post("/v1/classify", json={"model": "c3", "input": "one"})

    scores = {line["index"]: line["relevance_score"] for line in ranked["results"]}
    tokenizer = load_gguf_tokenizer(read_header(folder / "c1.gguf"))
    pairs = [tuple(tokenizer.encode_whole("small tree", text)[0]) for text in documents]
    wanted = by_torch(folder / "c1", "classify", pairs)[:, 0]
    assert [scores[at] for at in range(3)] == pytest.approx(wanted.tolist(), abs=2e-3)
    assert [*scores] == sorted(range(3), key=lambda at: -wanted[at])
    assert [len(line["embedding"]) for line in embedded.json()["data"]] == [32] * 3
    assert sorted_in.json()["data"][0]["label"] in ("n0", "n1", "n2")


def test_an_encoders_words_have_the_ids_of_its_checkpoint(tmp_path: Path) -> None:
    """As a converter writes WordPiece: what begins a word is marked, and not what goes on with one."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = [*"abcdefghijklmnopqrstuvwxyz.", "tree", "##s", "##ing", "grow", "##e", "##r", "##a"]
    theirs = BertWordPieceTokenizer(
        vocab={text: at for at, text in enumerate((*names, *pieces))}, lowercase=True
    )
    spelt = [text[2:] if text.startswith("##") else f"▁{text}" for text in pieces]
    vocabulary = {
        "model": "bert",
        "tokens": [*names, *spelt],
        "token_type": [CONTROL, UNKNOWN, CONTROL, CONTROL, *[NORMAL] * len(spelt)],
        "bos_token_id": 2,
        "seperator_token_id": 3,
        "unknown_token_id": 1,
        "padding_token_id": 0,
        "mask_token_id": 0,
        "cls_token_id": 2,
    }
    pairs = {f"tokenizer.ggml.{key}": value for key, value in vocabulary.items()}
    path = write(tmp_path / "words.gguf", {"general.architecture": "bert", **pairs})
    made = load_gguf_tokenizer(read_header(path))

    for text in ("trees growing.", "Tréé grower", "a b. ~ treea", ""):
        assert made.encode(text) == theirs.encode(text).ids
    pair = made.encode_whole("tree", "grow")[0]
    assert pair == theirs.encode("tree", "grow").ids
    assert made.decode(made.encode("trees growing")) == "trees growing"
