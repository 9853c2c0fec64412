"""What a GGUF file's header says about the memory that its model takes."""

from pathlib import Path
from typing import Any

import pytest
from tests.unit.engines.llama.gguf_files import write

from llmhost.core.errors import ModelUnavailable
from llmhost.engines.llama.header import read_header
from llmhost.engines.llama.sizes import read_sizes

MODEL: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 3,
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
EMBEDDINGS = ("token_embd.weight", (64, 10), 0, bytes(64 * 10 * 4))


def sizes(path: Path, **changes: Any) -> Any:
    metadata = {**MODEL, **{key.replace("__", "."): value for key, value in changes.items()}}
    pairs = {key: value for key, value in metadata.items() if value is not None}
    return read_sizes(read_header(write(path / "m.gguf", pairs, [EMBEDDINGS])))


def test_a_token_takes_the_keys_and_values_of_all_layers(tmp_path: Path) -> None:
    found = sizes(tmp_path)

    assert found.vocab_size == 10
    assert found.weights_bytes == 2560
    assert found.kv_token_bytes("f16") == 3 * 2 * (2 * 16) * 2
    assert found.kv_token_bytes("q8_0") == 3 * 2 * 34


def test_heads_may_have_sizes_of_their_own_and_differ_by_layer(tmp_path: Path) -> None:
    renamed = {key.replace("llama.", "deci."): value for key, value in MODEL.items()}
    del renamed["general.architecture"], renamed["deci.attention.head_count_kv"]

    found = sizes(
        tmp_path,
        **renamed,
        general__architecture="deci",
        deci__attention__head_count_kv=[2, 0, 1],
        deci__attention__key_length=32,
        deci__attention__value_length=8,
    )

    assert found.kv_token_bytes("f16") == (2 + 0 + 1) * (32 + 8) * 2


def test_blocks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="blocks of 32"):
        lengths = {"llama__attention__key_length": 5, "llama__attention__value_length": 5}
        sizes(tmp_path, **lengths).kv_token_bytes("q8_0")


def test_experts_that_make_sense_pass(tmp_path: Path) -> None:
    assert sizes(tmp_path, llama__expert_count=8, llama__expert_used_count=[2, 2, 2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general__architecture": None}, "does not say what architecture"),
        ({"general__architecture": "t5"}, "has an encoder"),
        ({"general__type": "adapter"}, "is of type 'adapter'"),
        ({"llama__ssm__conv_kernel": 4}, "running state"),
        ({"llama__attention__causal": False}, "both directions"),
        ({"llama__block_count": None}, "lacks 'llama.block_count'"),
        ({"llama__block_count": 513}, "has 513 for 'llama.block_count'"),
        ({"llama__expert_count": 2000, "llama__expert_used_count": 2}, "contradict each other"),
        ({"llama__expert_count": 4, "llama__expert_used_count": 5}, "contradict each other"),
        ({"llama__expert_count": 4}, "contradict each other"),
        ({"llama__expert_used_count": 2}, "contradict each other"),
        ({"llama__expert_group_count": "x"}, "contradict each other"),
        ({"llama__nextn_predict_layers": 4}, "contradict each other"),
        ({"llama__rope__scaling__type": "magic"}, "rotary embedding by 'magic'"),
        ({"llama__rope__scaling__type": [1, 2]}, "rotary embedding by"),
        ({"split__count": [1, 2]}, "it is one of 1"),
        ({"llama__context_length": "long"}, "has 'long' for"),
        ({"llama__attention__head_count": [1, 2]}, "no sensible 'llama.attention.head_count'"),
        ({"llama__attention__head_count": 0}, "no sensible"),
        ({"llama__attention__head_count_kv": [2, 0, 2]}, "contradict each other"),
        ({"llama__attention__key_length": 8}, "contradict each other"),
        ({"llama__rope__dimension_count": 8}, "contradict each other"),
        ({"llama__rope__dimension_count": [16, 16]}, "contradict each other"),
        ({"llama__rope__dimension_sections": [0, 0, 0, 0]}, "contradict each other"),
        ({"llama__rope__dimension_sections": [20, 0, 0, 0]}, "contradict each other"),
        ({"llama__rope__dimension_sections": [20, -8, 0, 0]}, "contradict each other"),
        ({"llama__attention__layer_norm_rms_epsilon": -1.0}, "has -1.0 for"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "has nan for"),
    ],
)
def test_what_can_not_be_served_is_refused_in_a_sentence(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        sizes(tmp_path, **changes)

    assert said in refused.value.message


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("blk.0.attn_norm.weight", (64,), 1),
        ("blk.0.attn_q.bias", (64,), 30),
        ("rope_freqs.weight", (8,), 26),
        ("blk.0.ffn_up.weight", (64, 8), 24),
        ("blk.0.ffn_up.weight", (64, 8), 28),
        ("blk.0.ffn_up.weight", (256, 8), 15),
    ],
)
def test_tensors_of_types_that_nothing_is_computed_with_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], kind: int
) -> None:
    tensor = (name, shape, kind, bytes(256 * 64))
    path = write(tmp_path / "m.gguf", MODEL, [EMBEDDINGS, tensor])

    with pytest.raises(ModelUnavailable, match="can't compute with"):
        read_sizes(read_header(path))
