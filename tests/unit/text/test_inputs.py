"""The text that a custom tool is given, however the JSON around it falls into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.text.calls.inputs import InputText

SAYABLE = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


def read(*pieces: str) -> str:
    text = InputText()
    return "".join([*(text.push(piece) for piece in pieces), text.finish()])


@given(SAYABLE, st.booleans(), st.sampled_from(["", " "]), st.data())
def test_any_text_is_read_in_any_pieces(
    said: str, is_ascii: bool, gap: str, data: st.DataObject
) -> None:
    written = json.dumps({"input": said}, ensure_ascii=is_ascii, separators=("," + gap, ":" + gap))
    at = data.draw(st.integers(0, len(written)))

    assert read(written[:at], written[at:]) == said
    assert read(*written) == said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ('{"input": "cut', "cut"),
        ('{"input": "cut\\', "cut"),
        ('{"input": "cut\\u00', "cut"),
        ('{"input": "a", "more": 1}', "a"),
        ('{"other": 1}', '{"other": 1}'),
        ("plain", "plain"),
        ('{"inp', '{"inp'),
        ('{"input": 5}', '{"input": 5}'),
        ('{"input": "\\ud83d\\ude00 \\ud83d"}', "😀 \ufffd"),
        ("", ""),
    ],
)
def test_what_is_cut_or_no_such_object_is_told_as_far_as_it_goes(arguments: str, told: str) -> None:
    assert read(arguments) == told
    assert read(*arguments) == told


def test_white_space_without_end_is_not_held_back() -> None:
    for parts in ([" " * 30_000], [" "] * 30_000):
        reader = InputText()
        assert "".join(map(reader.push, parts)) == " " * 30_000
        assert reader.finish() == ""
