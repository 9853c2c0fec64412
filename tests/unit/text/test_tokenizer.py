"""Tokenizers read from folders: the ids that transformers gives, and clear words when a folder is broken."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from llmhost.core.errors import BadRequest, ModelUnavailable
from llmhost.text.tokenizer import FileTokenizer, load_tokenizer

Load = Callable[..., FileTokenizer]
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEXTS = [
    "",
    " ",
    "hello there",
    "  two  spaces  ",
    "你好 🎉👍🏽 ğ\n\ttabs",
    "a</s>b<s> c",
    "<|begin|>x<|end|>",
    "<think>two words</think>",
    "[SEP] left [UNK]",
]


def auto_tokenizer(folder: Path) -> Any:
    """The oracle."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def processed(raw: Tokenizer, single: str, *names: str) -> Tokenizer:
    """Let tokenizer.json itself add special tokens."""
    raw.post_processor = TemplateProcessing(
        single=single, special_tokens=[(name, raw.token_to_id(name)) for name in names]
    )
    return raw


CONFIGS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "byte-level": ("byte-level", None, {"eos_token": "<|end|>"}),
    "byte-level, bos switched off": (
        "byte-level",
        None,
        {"add_bos_token": False, "bos_token": "<|begin|>", "eos_token": "<|end|>"},
    ),
    "byte-level, bos switched on": (
        "byte-level",
        None,
        {"add_bos_token": True, "bos_token": "<|begin|>", "eos_token": "<|end|>"},
    ),
    "bos by the post-processor": ("sentencepiece", "<s> $A", LLAMA_NAMES),
    "bos and eos by the post-processor": ("sentencepiece", "<s> $A </s>", LLAMA_NAMES),
    "bos by both": ("sentencepiece", "<s> $A", {"add_bos_token": True, **LLAMA_NAMES}),
    "the post-processor overrules the config": (
        "sentencepiece",
        "<s> $A",
        {"add_bos_token": False, "add_eos_token": True, **LLAMA_NAMES},
    ),
    "a switch without a token": ("byte-level", None, {"add_bos_token": True}),
    "a switch that is null": ("sentencepiece", "<s> $A", {"add_bos_token": None, **LLAMA_NAMES}),
    "names as objects": (
        "sentencepiece",
        "<s> $A",
        {"eos_token": {"__type": "AddedToken", "content": "</s>", "special": True}},
    ),
    "a plain token made special": ("byte-level", None, {"pad_token": "<think>"}),
    "a plain vocabulary entry made special": ("byte-level", None, {"eos_token": "he"}),
    "metaspace": ("metaspace", "$A </s>", {"eos_token": "</s>"}),
    "word pieces": ("word-piece", "$A [SEP]", {"sep_token": "[SEP]"}),
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(
    request: pytest.FixtureRequest,
    make_model: Callable[..., Path],
    make_tokenizer: Callable[[str], Tokenizer],
) -> Path:
    kind, single, config = CONFIGS[request.param]
    raw = make_tokenizer(kind)
    if single is not None:
        names = [name for name in single.split() if name != "$A"]
        raw = processed(raw, single, *names)
    return make_model(raw, tokenizer_config={**FAST, **config})


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_texts_get_the_ids_that_transformers_gives(folder: Path, add_special_tokens: bool) -> None:
    ours, theirs = load_tokenizer(folder), auto_tokenizer(folder)

    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=add_special_tokens)
        assert ours.encode(text, add_special_tokens=add_special_tokens) == expected


def test_ids_get_the_text_that_transformers_gives(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), auto_tokenizer(folder)

    for text in TEXTS:
        ids = theirs.encode(text)
        for skip in (True, False):
            expected = theirs.decode(
                ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert ours.decode(ids, skip_special_tokens=skip) == expected


def test_the_same_special_tokens_are_special(folder: Path) -> None:
    ours, theirs = load_tokenizer(folder), auto_tokenizer(folder)

    for token in range(ours.vocab_size):
        watch = ours.watch()
        said = watch.push(token) + watch.flush()
        assert said == theirs.decode([token], skip_special_tokens=True)


def test_tokens_that_only_the_config_declares_are_added(
    make_tokenizer: Callable[[str], Tokenizer], make_model: Callable[..., Path]
) -> None:
    size = make_tokenizer("byte-level").get_vocab_size()
    entry = {
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    declared = {
        str(size): {"content": "<tool>", "special": True, **entry},
        str(size + 1): {"content": "<fact>", "special": False, **entry},
    }
    folder = make_model("byte-level", tokenizer_config={**FAST, "added_tokens_decoder": declared})
    ours, theirs = load_tokenizer(folder), auto_tokenizer(folder)

    assert ours.encode("a<tool>b<fact>c") == theirs.encode("a<tool>b<fact>c")
    assert ours.vocab_size == size + 2
    assert ours.decode([size, size + 1]) == "<fact>"


def test_a_named_token_that_the_vocabulary_lacks_gets_no_id(load: Load) -> None:
    plain = load("byte-level")

    named = load("byte-level", tokenizer_config={"pad_token": "<pad>"})

    assert named.vocab_size == plain.vocab_size
    assert named.encode("<pad>") == plain.encode("<pad>")


def test_an_answer_ends_at_every_id_that_any_file_names(load: Load) -> None:
    tokenizer = load(
        "byte-level",
        tokenizer_config={"eos_token": {"content": "<|end|>"}},
        generation_config={"eos_token_id": [7, 8]},
        config={"eos_token_id": 9, "text_config": {"eos_token_id": [10]}},
    )

    assert tokenizer.eos_ids == {1, 7, 8, 9, 10}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": "<|end|>"}},
        {"special_tokens_map": {"eos_token": "<|end|>"}},
        {"special_tokens_map": {"eos_token": {"content": "<|end|>"}}},
        {"generation_config": {"eos_token_id": 1}, "tokenizer_config": {"eos_token": None}},
        {"config": {"eos_token_id": 1, "text_config": None}},
    ],
)
def test_one_file_is_enough_to_name_the_end(load: Load, files: dict[str, Any]) -> None:
    assert load("byte-level", **files).eos_ids == {1}


def test_a_model_that_names_no_end_has_none(load: Load) -> None:
    tokenizer = load(
        "byte-level",
        config={"eos_token_id": None},
        tokenizer_config={"eos_token": "not in the vocabulary"},
    )

    assert tokenizer.eos_ids == frozenset()


def test_truncation_and_padding_in_the_file_do_nothing(
    load: Load, make_tokenizer: Callable[[str], Tokenizer]
) -> None:
    raw = make_tokenizer("byte-level")
    raw.enable_truncation(max_length=3)
    raw.enable_padding(length=64)
    text = "the quick brown fox jumps over the lazy dog"

    assert load(raw).encode(text) == load("byte-level").encode(text)


@settings(deadline=None)
@given(texts=st.lists(st.text(max_size=40), max_size=8))
def test_threads_share_one_tokenizer(load: Load, texts: list[str]) -> None:
    tokenizer = load("byte-level")

    def there_and_back(text: str) -> str:
        tokens = tokenizer.encode(text)
        watch = tokenizer.watch()
        return "".join(map(watch.push, tokens)) + watch.flush()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(there_and_back, texts)) == texts


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"has no tokenizer\.json\. Copy it") as caught:
        load_tokenizer(tmp_path)

    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 1}', "\x00\x01", "[]"])
def test_a_broken_tokenizer_says_so(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(ModelUnavailable, match="can't be read as a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name", ["tokenizer_config", "special_tokens_map", "generation_config", "config"]
)
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_file_beside_it_is_named(
    make_model: Callable[..., Path], name: str, content: str
) -> None:
    folder = make_model("byte-level")
    (folder / f"{name}.json").write_text(content)

    with pytest.raises(ModelUnavailable, match=rf"{name}\.json is not a JSON object"):
        load_tokenizer(folder)


def test_a_model_without_a_template_sends_chats_to_completions(load: Load) -> None:
    with pytest.raises(BadRequest, match="/v1/completions") as caught:
        load("byte-level").render_chat([{"role": "user", "content": "hi"}])

    assert caught.value.param == "messages"


def test_a_chat_is_rendered_by_the_model_s_own_template(load: Load) -> None:
    tokenizer = load(
        "byte-level",
        tokenizer_config={
            "chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ pad_token }}",
            "bos_token": "<|begin|>",
            "eos_token": {"content": "<|end|>"},
        },
    )

    assert tokenizer.render_chat([{"role": "user", "content": "hi"}]) == "<|begin|>hi<|end|>"


def test_transformers_is_not_needed_to_load_a_tokenizer() -> None:
    import subprocess
    import sys

    script = "import sys, llmhost.text.tokenizer; print('transformers' in sys.modules, 'torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert json.loads(f'"{told.stdout.strip()}"') == "False False"
