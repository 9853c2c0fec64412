"""Two texts in one sequence: the special tokens around them, where the second begins, and what is cut."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from llmhost.text.pairs import fit
from llmhost.text.tokenizer import FileTokenizer, load_tokenizer
from llmhost.text.words import WordTokenizer

WORDS = [f"w{i}" for i in range(40)]


def made(kind: str) -> Tokenizer:
    """A word-level tokenizer that puts BERT's or RoBERTa's special tokens around texts."""
    vocab = {word: i for i, word in enumerate(["[CLS]", "[SEP]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("[CLS]", "[SEP]")])
    if kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 1), ("[CLS]", 0))
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
        )
    return tokenizer


def words(count: int, start: int = 0) -> str:
    return " ".join(WORDS[(start + i) % len(WORDS)] for i in range(count))


def test_a_single_text_is_what_encode_gives() -> None:
    tokenizer = FileTokenizer(made("bert"))
    assert tokenizer.encode_whole("w1 w2") == (tokenizer.encode("w1 w2"), None)


def test_the_second_text_of_a_pair_begins_after_the_separator() -> None:
    ids, second_from = FileTokenizer(made("bert")).encode_whole("w1 w2", "w3")
    assert ids == [0, 4, 5, 1, 6, 1]
    assert second_from == 4


def test_a_model_that_does_not_tell_texts_apart_has_no_second_beginning() -> None:
    ids, second_from = FileTokenizer(made("roberta")).encode_whole("w1 w2", "w3")
    assert ids == [0, 4, 5, 1, 1, 6, 1]
    assert second_from is None


@pytest.mark.skipif(
    tokenizers.__version__ in ("0.23.1", "0.23.2"),
    reason="these give the odd token to the second text, others before and after to the first",
)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@given(st.integers(0, 30), st.integers(0, 30) | st.none(), st.integers(5, 70))
def test_what_is_too_long_is_cut_as_the_library_itself_cuts_it(
    kind: str, first: int, second: int | None, most: int
) -> None:
    theirs = made(kind)
    theirs.enable_truncation(most, strategy="longest_first")
    one, other = words(first), None if second is None else words(second, start=7)

    ids, _ = FileTokenizer(made(kind)).encode_whole(one, other, most_tokens=most)

    assert ids == theirs.encode(one, other).ids
    assert len(ids) <= most


@given(st.integers(0, 99), st.integers(0, 99), st.integers(-3, 150))
def test_texts_share_the_room_and_none_is_cut_without_need(
    first: int, second: int, room: int
) -> None:
    kept = fit(first, second, room)

    assert 0 <= kept[0] <= first and 0 <= kept[1] <= second
    assert sum(kept) == min(first + second, max(room, 0))


def test_words_have_pairs_too() -> None:
    tokenizer = WordTokenizer(64)
    first, second = tokenizer.encode("a b c"), tokenizer.encode("d")
    assert tokenizer.encode_whole("a b c", "d") == (first + second, 3)
    assert tokenizer.encode_whole("a b c", "d", most_tokens=2) == ([first[0], second[0]], 1)
    assert tokenizer.encode_whole("a b c", most_tokens=2) == (first[:2], None)
    assert tokenizer.encode_whole("d", "a b c", most_second=2) == (second + first[:2], 1)


@pytest.mark.parametrize(
    ("config", "second_from"),
    [
        ({}, 4),
        ({"tokenizer_class": "BertTokenizer"}, 4),
        ({"tokenizer_class": "TokenizersBackend"}, None),
        ({"tokenizer_class": "TokenizersBackend", "model_input_names": ["token_type_ids"]}, 4),
        ({"model_input_names": ["input_ids", "attention_mask"]}, None),
    ],
)
def test_the_second_text_is_told_apart_where_transformers_does(
    tmp_path: Path, config: dict[str, Any], second_from: int | None
) -> None:
    made("bert").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))

    assert load_tokenizer(tmp_path).encode_whole("w1 w2", "w3")[1] == second_from


def test_a_truncation_in_the_file_is_not_the_servers(tmp_path: Path) -> None:
    tokenizer = made("bert")
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert len(load_tokenizer(tmp_path).encode_whole(words(9))[0]) == 11
