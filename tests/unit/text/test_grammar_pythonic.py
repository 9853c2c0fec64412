"""Calls as Python writes them, held to their tools."""

from typing import Any

import pytest
from tests.unit.text.marked import tokenizer_of
from tests.unit.text.test_held_calls import allowed, ids, spec

from llmhost.core.errors import InvalidTool
from llmhost.text.calls.pythonic import read_call
from llmhost.text.tokenizer import FileTokenizer


@pytest.fixture(scope="module")
def lfm(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    return tokenizer_of("lfm2", tmp_path_factory.mktemp("lfm"))


def tool(required: list[str], strict: bool = True, name: str = "f", **properties: Any) -> Any:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "parameters": parameters, "strict": strict}


def is_taken(lfm: FileTokenizer, made: Any, arguments: str) -> bool:
    state = lfm.grammar(spec("lfm2", [made]), ())
    for token in ids(lfm, f"<|tool_call_start|>[f({arguments})]<|tool_call_end|>"):
        if not state.is_free and token not in allowed(lfm, state):
            return False
        state.accept(token)
    return state.is_free


TEXT, NUMBER = {"type": "string"}, {"type": "integer", "maximum": 9}


def test_arguments_come_in_order_and_only_those_that_must(lfm: FileTokenizer) -> None:
    made = tool(["b"], a=TEXT, b=NUMBER, c={"type": ["boolean", "null"]})

    for right in ("b=3", 'a="x", b=3', "b=3, c=True", 'a="", b=3, c=null', "b=-2, c=None"):
        assert is_taken(lfm, made, right), right
    for wrong in ("", "a='x', b=3", 'b=3, a="x"', "b=12", "b=3, c=1", "b=3,", "b=3, d=1", "3"):
        assert not is_taken(lfm, made, wrong), wrong


def test_all_may_be_left_out_where_none_is_required(lfm: FileTokenizer) -> None:
    made = tool([], a=TEXT, b=NUMBER)

    assert all(is_taken(lfm, made, said) for said in ("", 'a="x"', "b=1", 'a="x", b=1'))
    assert not is_taken(lfm, made, ", b=1")


def test_a_tool_that_is_not_strict_is_given_anything(lfm: FileTokenizer) -> None:
    made = tool([], strict=False)

    assert all(is_taken(lfm, made, said) for said in ("", 'x=[1, {"a": true}], y=None', "z=1.5"))
    assert not is_taken(lfm, made, "f()")


@pytest.mark.parametrize(
    "made", [tool(["class"], **{"class": TEXT}), tool([], a=TEXT, name="get-it")]
)
def test_what_python_has_no_name_for_is_refused(lfm: FileTokenizer, made: Any) -> None:
    with pytest.raises(InvalidTool, match="Python has no"):
        lfm.compile_grammar(spec("lfm2", [made]))


def test_a_slash_as_json_may_write_it_is_a_slash() -> None:
    assert read_call(r'f(a="x\/y", b="\\/")') == ("f", {"a": "x/y", "b": "\\/"})
