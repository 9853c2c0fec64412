"""The children that read callers' grammars: one that ends takes no other question with it."""

import json
from collections.abc import Iterator

import pytest

from llmhost.text.grammar_child import Died, Reader
from llmhost.text.grammar_source import Unreadable, read_grammar

PLAIN = {"kind": "json_schema", "text": '{"type": "integer"}', "is_strict": True}
BOMB = {**PLAIN, "text": '{"type": "integer", "multipleOf": 9999991}'}


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    made = Reader(children=2)
    yield made
    made.close()


def test_a_child_that_died_over_a_grammar_has_a_successor(reader: Reader) -> None:
    with pytest.raises(Died, match="processor time"):
        reader.ask(BOMB)

    assert "grammar" in reader.ask(PLAIN)


def test_who_asks_while_a_child_is_busy_has_another(reader: Reader) -> None:
    busy = reader._take()

    assert "grammar" in reader.ask(PLAIN)

    reader._put_back(busy)


def test_a_child_that_somebody_killed_is_not_asked(reader: Reader) -> None:
    for process in reader._idle:
        process.kill()
        process.wait()

    assert "grammar" in reader.ask(PLAIN)


def test_what_can_be_read_and_not_followed_is_refused_by_the_child() -> None:
    """The server's own time is nobody's to burn."""
    refs = {f"p{m}": {"$ref": f"#/$defs/d{m}"} for m in range(40)}
    defs = {f"d{n}": {"type": "object", "properties": refs, "required": ["p0"]} for n in range(40)}
    text = json.dumps({"$ref": "#/$defs/d0", "$defs": defs})

    with pytest.raises(Unreadable, match="too complex for an answer to follow"):
        read_grammar("json_schema", text, is_strict=True)
