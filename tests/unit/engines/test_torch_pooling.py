"""What comes out of models that pool is what transformers computes for each text alone."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.engines.pooling_checkpoints import (
    FAMILIES,
    VOCAB,
    add_sentence_files,
    save_classifier,
    save_embedder,
)
from tests.unit.engines.pooling_contract import PoolingContract
from torch.nn.functional import normalize

from llmhost.config.schema.engines import TorchOptions
from llmhost.core.errors import EngineFailed
from llmhost.core.ports import Runner
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.core.step import Draw, Row
from llmhost.engines.torch.pooling import PoolingRunner, group_by_length
from llmhost.engines.torch.pooling_files import task_of
from llmhost.engines.torch.pooling_load import load_pooling

GREEDY = Sampling(temperature=0.0)


def texts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in lengths]


def load(folder: Path, **options: Any) -> PoolingRunner:
    asked = TorchOptions(device="cpu", **options)
    task = task_of(folder, asked)
    return load_pooling(folder, task=task, block_tokens=16, options=asked)


def row(tokens: Sequence[int], task: str = "embed", **pooling: Any) -> Row:
    return Row(1, tokens, 0, [], GREEDY, 0, True, pooling=Pooling(task, **pooling))


def vectors(runner: PoolingRunner, rows: Sequence[Row]) -> torch.Tensor:
    drawn = runner.run(rows)
    assert all(isinstance(one, Draw) and one.pooled is not None for one in drawn), drawn
    return torch.tensor([list(one.pooled) for one in drawn])  # type: ignore[union-attr,arg-type]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def hidden(folder: Path, text: Sequence[int]) -> torch.Tensor:
    """[T, hidden], as plain transformers has it for one text without a mask."""
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        states: torch.Tensor = model(input_ids=torch.tensor([list(text)])).last_hidden_state[0]
    return states


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family's embedder, made once."""
    torch.set_num_threads(1)
    folders: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in folders:
            folders[family] = save_embedder(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_is_what_transformers_gives_for_the_text_alone(
    made: Callable[[str], Path], family: str
) -> None:
    asked = texts(3, 40, 9, 25, 1)
    runner = load(made(family), task="embed")

    ours = vectors(runner, [row(text) for text in asked])

    states = [hidden(made(family), text) for text in asked]
    wanted = [s[-1] if family == "qwen3" else s.mean(0) for s in states]
    close(ours, normalize(torch.stack(wanted), dim=-1))
    assert runner.facts.pooled_size == 32
    assert runner.facts.kv_block_bytes == 0


@pytest.mark.parametrize(
    ("mode", "of"),
    [
        ("cls_token", lambda s: s[0]),
        ("lasttoken", lambda s: s[-1]),
        ("max_tokens", lambda s: s.amax(0)),
        ("mean_tokens", lambda s: s.mean(0)),
    ],
)
def test_sentence_transformers_files_say_how_to_pool(
    tmp_path: Path, mode: str, of: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    folder = add_sentence_files(save_embedder(tmp_path, "bert"), mode=mode, dense=12, longest=48)
    asked = texts(5, 31)
    runner = load(folder)

    ours = vectors(runner, [row(text) for text in asked])

    torch.manual_seed(7)
    weight, bias = torch.randn(12, 32), torch.randn(12)
    pooled = torch.stack([of(hidden(folder, text)) for text in asked])
    close(ours, torch.tanh(pooled @ weight.T + bias))
    assert runner.facts.pooled_size == 12
    assert runner.facts.max_sequence_length == 48


def test_a_vector_is_normalised_when_the_files_say_so_and_raw_when_asked(tmp_path: Path) -> None:
    folder = add_sentence_files(save_embedder(tmp_path, "bert"), normalize=True)
    [text] = texts(20)

    [ours, raw] = vectors(load(folder), [row(text), row(text, is_raw=True)])

    plain = hidden(folder, text).mean(0)
    close(raw, plain)
    close(ours, plain / plain.norm())


def test_options_outweigh_the_files(tmp_path: Path) -> None:
    folder = add_sentence_files(save_embedder(tmp_path, "bert"), normalize=True)
    [text] = texts(20)

    [ours] = vectors(load(folder, pooling="cls", normalize=False), [row(text)])

    close(ours, hidden(folder, text)[0])


@pytest.mark.parametrize(
    ("family", "labels"),
    [("bert", 1), ("roberta", 3), ("distilbert", 3), ("mpnet", 1), ("modernbert", 3), ("qwen3", 1)],
)
def test_scores_are_what_transformers_gives_for_the_text_alone(
    tmp_path: Path, family: str, labels: int
) -> None:
    torch.set_num_threads(1)
    folder = save_classifier(tmp_path, family, labels)
    asked = texts(3, 40, 9)
    runner = load(folder)

    ours = vectors(runner, [row(text, "classify") for text in asked])
    raw = vectors(runner, [row(text, "classify", is_raw=True) for text in asked])

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        plain = torch.cat([model(input_ids=torch.tensor([text])).logits for text in asked])
    close(raw, plain)
    close(ours, torch.sigmoid(plain) if labels == 1 else plain.softmax(-1))
    assert runner.facts.labels == tuple(f"LABEL_{i}" for i in range(labels))
    assert runner.facts.task == "classify"


def test_a_cross_encoder_knows_where_the_second_text_begins(tmp_path: Path) -> None:
    folder = save_classifier(
        tmp_path, "bert", 1, sbert_ce_default_activation_function="torch.nn.modules.linear.Identity"
    )
    [text] = texts(12)

    [ours] = vectors(load(folder), [row(text, "classify", second_from=7)])

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    types = torch.tensor([[0] * 7 + [1] * 5])
    with torch.inference_mode():
        with_types = model(input_ids=torch.tensor([text]), token_type_ids=types).logits[0]
        without = model(input_ids=torch.tensor([text])).logits[0]
    close(ours, with_types)
    assert not torch.allclose(with_types, without, atol=1e-3)


@pytest.fixture(scope="module")
def batched(made: Callable[[str], Path]) -> list[PoolingRunner]:
    return [load(made(family), task="embed") for family in ("bert", "mpnet", "modernbert", "qwen3")]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=12), st.integers(0, 3), st.integers(0, 9))
def test_company_does_not_change_a_vector(
    batched: list[PoolingRunner], lengths: list[int], which: int, seed: int
) -> None:
    runner, asked = batched[which], texts(*lengths, seed=seed)

    together = vectors(runner, [row(text) for text in asked])

    close(together, torch.cat([vectors(runner, [row(text)]) for text in asked]))


@given(st.lists(st.integers(1, 9000), max_size=80))
def test_groups_hold_every_row_once_and_little_padding(lengths: list[int]) -> None:
    groups = group_by_length(lengths)

    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    for group in groups:
        real = sum(lengths[place] for place in group)
        assert max(lengths[p] for p in group) * len(group) - real <= 64 + 0.15 * real


def test_a_text_without_numbers_fails_alone(tmp_path: Path) -> None:
    folder = save_embedder(tmp_path, "bert")
    runner = load(folder)
    embeddings: Any = runner._pool._model.embeddings.word_embeddings  # type: ignore[union-attr]
    embeddings.weight[7] = torch.nan

    drawn = runner.run([row([5, 6]), row([7, 8])])

    assert isinstance(drawn[0], Draw)
    assert isinstance(drawn[1], EngineFailed)


class TestContract(PoolingContract):
    @pytest.fixture(params=["bert", "mpnet", "qwen3", "classifier"])
    def runner(
        self, request: pytest.FixtureRequest, made: Callable[[str], Path], tmp_path: Path
    ) -> Runner:
        if request.param == "classifier":
            return load(save_classifier(tmp_path, "bert", 3))
        return load(made(request.param), task="embed")


def test_a_decoder_keeps_no_cache(made: Callable[[str], Path]) -> None:
    runner = load(made("qwen3"), task="embed")
    model: Any = runner._pool._model  # type: ignore[union-attr]
    assert model(input_ids=torch.tensor([[3, 4]])).past_key_values is None


def test_an_unloaded_model_says_so(made: Callable[[str], Path]) -> None:
    runner = load(made("bert"))
    runner.close()
    with pytest.raises(EngineFailed):
        runner.run([row([3])])
