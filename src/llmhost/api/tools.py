"""Tools as OpenAI's clients send them: functions, and custom tools, which take a text instead of arguments.

Models and their templates know functions only, so a custom tool is told as one with a single argument, `input`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmhost.core.errors import InvalidTool, InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.text.calls.inputs import INPUT

MAX_TOOLS = 128

Table = dict[str, Any]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,128}$")]
"""OpenAI's names end at 64 characters, Anthropic's at 128."""

NO_PARAMETERS: Table = {"type": "object", "properties": {}, "additionalProperties": False}
"""What absent ones mean, as with OpenAI."""


class WireFunction(msgspec.Struct, frozen=True):
    name: Name
    description: str | None = None
    parameters: Table | None = None
    strict: bool | None = None


class WireInputGrammar(msgspec.Struct, frozen=True):
    definition: str
    syntax: Literal["lark", "regex"]


class WireInputFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "grammar"]
    grammar: WireInputGrammar | None = None


class WireCustom(msgspec.Struct, frozen=True):
    name: Name
    description: str | None = None
    format: WireInputFormat | None = None


class WireTool(msgspec.Struct, frozen=True):
    type: str
    function: WireFunction | None = None
    custom: WireCustom | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool, told as a function."""

    function: WireFunction
    at: str
    """The field that says what it may be given."""
    is_custom: bool = False
    lark: str | None = None
    """The grammar of a custom tool's input, where that is one."""

    @property
    def name(self) -> str:
        return self.function.name

    @property
    def told(self) -> Table:
        """As chat templates know tools: what was sent of it, and nothing that was not."""
        fields = self.function.__struct_fields__
        said = {name: v for name in fields if (v := getattr(self.function, name)) is not None}
        return {"type": "function", "function": said}

    @property
    def held(self) -> Table:
        """As the grammar of an answer knows it."""
        made: Table = {
            "name": self.name,
            "parameters": {"type": "object", **(self.function.parameters or NO_PARAMETERS)},
            "strict": bool(self.function.strict),
            "at": self.at,
        }
        return made if self.lark is None else {**made, "lark": self.lark}


def tools_of(sent: list[WireTool]) -> list[Tool]:
    """Raises BadRequest."""
    if len(sent) > MAX_TOOLS:
        raise InvalidValue(f"{len(sent)} tools are sent; {MAX_TOOLS} are allowed.", param="tools")
    return [_tool(tool, f"[{place}]") for place, tool in enumerate(sent)]


def _tool(tool: WireTool, at: str) -> Tool:
    if tool.type == "custom":
        return _custom(tool.custom, at)
    if tool.type != "function":
        raise UnsupportedParameter(
            f"A tool of type {tool.type!r} is not supported; functions and custom tools are.",
            param=f"tools{at}.type",
        )
    if tool.function is None:
        raise MissingParameter(f"tools{at}.function")
    kind = (tool.function.parameters or NO_PARAMETERS).get("type", "object")
    if kind != "object":
        raise InvalidTool(
            f"The parameters of {tool.function.name!r} are of type {kind!r}; a function takes an object.",
            param=f"tools{at}.function.parameters",
        )
    return Tool(tool.function, f"{at}.function.parameters")


def _custom(custom: WireCustom | None, at: str) -> Tool:
    if custom is None:
        raise MissingParameter(f"tools{at}.custom")
    form = custom.format or WireInputFormat("text")
    if form.type == "text":
        return Tool(_of_input(custom, {"type": "string"}), f"{at}.custom.format", is_custom=True)
    if form.grammar is None:
        raise MissingParameter(f"tools{at}.custom.format.grammar")
    syntax, definition = form.grammar.syntax, form.grammar.definition
    about = f"The input is a text that follows this {syntax} grammar:\n{definition}"
    custom = WireCustom(custom.name, "\n\n".join(filter(None, (custom.description, about))))
    at = f"{at}.custom.format.grammar.definition"
    if syntax == "lark":
        function = _of_input(custom, {"type": "string"})
        return Tool(function, at, is_custom=True, lark=definition)
    pattern = {"type": "string", "pattern": f"^(?:{definition})$"}
    return Tool(_of_input(custom, pattern, is_strict=True), at, is_custom=True)


def _of_input(custom: WireCustom, schema: Table, *, is_strict: bool | None = None) -> WireFunction:
    parameters = {
        "type": "object",
        "properties": {INPUT: schema},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return WireFunction(custom.name, custom.description, parameters, is_strict)
