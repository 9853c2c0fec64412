"""Which folders are models that pool, what they need, and what is refused by name before or while they load."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.unit.engines.pooling_checkpoints import (
    add_sentence_files,
    save_classifier,
    save_embedder,
)

from llmhost.config.schema.engines import TorchOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ModelUnavailable
from llmhost.engines.kinds import TorchKind
from llmhost.engines.torch import pooling_load
from llmhost.engines.torch.pooling import Embedder
from llmhost.engines.torch.pooling_files import read_pooling, task_of
from llmhost.engines.torch.pooling_load import load_pooling


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_embedder(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("cross"), "roberta", 1)


@pytest.fixture
def copied(bert: Path, tmp_path: Path) -> Path:
    """A copy of the embedder, to be spoiled."""
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def load(folder: Path, task: str = "embed", **options: Any) -> Any:
    asked = TorchOptions(device="cpu", **options)
    return load_pooling(folder, task=task, block_tokens=16, options=asked)


def refusal(folder: Path, task: str = "embed", **options: Any) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load(folder, task, **options)
    return caught.value.message


@pytest.mark.parametrize(
    ("architecture", "option", "has_modules", "task"),
    [
        ("BertModel", "auto", False, "embed"),
        ("BertForMaskedLM", "auto", False, "embed"),
        ("BertForSequenceClassification", "auto", False, "classify"),
        ("BertForSequenceClassification", "auto", True, "classify"),
        ("LlamaForCausalLM", "auto", False, "generate"),
        ("Qwen3ForCausalLM", "auto", True, "embed"),
        ("GPT2LMHeadModel", "embed", False, "embed"),
        ("BertModel", "generate", False, "generate"),
    ],
)
def test_the_task_is_what_the_files_or_the_options_say(
    tmp_path: Path, architecture: str, option: Any, has_modules: bool, task: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    if has_modules:
        (tmp_path / "modules.json").write_text("[]")

    assert task_of(tmp_path, TorchOptions(task=option)) == task


def test_what_is_predicted_is_what_is_loaded(bert: Path, cross: Path) -> None:
    for folder in (bert, cross):
        spec = ModelSpec(source=str(folder), options={"device": "cpu"})
        predicted = TorchKind().footprint(spec, folder)
        runner = TorchKind().load(spec, folder, predicted)
        assert runner.facts == predicted
    assert (predicted.task, predicted.pooled_size, predicted.labels) == (
        "classify",
        1,
        ("LABEL_0",),
    )
    assert (
        predicted.max_sequence_length == 128
    )  # two of its 130 positions lie before the first token
    assert predicted.kv_block_bytes == 0


def test_the_largest_step_is_counted_scores_of_attention_where_they_are_made(
    bert: Path, tmp_path: Path
) -> None:
    fused = load(bert).facts.step_token_bytes
    unfused = load(save_embedder(tmp_path, "mpnet")).facts.step_token_bytes

    assert fused >= 4 * (2 * 32 + 3 * 64)
    assert unfused > fused + 2 * 4 * 4 * 100


def test_labels_have_the_names_that_the_checkpoint_gives_them(tmp_path: Path) -> None:
    labels = {"0": "fine", "1": "harassment", "2": "violence"}
    folder = save_classifier(tmp_path, "distilbert", 3)
    change(folder / "config.json", id2label=labels, problem_type="multi_label_classification")

    assert load(folder, "classify").facts.labels == ("fine", "harassment", "violence")


def test_a_model_without_the_head_of_next_sentences_still_embeds(copied: Path) -> None:
    weights = copied / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(weights).items() if not k.startswith("pooler.")},
        weights,
        metadata={"format": "pt"},
    )

    assert load(copied).facts.pooled_size == 32


def test_missing_weights_are_refused_by_name(copied: Path) -> None:
    weights = copied / "model.safetensors"
    kept = load_file(weights)
    del kept["encoder.layer.0.output.dense.weight"]
    save_file(kept, weights, metadata={"format": "pt"})

    assert "encoder.layer.0.output.dense.weight" in refusal(copied)


def test_a_model_without_a_trained_head_does_not_classify(bert: Path) -> None:
    assert "no trained head" in refusal(bert, "classify")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_what_the_engine_can_not_pool_with_is_refused(
    copied: Path, changes: dict[str, Any], said: str
) -> None:
    change(copied / "config.json", **changes)
    assert said in refusal(copied)


def test_an_activation_that_the_engine_lacks_is_refused(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, "bert", 1)
    change(folder / "config.json", sentence_transformers={"activation_fn": "my.module.Swoosh"})
    assert "Swoosh" in refusal(folder, "classify")


@pytest.mark.parametrize(
    ("labels", "named", "activation"),
    [
        (1, "linear.Identity", "identity"),
        (1, "activation.Tanh", "tanh"),
        (3, "linear.Identity", "softmax"),
    ],
)
def test_the_activation_of_newer_files_is_read(
    tmp_path: Path, labels: int, named: str, activation: str
) -> None:
    folder = save_classifier(tmp_path, "bert", labels)
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"activation_fn": f"torch.nn.modules.{named}", "model_type": "CrossEncoder"})
    )

    files = read_pooling(folder, task="classify", options=TorchOptions())

    assert files.activation == activation


def test_the_longest_text_is_the_least_that_any_file_says(copied: Path) -> None:
    def longest() -> int:
        return read_pooling(copied, task="embed", options=TorchOptions()).max_sequence_length

    assert longest() == 130
    (copied / "tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    assert longest() == 130
    (copied / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    assert longest() == 64
    (copied / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    assert longest() == 32


def test_modules_that_the_engine_lacks_are_refused(copied: Path) -> None:
    add_sentence_files(copied, normalize=True)
    listed = json.loads((copied / "modules.json").read_text())
    listed.insert(2, {"path": "2_LSTM", "type": "sentence_transformers.models.LSTM"})
    (copied / "modules.json").write_text(json.dumps(listed))
    assert "LSTM" in refusal(copied)
    (copied / "modules.json").write_text("[]")
    assert "lists nothing" in refusal(copied)
    (copied / "modules.json").write_text("{")
    assert "modules.json" in refusal(copied)


def test_a_kind_of_pooling_that_the_engine_lacks_is_refused_unless_options_name_another(
    copied: Path,
) -> None:
    add_sentence_files(copied)
    changes = {"pooling_mode_mean_tokens": False, "pooling_mode_weightedmean_tokens": True}
    change(copied / "1_Pooling" / "config.json", **changes)

    assert "weightedmean" in refusal(copied)
    assert load(copied, pooling="mean").facts.pooled_size == 32


def test_the_newer_spelling_of_a_pooling_is_read(copied: Path) -> None:
    add_sentence_files(copied)
    (copied / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert load(copied).facts.task == "embed"


def test_a_linear_layer_that_is_not_what_it_says_is_refused(copied: Path) -> None:
    add_sentence_files(copied, dense=12)
    change(copied / "2_Dense" / "config.json", out_features=13)
    assert "gives 12 numbers" in refusal(copied)
    (copied / "2_Dense" / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(copied)


def test_an_architecture_that_ignores_its_mask_is_refused(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heedless(Embedder):
        def __call__(self, batch: Any, is_raw: Any) -> Any:
            batch.mask[:] = 1
            return super().__call__(batch, is_raw)

    monkeypatch.setattr(pooling_load, "Embedder", Heedless)

    assert "when a longer one is beside it" in refusal(bert)


def test_loading_says_nothing(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(bert)
    assert capfd.readouterr() == ("", "")


def test_a_language_model_embeds_when_it_is_told_to(checkpoint: Callable[[str], Path]) -> None:
    assert load(checkpoint("llama")).facts.pooled_size == 64
