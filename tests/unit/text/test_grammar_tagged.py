"""Arguments between tags, held to their schemas: texts as they are, and everything else as JSON."""

from pathlib import Path
from typing import Any

import pytest
from tests.unit.text.marked import tokenizer_of
from tests.unit.text.test_held_calls import allowed, ids, spec

from llmhost.core.errors import InvalidTool
from llmhost.text.tokenizer import FileTokenizer


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    return tokenizer_of("qwen3_coder", tmp_path_factory.mktemp("qwen"))


def tool(strict: bool = True, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": ["a"]}
    return {"name": "f", "parameters": parameters, "strict": strict}


def is_taken(qwen: FileTokenizer, tools: list[Any], said: str) -> bool:
    """Whether a call's arguments may be these, and the call end behind them."""
    state = qwen.grammar(spec("qwen3_coder", tools), ())
    for token in ids(qwen, f"<tool_call>\n<function=f>\n{said}</function>\n</tool_call>"):
        if not state.is_free and token not in allowed(qwen, state):
            return False
        state.accept(token)
    return state.is_free


def given(name: str, value: str) -> str:
    return f"<parameter={name}>\n{value}\n</parameter>\n"


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (TEXT, ["x", "a\n\n<b> </c", "", '"5"'], []),
        ({"type": "integer", "minimum": 3}, ["3", "14"], ["2", "x", "3.5"]),
        ({"type": ["string", "null"]}, ["null", '"x"'], ["x"]),
        ({"enum": ["low", "mid term"]}, ["low", "mid term"], ['"low"', "lo"]),
        ({"enum": ["5", "x"]}, ['"5"', '"x"'], ["5", "x"]),
        ({"type": "string", "const": "5"}, ["5"], ["6"]),
        ({"type": "array", "items": {"$ref": "#/$defs/n"}}, ["[1, 2]", "[]"], ['["a"]']),
    ],
)
def test_an_argument_is_what_its_schema_says(
    qwen: FileTokenizer, schema: Any, right: list[str], wrong: list[str]
) -> None:
    made = tool(a=schema)
    made["parameters"]["$defs"] = {"n": {"type": "integer"}}
    for value in right:
        assert is_taken(qwen, [made], given("a", value)), value
    for value in wrong:
        assert not is_taken(qwen, [made], given("a", value)), value


def test_the_shape_of_a_text_is_that_between_the_lines(qwen: FileTokenizer) -> None:
    for schema, right, wrong in (
        ({"type": "string", "maxLength": 4}, "<parameter=a>x\ny", "<parameter=a>12345"),
        ({"type": "string", "minLength": 2}, "<parameter=a>xy", "<parameter=a>x"),
        ({"type": "string", "pattern": "^[a/]+$"}, "<parameter=a>a/a", "<parameter=a>b"),
        ({"type": "string", "pattern": "b"}, "<parameter=a>abc", "<parameter=a>acd"),
    ):
        assert is_taken(qwen, [tool(a=schema)], f"{right}</parameter>\n"), schema
        assert not is_taken(qwen, [tool(a=schema)], f"{wrong}</parameter>\n"), schema


def test_what_is_required_must_come_and_what_is_not_need_not(qwen: FileTokenizer) -> None:
    tools = [tool(b=TEXT, a=TEXT)]

    assert is_taken(qwen, tools, given("a", "x"))
    assert is_taken(qwen, tools, given("b", "y") + given("a", "x"))
    assert not is_taken(qwen, tools, given("b", "y"))
    assert not is_taken(qwen, tools, given("a", "x") + given("c", "y"))


def test_a_tool_that_is_not_strict_is_given_anything(qwen: FileTokenizer) -> None:
    tools = [tool(strict=False, a={"type": "integer"})]

    assert is_taken(qwen, tools, "")
    assert is_taken(qwen, tools, given("any thing", "x") + given("b", "<y>"))
    assert not is_taken(qwen, tools, "free")


@pytest.mark.parametrize(
    ("properties", "word"),
    [
        ({"a": {"type": "string", "format": "email"}}, "format"),
        ({"a": {"type": "string", "enum": ["<a>"]}}, "one of these"),
    ],
)
def test_what_can_not_be_held_to_between_tags_is_refused(
    qwen: FileTokenizer, properties: Any, word: str
) -> None:
    with pytest.raises(InvalidTool, match=word) as refused:
        qwen.compile_grammar(spec("qwen3_coder", [tool(**properties)]))

    assert refused.value.param == "tools[0].function.parameters"


def test_arguments_that_are_no_names_with_values_are_refused(qwen: FileTokenizer) -> None:
    made = {**tool(a=TEXT), "parameters": {"anyOf": [tool(a=TEXT)["parameters"]]}}
    with pytest.raises(InvalidTool, match="anyOf"):
        qwen.compile_grammar(spec("qwen3_coder", [made]))


def test_seed_and_minimax_are_held_likewise(tmp_path: Path) -> None:
    for name in ("seed_oss", "minimax"):
        (tmp_path / name).mkdir()
        tokenizer_of(name, tmp_path / name).compile_grammar(spec(name, [tool(a=TEXT)]))


@pytest.mark.parametrize("is_special", [True, False])
def test_texts_of_glm_go_up_to_their_tag_whether_it_is_a_token_or_not(
    tmp_path: Path, is_special: bool
) -> None:
    glm = tokenizer_of("glm", tmp_path, is_special=is_special)

    def is_said(name: str, value: str, *, strict: bool = True) -> bool:
        state = glm.grammar(spec("glm", [tool(strict, a={"type": "string", "maxLength": 6})]), ())
        said = f"<arg_key>{name}</arg_key>\n<arg_value>{value}</arg_value>"
        for token in ids(glm, f"<tool_call>f\n{said}\n</tool_call>"):
            if not state.is_free and token not in allowed(glm, state):
                return False
            state.accept(token)
        return state.is_free

    assert is_said("a", "x\n <b>")
    assert not is_said("a", "1234567")
    assert not is_said("b", "x")
    assert is_said("b", "1234567", strict=False)


PATCH = r"""start: "*** Begin Patch" LF hunk+ "*** End Patch" LF?
hunk: "*** Add File: " /[^\n]+/ LF ("+" /[^\n]*/ LF)+
LF: "\n"
"""


@pytest.mark.parametrize("name", ["qwen3_coder", "glm"])
@pytest.mark.parametrize("is_special", [True, False])
def test_a_text_follows_a_grammar_of_its_own(name: str, is_special: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(name, tmp_path, is_special=is_special)
    tools = [{"name": "f", "strict": True, "lark": PATCH}]
    ways = {
        "qwen3_coder": "<tool_call>\n<function=f>\n<parameter=input>\n{}\n</parameter>\n</function>\n</tool_call>",
        "glm": "<tool_call>f\n<arg_key>input</arg_key>\n<arg_value>{}</arg_value>\n</tool_call>",
    }

    def is_said(text: str) -> bool:
        state = tokenizer.grammar(spec(name, tools), ())
        for token in ids(tokenizer, ways[name].format(text)):
            if not state.is_free and token not in allowed(tokenizer, state):
                return False
            state.accept(token)
        return state.is_free

    assert is_said("*** Begin Patch\n*** Add File: a.py\n+x = '</'\n+\n*** End Patch")
    assert not is_said("*** Begin Patch\n*** End Patch")
    assert not is_said("x")
    with pytest.raises(InvalidTool) as refused:
        broken = {"name": "f", "strict": True, "lark": "start: nothing", "at": "[0].x"}
        tokenizer.compile_grammar(spec(name, [broken]))
    assert refused.value.param == "tools[0].x"
