"""What form an answer is asked to have: OpenAI's `response_format` and tools, vLLM's `structured_outputs` and the
`guided_*` fields before it.

Only shapes are checked here. Whether a schema or a grammar can be enforced is found out when the model is known.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

import msgspec

from llmhost.api.bodies import ChatBody, GenerationBody
from llmhost.api.loose import NULL, Raw, asks, loose, said
from llmhost.api.structural import structural_tag
from llmhost.api.tools import Table, Tool, WireTool, tools_of
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.grammar import GrammarSpec
from llmhost.core.request import TextGrammar

MAX_FORM_BYTES = 256 * 1024
"""Of `response_format`, `structured_outputs`, or all tools together, as sent."""


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


class WireNamed(msgspec.Struct, frozen=True):
    name: str


class WireOne(msgspec.Struct, frozen=True):
    """One of `allowed_tools`."""

    function: WireNamed | None = None
    custom: WireNamed | None = None


class WireAllowed(msgspec.Struct, frozen=True):
    tools: list[WireOne]
    mode: Literal["auto", "required"] = "auto"


class WireChoice(msgspec.Struct, frozen=True):
    """`tool_choice` where it is an object."""

    type: str
    function: WireNamed | None = None
    custom: WireNamed | None = None
    allowed_tools: WireAllowed | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The tools of which one must be called, or several; or may be called."""

    tools: list[Tool]
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
    custom_tools: frozenset[str] = frozenset()
    """Names of those that take a text."""
    text_grammars: tuple[TextGrammar, ...] = ()
    tool_places: Mapping[str, str] = field(default_factory=dict)
    """Of each tool, behind `tools`: the field that says what it may be given."""


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
        told = tuple(tool.told for tool in wanted.tools)
        most = None if wanted.many else 1
        return Form(
            text,
            told,
            may_call=True,
            most_calls=most,
            custom_tools=_custom(tools),
            text_grammars=_text_grammars(wanted.tools),
            tool_places={tool.name: tool.at for tool in wanted.tools},
        )
    if text is not None and text.param != "response_format":  # which speaks of content only
        raise InvalidValue(
            f"'{text.param}' and 'tool_choice' ask for different answers. Send one of them.",
            param=text.param,
        )
    told = tuple(tool.told for tool in tools)
    return Form(_calls(wanted), told, custom_tools=_custom(tools))


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
    if asked.whitespace_pattern is not None:
        name = f"{at}whitespace_pattern"
        raise UnsupportedParameter(f"'{name}' is not supported.", param=name)
    if said(asked.structural_tag) != b"null":
        yield structural_tag(asked.structural_tag, f"{at}structural_tag")
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


def _tools(body: ChatBody) -> list[Tool]:
    return tools_of(decoded(body.tools, list[WireTool], "tools") or [])


def _custom(tools: list[Tool]) -> frozenset[str]:
    return frozenset(tool.name for tool in tools if tool.is_custom)


def _text_grammars(tools: list[Tool]) -> tuple[TextGrammar, ...]:
    """Whether they can be kept depends on how the model writes its calls."""
    return tuple(
        TextGrammar(tool.name, tool.lark, f"tools{tool.at}")
        for tool in tools
        if tool.lark is not None
    )


def _wanted(body: ChatBody, tools: list[Tool]) -> Wanted | None:
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
        case WireChoice("custom", custom=WireNamed(name)):
            return Wanted([_named(name, _some(tools))], many=False)
        case WireChoice("allowed_tools", allowed_tools=WireAllowed(allowed, mode)) if allowed:
            known = [one.function or one.custom for one in allowed]
            if None in known:
                place = known.index(None)
                raise MissingParameter(f"tool_choice.allowed_tools.tools[{place}].function")
            names = dict.fromkeys(one.name for one in known if one is not None)
            some = [_named(name, _some(tools)) for name in names]
            return Wanted(some, many=may_repeat, is_free=mode == "auto")
    raise InvalidValue(
        "'tool_choice' is none, auto, required,"
        ' or an object such as {"type": "function", "function": {"name": "get_weather"}}.',
        param="tool_choice",
    )


def _some(tools: list[Tool]) -> list[Tool]:
    if not tools:
        raise InvalidValue(
            "'tool_choice' asks for a call, and there are no 'tools'.", param="tool_choice"
        )
    return tools


def _named(name: str, tools: list[Tool]) -> Tool:
    if found := [tool for tool in tools if tool.name == name]:
        return found[0]
    raise InvalidValue(
        f"'tool_choice' names {name!r}, which is not among the 'tools'.", param="tool_choice"
    )


def _calls(wanted: Wanted) -> GrammarSpec:
    """A text by a grammar has no end that could be told from what comes behind it, so there is one call of such."""
    many = wanted.many and all(tool.lark is None for tool in wanted.tools)
    content = {"tools": [tool.held for tool in wanted.tools], "many": many}
    return GrammarSpec("tool_calls", json.dumps(content), param="tools")


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
