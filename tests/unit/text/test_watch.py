"""Text as it comes: equal to decoding everything at once, cut at the first stop string."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders

from llmhost.core.ports import TextWatch
from llmhost.text.detokenise import _BYTE_OF, RUN_BYTES, Detokeniser
from llmhost.text.tokenizer import FileTokenizer, load_tokenizer
from llmhost.text.watch import Watch
from llmhost.text.words import WordTokenizer

Load = Callable[..., FileTokenizer]
FFFD = "\ufffd"


def say(watch: TextWatch, tokens: Sequence[int]) -> str:
    return "".join(map(watch.push, tokens)) + watch.flush()


def cut(text: str, stop: Sequence[str]) -> str:
    """The rule itself, on the whole text."""
    places = [text.find(one) for one in stop if one and one in text]
    return text[: min(places)] if places else text


# The decoders of published models, each on the vocabulary that it belongs to.
DECODERS: dict[str, tuple[str, Any]] = {
    "byte-level": ("byte-level", decoders.ByteLevel()),
    "llama-2": (
        "sentencepiece",
        decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(" ", 1, 0),
            ]
        ),
    ),
    "two spaces stripped": (
        "sentencepiece",
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    ),
    "gemma": (
        "sentencepiece",
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    ),
    "metaspace": ("metaspace", decoders.Metaspace()),
    "metaspace, never in front": ("metaspace", decoders.Metaspace(prepend_scheme="never")),
    "metaspace with bytes": (
        "sentencepiece",
        decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]),
    ),
    "bytes only": ("sentencepiece", decoders.ByteFallback()),
    "word pieces": ("word-piece", decoders.WordPiece(cleanup=False)),
    "word pieces, cleaned": ("word-piece", decoders.WordPiece()),
    "word ends": ("word-ends", decoders.BPEDecoder()),
    "a pattern": (
        "metaspace",
        decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()]),
    ),
    "none": ("metaspace", None),
}


@pytest.fixture(scope="module", params=DECODERS)
def tokenizer(
    request: pytest.FixtureRequest, make_tokenizer: Callable[[str], Tokenizer], load: Load
) -> FileTokenizer:
    kind, decoder = DECODERS[request.param]
    raw = make_tokenizer(kind)
    raw.decoder = decoder
    return load(raw)


TEXTS = st.text(alphabet="abehlnot \n.'é你🎉👍🏽ğ▁", max_size=30)


@st.composite
def token_lists(draw: st.DrawFn, tokenizer: FileTokenizer) -> list[int]:
    """Any ids, special and unknown ones too, between pieces of encoded text."""
    loose = st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=8)
    parts = draw(st.lists(loose | TEXTS.map(tokenizer.encode), max_size=5))
    return [token for part in parts for token in part]


@st.composite
def stop_lists(draw: st.DrawFn, text: str) -> list[str]:
    """Pieces of the text, so that they occur, sometimes with an end that does not, and anything else."""
    places = st.integers(0, len(text))
    pieces = st.builds(lambda a, b, end: text[a : a + b] + end, places, st.integers(1, 8), TEXTS)
    exact = st.builds(lambda a, b: text[a : a + b], places, st.integers(1, 8))
    return draw(st.lists(exact | pieces | TEXTS, max_size=4))


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_what_a_watch_says_is_what_decoding_everything_says(
    tokenizer: FileTokenizer, data: st.DataObject
) -> None:
    tokens = data.draw(token_lists(tokenizer))

    assert say(tokenizer.watch(), tokens) == tokenizer.decode(tokens)


@pytest.mark.parametrize("end", ["", "a"])
@pytest.mark.parametrize("cut", [b"\xed\xa1", b"\xe4\xbd", b"\xf0\x90\x80", b"\xc3"])
def test_broken_characters_count_as_the_decoder_counts_them(
    make_tokenizer: Callable[[str], Tokenizer], load: Load, cut: bytes, end: str
) -> None:
    raw = make_tokenizer("byte-level")
    letter_of = {byte: letter for letter, byte in _BYTE_OF.items()}
    tokens = [raw.token_to_id(letter_of[byte]) for byte in cut + end.encode()]
    tokenizer = load(raw)

    assert say(tokenizer.watch(), tokens) == tokenizer.decode(tokens)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_text_ends_right_before_the_first_stop_string(
    tokenizer: FileTokenizer, data: st.DataObject
) -> None:
    tokens = data.draw(token_lists(tokenizer))
    text = tokenizer.decode(tokens)
    stop = data.draw(stop_lists(text))
    watch = tokenizer.watch(stop)

    said = say(watch, tokens)

    assert said == cut(text, stop)
    assert watch.is_stopped == any(one and one in text for one in stop)


@settings(deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab", max_size=6), max_size=12),
    stop=st.lists(st.text(alphabet="ab", max_size=5), max_size=5),
)
def test_which_stop_string_it_was_is_told(texts: list[str], stop: list[str]) -> None:
    watch = Watch(Chunks(texts), stop)
    said = "".join(watch.push(token) for token in range(len(texts))) + watch.flush()

    if watch.is_stopped:
        assert watch.stop in stop
        assert "".join(texts).startswith(said + watch.stop)


class Characters:
    """A detokeniser whose tokens are code points, to look at stop strings alone."""

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


class Chunks(Characters):
    """Its tokens are places in a list of texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def push(self, token: int) -> str:
        return self.texts[token]


def feed(stop: Sequence[str], *texts: str) -> tuple[list[str], str, bool]:
    """What each push says, what flush says, and whether it stopped."""
    watch = Watch(Chunks(texts), stop)
    pushes = [watch.push(token) for token in range(len(texts))]
    return pushes, watch.flush(), watch.is_stopped


@settings(deadline=None)
@given(
    texts=st.lists(st.text(alphabet="ab", max_size=6), max_size=12),
    stop=st.lists(st.text(alphabet="ab", max_size=5), max_size=5),
)
def test_stop_strings_that_overlap_in_every_way_are_found_where_the_first_begins(
    texts: list[str], stop: list[str]
) -> None:
    pushes, rest, is_stopped = feed(stop, *texts)

    whole = "".join(texts)
    assert "".join(pushes) + rest == cut(whole, stop)
    assert is_stopped == (cut(whole, stop) != whole)


@settings(deadline=None)
@given(
    texts=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stop=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4),
)
def test_no_more_is_held_back_than_may_begin_a_stop_string(
    texts: list[str], stop: list[str]
) -> None:
    watch, said, read = Watch(Chunks(texts), stop), "", ""
    for token, text in enumerate(texts):
        said += watch.push(token)
        read += text
        if watch.is_stopped:
            break
        held = read[len(said) :]
        assert not held or any(one.startswith(held) or held.startswith(one) for one in stop)


def test_a_stop_string_that_spans_tokens_is_held_and_never_said() -> None:
    assert feed(["STOP"], "go", " S", "TO", "P on") == (["go", " ", "", ""], "", True)


def test_text_that_only_looked_like_a_stop_string_is_released() -> None:
    assert feed(["STOP"], "S", "T", "ay") == (["", "", "STay"], "", False)


def test_text_that_may_still_become_a_stop_string_is_released_at_the_end() -> None:
    assert feed(["STOP"], "a STO") == (["a "], "STO", False)


def test_of_two_stop_strings_at_one_place_the_shorter_stops_at_once() -> None:
    watch = Watch(Chunks(["a", "\n", "b"]), ["\n\n", "\n"])

    assert [watch.push(0), watch.push(1), watch.is_stopped] == ["a", "", True]


def test_a_stop_string_waits_for_a_longer_one_that_began_before_it() -> None:
    assert feed(["abcd", "c"], "xabc", "d") == (["x", ""], "", True)
    assert feed(["abcd", "c"], "xabc", "e") == (["x", "ab"], "", True)
    assert feed(["abcd", "c"], "xabc") == (["x"], "ab", True)


def test_a_stop_string_inside_the_beginning_of_another_is_found() -> None:
    assert feed(["aab", "ac"], "a", "a", "c") == (["", "", "a"], "", True)


def test_nothing_is_said_after_a_stop_string() -> None:
    assert feed(["x"], "ax", "b", "c") == (["a", "", ""], "", True)


def test_an_empty_stop_string_stops_nothing() -> None:
    assert feed([""], "a", "b") == (["a", "b"], "", False)
    assert feed(["", "b"], "a", "b") == (["a", ""], "", True)


@pytest.mark.parametrize("stop", ["]", "^", "\\", "-", "[[", "--", "||", "&&", "~~", ".*", "\n"])
def test_a_stop_string_has_no_special_characters(stop: str) -> None:
    assert feed([stop], f"a{stop}b") == (["a"], "", True)
    assert feed([stop], "ab") == (["ab"], "", False)


def test_a_stop_string_beyond_ascii_is_found_inside_characters_of_many_tokens(load: Load) -> None:
    tokenizer = load("byte-level")
    watch = tokenizer.watch(["🎉日"])

    said = say(watch, tokenizer.encode("so 🎉🎉日 much"))

    assert said == "so 🎉"
    assert watch.is_stopped


def test_a_character_is_said_with_its_last_byte_and_not_before(load: Load) -> None:
    tokenizer = load("byte-level")
    tokens = tokenizer.encode("ğ")
    watch = tokenizer.watch()

    pushes = [watch.push(token) for token in tokens]

    assert len(tokens) == 2
    assert pushes == ["", "ğ"]


def test_a_character_that_stays_incomplete_is_replaced_at_the_end(load: Load) -> None:
    tokenizer = load("byte-level")
    watch = tokenizer.watch()

    assert watch.push(tokenizer.encode("ğ")[0]) == ""
    assert watch.flush() == FFFD


def byte_tokens(raw: Tokenizer, data: bytes) -> list[int]:
    return [raw.token_to_id(f"<0x{byte:02X}>") for byte in data]


def test_byte_tokens_are_held_until_the_run_ends(
    load: Load, make_tokenizer: Callable[[str], Tokenizer]
) -> None:
    tokenizer, raw = load("sentencepiece"), make_tokenizer("sentencepiece")
    watch = tokenizer.watch()
    letter = raw.token_to_id("a")

    assert [watch.push(t) for t in byte_tokens(raw, "日".encode())] == ["", "", ""]
    assert watch.push(letter) == "日a"


def test_a_bad_byte_spoils_its_run_as_it_does_in_decoding_everything(
    load: Load, make_tokenizer: Callable[[str], Tokenizer]
) -> None:
    tokenizer, raw = load("sentencepiece"), make_tokenizer("sentencepiece")
    watch = tokenizer.watch()
    tokens = byte_tokens(raw, "日".encode() + b"\xff")

    assert [watch.push(token) for token in tokens] == ["", "", "", FFFD * 4]
    assert tokenizer.decode(tokens) == FFFD * 4


def test_a_long_run_of_byte_tokens_comes_out_in_parts(
    load: Load, make_tokenizer: Callable[[str], Tokenizer]
) -> None:
    tokenizer, raw = load("sentencepiece"), make_tokenizer("sentencepiece")
    text = "日本語" * 50
    watch = tokenizer.watch()

    pushes = [watch.push(token) for token in byte_tokens(raw, text.encode())]

    assert "".join(pushes) + watch.flush() == text
    assert max(map(len, pushes)) <= RUN_BYTES // 3 + 1


def test_a_file_of_an_older_spelling_reads_the_same(make_model: Callable[..., Path]) -> None:
    folder = make_model("metaspace")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["decoder"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.encode("hello there")

    assert say(tokenizer.watch(), tokens) == tokenizer.decode(tokens) == "hello there"


def test_special_tokens_say_nothing_and_break_nothing(load: Load) -> None:
    tokenizer = load("byte-level")
    special = tokenizer.encode("<|end|>")
    first, second = tokenizer.encode("ğ")

    assert say(tokenizer.watch(), [*special, first, *special, second]) == "ğ"


def test_two_watches_of_one_tokenizer_do_not_mix(load: Load) -> None:
    tokenizer = load("byte-level")
    first, second = tokenizer.encode("ğ")
    left, right = tokenizer.watch(), tokenizer.watch()

    left.push(first)

    assert right.push(tokenizer.encode("a")[0]) == "a"
    assert left.push(second) == "ğ"


def count_characters_scanned(stop: str, text: str) -> int:
    """Automaton steps for `text` in pushes of one character."""
    watch = Watch(Characters(), [stop])
    stops = watch._stops
    assert stops is not None
    count, step = 0, stops.step

    def counted(state: int, char: str) -> int:
        nonlocal count
        count += 1
        return step(state, char)

    stops.step = counted  # type: ignore[method-assign]
    for char in text:
        watch.push(ord(char))
    return count


def test_a_text_that_always_looks_like_a_stop_string_costs_one_step_per_character() -> None:
    assert count_characters_scanned("a" * 500 + "b", "a" * 4000) == 4000


def test_a_detokeniser_is_what_a_watch_needs_and_no_more() -> None:
    detokeniser: Detokeniser = Characters()

    assert say(Watch(detokeniser), [ord("h"), ord("i")]) == "hi"


def test_the_choices_of_a_request_share_what_their_stop_strings_became() -> None:
    first, second = (WordTokenizer(64).watch(("one", "two")) for _ in range(2))

    assert first._stops is second._stops  # type: ignore[attr-defined]
