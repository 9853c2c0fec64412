"""Tokenizers out of GGUF files: the same ids, texts and templates as the checkpoints' own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.engines.llama.gguf_files import write
from tokenizers import Regex, Tokenizer, models
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.sources import BUILT_IN_MODELS
from llmhost.engines.builtin.corpus import known_answers
from llmhost.engines.llama.header import read_header
from llmhost.engines.llama.pre_tokenizers import RULES, rule_like
from llmhost.engines.llama.tokenizer import load_gguf_tokenizer
from llmhost.engines.llama.vocabulary_out import vocabulary
from llmhost.text.tokenizer import FileTokenizer, load_tokenizer

TINY = BUILT_IN_MODELS / "tiny"
BYTES = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"}


@pytest.fixture(scope="module")
def own() -> FileTokenizer:
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileTokenizer]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    yield load_gguf_tokenizer(read_header(write(path, dict(vocabulary(TINY, 2048)))))


def loaded(path: Path, **metadata: Any) -> FileTokenizer:
    pairs = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return load_gguf_tokenizer(read_header(write(path / "t.gguf", pairs)))


def test_every_known_conversation_has_the_prompt_and_the_ids_of_the_checkpoint(
    own: FileTokenizer, made: FileTokenizer
) -> None:
    for known in known_answers():
        prompt = own.render_chat(known.messages, tools=known.tools)
        assert made.render_chat(known.messages, tools=known.tools) == prompt
        assert made.encode(prompt) == own.encode(prompt)
    assert made.eos_ids == own.eos_ids
    assert made.marks == own.marks


@given(
    text=st.text(max_size=40),
    special=st.sampled_from(["", "<|im_end|>", "<tool_call>", "</think>"]),
)
def test_any_text_has_the_ids_of_the_checkpoint(
    own: FileTokenizer, made: FileTokenizer, text: str, special: str
) -> None:
    ids = own.encode(text + special + text)

    assert made.encode(text + special + text) == ids
    assert made.decode(ids) == own.decode(ids)


def test_every_token_has_the_bytes_of_the_checkpoint(
    own: FileTokenizer, made: FileTokenizer
) -> None:
    assert made.vocab_size == own.vocab_size
    assert [made.token_bytes(i) for i in range(2048)] == [own.token_bytes(i) for i in range(2048)]


def test_padding_after_the_last_token_is_none_of_the_vocabulary(tmp_path: Path) -> None:
    padded = dict(vocabulary(TINY, 2060))
    found = load_gguf_tokenizer(read_header(write(tmp_path / "t.gguf", padded)))

    assert padded["tokenizer.ggml.tokens"][2059] == "[PAD2059]"
    assert found.vocab_size == 2048


SP = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", "<0x00>", "<0xC3>", "<0xA9>", *"▁abc", "ab", "▁ab", "abc"],
    "scores": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -10.0, -11.0, -12.0, -1.0, -2.0, -3.0],
    "token_type": [2, 3, 3, 6, 6, 6, 1, 1, 1, 1, 1, 1, 1],
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def test_sentencepieces_merges_come_from_the_scores(tmp_path: Path) -> None:
    made = loaded(tmp_path, **SP)

    # "ab" has the best score, then "▁ab": nothing is left for "abc" to be made of.
    assert made.encode("abc") == [1, 11, 9]
    assert made.encode("abc", add_special_tokens=False) == [11, 9]
    assert made.encode("é", add_special_tokens=False) == [6, 4, 5]
    assert made.decode([1, 11, 9, 4, 5, 2]) == "abcé"
    assert made.eos_ids == {2}


def test_a_space_is_put_before_a_text_unless_the_file_says_no(tmp_path: Path) -> None:
    made = loaded(tmp_path, **SP, add_space_prefix=False, add_bos_token=False)

    assert made.encode("abc") == [12]
    assert made.decode([11, 9]) == " abc"


def test_a_templates_variables_are_the_files_tokens(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.gguf",
        {f"tokenizer.ggml.{key}": value for key, value in SP.items()}
        | {
            "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}",
            "tokenizer.chat_templates": ["tool_use"],
            "tokenizer.chat_template.tool_use": "tools: {{ tools | length }}{{ eos_token }}",
        },
    )
    made = load_gguf_tokenizer(read_header(path))
    said = [{"role": "user", "content": "hi"}]

    assert made.render_chat(said) == "<s>hi"
    assert made.render_chat(said, tools=[{"type": "function"}]) == "tools: 1</s>"


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "has no vocabulary"),
        ({"model": "rwkv", "tokens": ["a"]}, "of the kind 'rwkv'"),
        ({"model": "bert", "tokens": ["a"]}, "has no token for 'bos'"),
        ({"model": "gpt2", "pre": "gemma4", "tokens": ["a"]}, "('gemma4') none"),
        ({"model": "gpt2", "tokens": ["a", "a"]}, "a token twice"),
        ({"model": "gpt2", "tokens": ["a", "b"], "token_type": [1]}, "'token_type' for 1 of them"),
        ({"model": "gpt2", "tokens": 7}, "has no vocabulary"),
    ],
)
def test_what_is_not_read_is_refused_in_a_sentence(
    tmp_path: Path, metadata: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        loaded(tmp_path, **metadata)

    assert said in refused.value.message


def test_merges_of_tokens_that_are_not_there_are_left_away(tmp_path: Path) -> None:
    made = loaded(
        tmp_path, model="gpt2", pre="gpt-2", tokens=["a", "b", "ab"], merges=["a b", "x y", "a"]
    )

    assert made.encode("ab") == [2]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.names[0] or "default")
def test_a_rule_is_known_by_how_it_cuts(rule: Any) -> None:
    tokenizer = Tokenizer(models.BPE(ignore_merges=rule.whole_words))
    tokenizer.pre_tokenizer = rule.pre_tokenizer()
    found = rule_like(tokenizer)

    assert found is not None
    assert (found.patterns, found.whole_words) == (rule.patterns, rule.whole_words)


def test_a_way_of_cutting_without_a_name_is_not_taken_for_another() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex("[aeiou]"), "isolated"), ByteLevel(use_regex=False)]
    )

    assert rule_like(tokenizer) is None
    assert rule_like(Tokenizer(models.BPE())) is None
