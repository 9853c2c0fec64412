"""What form an answer is asked to have: OpenAI's `response_format` and tools, vLLM's `structured_outputs` and the
`guided_*` fields before it.

Only shapes are checked here. Whether a schema or a grammar can be enforced is found out when the model is known.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmhost.api.bodies import ChatBody, GenerationBody
from llmhost.api.loose import NULL, Raw, asks, loose, said
from llmhost.core.errors import InvalidTool, InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.request import GrammarSpec

MAX_FORM_BYTES = 256 * 1024
"""Of `response_format`, `structured_outputs`, or all tools together, as sent."""
MAX_TOOLS = 128

Table = dict[str, Any]
Name = Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,128}$")]
"""OpenAI's names end at 64 characters, Anthropic's at 128."""

NO_PARAMETERS: Table = {"type": "object", "properties": {}, "additionalProperties": False}
"""What absent ones mean, as with OpenAI."""


class WireSchema(msgspec.Struct, frozen=True):
    schema: Raw = NULL
    strict: bool | None = None
    name: str | None = None


class WireFormat(msgspec.Struct, frozen=True):
    """`response_format`. A schema beside json_object is llama-server's way of asking for one."""

    type: str
    json_schema: WireSchema | None = None
    schema: Raw = NULL


class WireStructured(msgspec.Struct, frozen=True):
    """`structured_outputs`. Of its options those that say how, not what, change nothing here."""

    json: Raw = NULL
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Raw = NULL
    whitespace_pattern: str | None = None


class WireFunction(msgspec.Struct, frozen=True):
    name: Name
    description: str | None = None
    parameters: Table | None = None
    strict: bool | None = None


class WireTool(msgspec.Struct, frozen=True):
    type: str
    function: WireFunction | None = None


class WireNamed(msgspec.Struct, frozen=True):
    name: str


class WireOne(msgspec.Struct, frozen=True):
    """One of `allowed_tools`."""

    function: WireNamed


class WireAllowed(msgspec.Struct, frozen=True):
    tools: list[WireOne]
    mode: Literal["auto", "required"] = "auto"


class WireChoice(msgspec.Struct, frozen=True):
    """`tool_choice` where it is an object."""

    type: str
    function: WireNamed | None = None
    allowed_tools: WireAllowed | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The tools of which one must be called, or several; or may be called."""

    tools: list[WireFunction]
    many: bool
    is_free: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """What is asked of an answer's form, and the tools that the prompt tells of."""

    grammar: GrammarSpec | None = None
    tools: tuple[Table, ...] | None = None
    may_call: bool = False
    """The tools may be called, or not."""
    most_calls: int | None = None


_form_of_chat = attrgetter(
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_whitespace_pattern",
    "tools",
    "tool_choice",
)
_NO_FORM = _form_of_chat(ChatBody())
_FREE = Form()


def chat_form(body: ChatBody) -> Form:
    """Raises BadRequest."""
    if _form_of_chat(body) == _NO_FORM:  # as most are
        return _FREE
    text = _only([*_formats(body), *_structures(body)])
    tools = _tools(body)
    wanted = _wanted(body, tools)
    if wanted is None:
        return Form(text)
    if wanted.is_free:
        told = tuple(_for_template(tool) for tool in wanted.tools)
        return Form(text, told, may_call=True, most_calls=None if wanted.many else 1)
    if text is not None and text.param != "response_format":  # which speaks of content only
        raise InvalidValue(
            f"'{text.param}' and 'tool_choice' ask for different answers. Send one of them.",
            param=text.param,
        )
    return Form(_calls(wanted), tuple(_for_template(tool) for tool in tools))


def completion_form(body: GenerationBody) -> Form:
    """Raises BadRequest."""
    return Form(_only([*_formats(body), *_structures(body)]))


def _only(asked: list[GrammarSpec]) -> GrammarSpec | None:
    if len(asked) > 1:
        names = " and ".join(f"'{spec.param}'" for spec in asked)
        raise InvalidValue(f"{names} ask for different forms. Send one.", param=asked[1].param)
    for spec in asked:
        if (size := len(spec.text)) > MAX_FORM_BYTES:
            raise InvalidValue(
                f"'{spec.param}' is {size} characters long; {MAX_FORM_BYTES} are allowed.",
                param=spec.param,
            )
    return asked[0] if asked else None


def _formats(body: GenerationBody) -> Iterator[GrammarSpec]:
    form = decoded(body.response_format, WireFormat, "response_format")
    if form is None or form.type == "text":
        return
    if form.type == "json_object" and not asks(form.schema):
        yield GrammarSpec("json_object", "", param="response_format")
    elif form.type in ("json_object", "json_schema"):
        asked = form.json_schema or WireSchema(form.schema)
        if said(asked.schema) == b"null":
            raise MissingParameter("response_format.json_schema.schema")
        yield _schema(asked.schema, "response_format", is_strict=bool(asked.strict))
    else:
        raise UnsupportedParameter(
            f"'response_format' of type {form.type!r} is not supported; text, json_object and json_schema are.",
            param="response_format.type",
        )


def _structures(body: GenerationBody) -> Iterator[GrammarSpec]:
    asked = decoded(body.structured_outputs, WireStructured, "structured_outputs")
    if asked is not None:
        yield from _structure(asked, "structured_outputs.")
    older = WireStructured(
        json=body.guided_json,
        regex=body.guided_regex,
        choice=body.guided_choice,
        grammar=body.guided_grammar,
        whitespace_pattern=body.guided_whitespace_pattern,
    )
    yield from _structure(older, "guided_")


def _structure(asked: WireStructured, at: str) -> Iterator[GrammarSpec]:
    for name, is_asked in (
        ("structural_tag", said(asked.structural_tag) != b"null"),
        ("whitespace_pattern", asked.whitespace_pattern is not None),
    ):
        if is_asked:
            raise UnsupportedParameter(f"'{at}{name}' is not supported.", param=at + name)
    if said(asked.json) != b"null":
        yield _schema(asked.json, f"{at}json", is_strict=True)
    if asked.regex is not None:
        yield GrammarSpec("regex", asked.regex, param=f"{at}regex")
    if asked.choice is not None:
        yield GrammarSpec("choice", json.dumps(asked.choice), param=f"{at}choice")
    if asked.grammar is not None:
        kind = "gbnf" if "::=" in asked.grammar else "lark"
        yield GrammarSpec(kind, asked.grammar, param=f"{at}grammar")
    if asked.json_object:
        yield GrammarSpec("json_object", "", param=f"{at}json_object")


def _schema(raw: Raw, param: str, *, is_strict: bool) -> GrammarSpec:
    """A schema as JSON, or as a string that holds its JSON."""
    text = decoded(raw, str, param) if bytes(raw).startswith(b'"') else _text(raw, param)
    return GrammarSpec("json_schema", text, is_strict=is_strict, param=param)


def _text(raw: Raw, param: str) -> str:
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(f"'{param}' is not valid JSON: {error}", param=param) from None


def _tools(body: ChatBody) -> list[WireFunction]:
    tools = decoded(body.tools, list[WireTool], "tools") or []
    if len(tools) > MAX_TOOLS:
        raise InvalidValue(f"{len(tools)} tools are sent; {MAX_TOOLS} are allowed.", param="tools")
    return [_function(tool, f"tools[{place}]") for place, tool in enumerate(tools)]


def _function(tool: WireTool, at: str) -> WireFunction:
    if tool.type != "function":
        raise UnsupportedParameter(
            f"A tool of type {tool.type!r} is not supported; functions are.", param=f"{at}.type"
        )
    if tool.function is None:
        raise MissingParameter(f"{at}.function")
    kind = (tool.function.parameters or NO_PARAMETERS).get("type", "object")
    if kind != "object":
        raise InvalidTool(
            f"The parameters of {tool.function.name!r} are of type {kind!r}; a function takes an object.",
            param=f"{at}.function.parameters",
        )
    return tool.function


def _wanted(body: ChatBody, tools: list[WireFunction]) -> Wanted | None:
    """None where the answer is text."""
    choice = decoded(body.tool_choice, WireChoice | str, "tool_choice") or "auto"
    may_repeat = body.parallel_tool_calls is not False
    match choice:
        case "none":
            return None
        case "auto":
            return Wanted(tools, many=may_repeat, is_free=True) if tools else None
        case "required":
            return Wanted(_some(tools), many=may_repeat)
        case WireChoice("function", function=WireNamed(name)):
            return Wanted([_named(name, _some(tools))], many=False)
        case WireChoice("allowed_tools", allowed_tools=WireAllowed(allowed, mode)) if allowed:
            names = dict.fromkeys(one.function.name for one in allowed)
            some = [_named(name, _some(tools)) for name in names]
            return Wanted(some, many=may_repeat, is_free=mode == "auto")
    raise InvalidValue(
        "'tool_choice' is none, auto, required,"
        ' or an object such as {"type": "function", "function": {"name": "get_weather"}}.',
        param="tool_choice",
    )


def _some(tools: list[WireFunction]) -> list[WireFunction]:
    if not tools:
        raise InvalidValue(
            "'tool_choice' asks for a call, and there are no 'tools'.", param="tool_choice"
        )
    return tools


def _named(name: str, tools: list[WireFunction]) -> WireFunction:
    if found := [tool for tool in tools if tool.name == name]:
        return found[0]
    raise InvalidValue(
        f"'tool_choice' names {name!r}, which is not among the 'tools'.", param="tool_choice"
    )


def _calls(wanted: Wanted) -> GrammarSpec:
    tools = [
        {
            "name": tool.name,
            "parameters": {"type": "object", **(tool.parameters or NO_PARAMETERS)},
            "strict": bool(tool.strict),
        }
        for tool in wanted.tools
    ]
    content = {"tools": tools, "many": wanted.many}
    return GrammarSpec("tool_calls", json.dumps(content), param="tools")


def _for_template(tool: WireFunction) -> Table:
    """As chat templates know tools: what was sent of it, and nothing that was not."""
    said = {
        name: value for name in tool.__struct_fields__ if (value := getattr(tool, name)) is not None
    }
    return {"type": "function", "function": said}


def decoded(raw: Raw, shape: Any, param: str) -> Any:
    """A field's value; None where it is absent. Raises InvalidValue."""
    check_size(raw, param)
    return loose(raw, shape, param)


def check_size(raw: Raw, param: str) -> None:
    """Raises InvalidValue."""
    if (size := len(bytes(raw))) > MAX_FORM_BYTES:
        raise InvalidValue(
            f"'{param}' is {size} bytes long; {MAX_FORM_BYTES} are allowed.", param=param
        )
