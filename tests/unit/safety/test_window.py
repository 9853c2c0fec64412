"""Holding text back: nothing unjudged leaves, and all that is fine leaves once, in order."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmhost.config.schema.safety import SafetySettings
from llmhost.safety.rules import Rules
from llmhost.safety.verdict import Finding
from llmhost.safety.window import Piece, Window, split

CHUNKS = st.lists(st.text(st.sampled_from("ab \n+ßx"), max_size=40), max_size=30)
SIZES = st.tuples(st.integers(1, 64), st.integers(0, 63)).filter(lambda sizes: sizes[1] < sizes[0])


@given(CHUNKS, SIZES)
def test_all_text_leaves_once_in_order_and_none_before_it_was_judged(chunks, sizes):
    window = Window(*sizes)
    judged, released = "", ""

    def step(piece: Piece | None) -> None:
        nonlocal judged, released
        if piece is None:
            return
        assert judged.startswith(released)
        assert "".join(chunks).startswith(released + piece.body)
        assert released.endswith(piece.text[: piece.start])
        judged = released + piece.body
        released += window.release()
        assert judged.startswith(released)

    for chunk in chunks:
        step(window.push(chunk))
    step(window.finish())

    assert released == "".join(chunks)


@given(CHUNKS, SIZES)
def test_whatever_fits_the_overlap_is_seen_whole_before_its_first_character_leaves(chunks, sizes):
    size, overlap = sizes
    assume(overlap > 0)
    window = Window(size, overlap)
    released = 0
    for chunk in [*chunks, None]:
        piece = window.finish() if chunk is None else window.push(chunk)
        if piece is None:
            continue
        seen = released + len(piece.body)
        before = released
        released += len(window.release())
        for start in range(before, released):
            # and one character more, so that a word's end is seen as one
            assert start + overlap < seen or piece.is_end


@given(CHUNKS, SIZES)
def test_at_most_a_window_is_held_back(chunks, sizes):
    window = Window(*sizes)
    pushed = released = 0
    for chunk in chunks:
        pushed += len(chunk)
        if window.push(chunk) is not None:
            released += len(window.release())
        assert pushed - released < sizes[0]


def test_windows_start_and_end_between_words_where_they_can():
    window = Window(40, 16)

    first = window.push("the quick brown fox jumps over the lazy d")
    out = window.release()
    second = window.push("og and runs away with it")

    assert first == Piece("the quick brown fox jumps over the lazy ", 0, is_end=False)
    assert out == "the quick brown fox "
    assert second is not None
    assert second.body.startswith("jumps over the lazy dog")


def test_without_a_verdict_nothing_leaves():
    window = Window(4, 2)

    assert window.release() == ""
    window.push("abcdefgh")
    window.release()
    assert window.release() == ""


def test_an_empty_end_needs_no_verdict():
    window = Window(4, 2)

    assert window.finish() is None
    assert window.release() == ""


def test_an_overlap_must_be_smaller_than_its_window():
    with pytest.raises(ValueError, match="overlap of 4"):
        Window(4, 4)


@given(st.text("ab ", max_size=200), st.integers(0, 50), st.integers(3, 20), st.integers(0, 2))
def test_split_pieces_cover_the_text_and_overlap(text, start, size, overlap):
    start = min(start, len(text))
    pieces = list(split(Piece(text, start), size_chars=size, overlap_chars=overlap))

    rebuilt = pieces[0].body + "".join(piece.body[overlap:] for piece in pieces[1:])
    assert rebuilt == text[start:]
    assert all(len(piece.body) <= size for piece in pieces)
    assert [piece.is_end for piece in pieces[:-1]] == [False] * (len(pieces) - 1)


RULES = Rules(
    SafetySettings(
        blocked_words=("ab", "ßx", "b+ a", "xx xx"),
        blocked_patterns=("^ba", r"a\+{2}b", "(?<=x)b{3}", r"\bxa\b"),
        window_chars=16,
    )
)


def stream(rules: Rules, chunks: list[str]) -> tuple[str, Finding | None]:
    """What leaves when the chunks come one by one, and the verdict that ended it."""
    window, released = Window(rules.window_chars, rules.overlap_chars), ""
    for chunk in [*chunks, None]:
        piece = window.finish() if chunk is None else window.push(chunk)
        if piece is None:
            continue
        verdict = next((v for p in rules.pieces(piece) for v in rules.judge_piece(p)), None)
        if verdict is not None:
            return released, verdict
        released += window.release()
    return released, None


@given(CHUNKS)
def test_a_stream_is_judged_as_the_whole_text_is_however_it_is_cut(chunks):
    text = "".join(chunks)

    released, verdict = stream(RULES, chunks)

    assert (verdict is None) == (not RULES.judge(text))
    assert verdict is not None or released == text


@given(CHUNKS)
def test_no_character_of_a_blocked_word_ever_leaves(chunks):
    rules = Rules(SafetySettings(blocked_words=("ab",), window_chars=16))
    match = re.search(r"(?<![^\W_])ab(?![^\W_])", "".join(chunks))

    released, verdict = stream(rules, chunks)

    assert (verdict is None) == (match is None)
    assert match is None or len(released) <= match.start()
