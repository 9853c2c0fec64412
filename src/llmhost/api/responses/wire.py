"""Bodies of the Responses API, checked as a whole and turned into what is asked.

Tools and forms go the way of OpenAI's chats (`structured`), whose words they are put in first. A body alone is not all
of a request: what it goes on with is kept elsewhere, and is added when its caller is known.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from llmhost.api.bodies import ChatBody
from llmhost.api.extras import GenerationExtras, Refusals
from llmhost.api.loose import NULL, Raw, asks, loose, read_body, refuse, said
from llmhost.api.responses.bodies import (
    ResponseBody,
    WireBackground,
    WireChoice,
    WireFormat,
    WireInputFormat,
    WireItem,
    WireOwnTool,
    WireReasoning,
    WireTextForm,
    WireTool,
    check_signs,
)
from llmhost.api.responses.namespaces import (
    NAMESPACE,
    Placed,
    Spaces,
    names_meant,
    placed,
    spaces_of,
)
from llmhost.api.responses.strict import is_strict
from llmhost.api.responses.turns import Item, Message, kept_item, read_items
from llmhost.api.sampling import bad_words, sampling, stop_token_ids, stops
from llmhost.api.structured import Form, chat_form, decoded
from llmhost.api.wire import FLEX_PRIORITY, template_kwargs
from llmhost.core.errors import (
    BadRequest,
    InvalidValue,
    LlmhostError,
    MissingParameter,
    UnsupportedParameter,
)
from llmhost.core.grammar import GrammarSpec
from llmhost.core.request import GenerationRequest, Kind

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
INCLUDABLE = {
    LOGPROBS,
    ENCRYPTED,
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
}
"""Those beside the first two are of tools that are not here, so there is nothing to include."""
KINDS = ("function", "custom")
"""Of tools that callers run."""
REFUSED = Refusals(ResponseBody, GenerationExtras.__struct_fields__)
NO_TEXT = WireTextForm()
NO_REASONING = WireReasoning()

_encode = msgspec.json.encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, without what it goes on with."""

    body: ResponseBody
    request: GenerationRequest
    """Without its messages."""
    items: Sequence[WireItem]
    tools: Sequence[WireTool]
    formed_as: dict[str, Any]
    """`text.format`, as it is repeated."""
    spaces: Spaces

    @property
    def conversation(self) -> str | None:
        asked = self.body.conversation
        return asked if asked is None or isinstance(asked, str) else asked.id

    @property
    def is_stored(self) -> bool:
        return self.body.store is not False

    @property
    def is_background(self) -> bool:
        return bool(self.body.background)

    @property
    def wants_logprobs(self) -> bool:
        return self.request.sampling.logprobs is not None

    @property
    def wants_encrypted(self) -> bool:
        return ENCRYPTED in (self.body.include or ())

    def with_messages(self, messages: tuple[Message, ...]) -> GenerationRequest:
        if not messages:
            if said(self.body.input) == b"null":
                raise MissingParameter("input")
            raise InvalidValue("There is nothing to answer: 'input' is empty.", param="input")
        return replace(self.request, messages=messages)


def parse_response(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, Asked]:
    """Raises BadRequest."""
    asked = asked_of(read_body(raw, ResponseBody), request_id, client_id)
    return asked.request, asked


def asked_of(body: ResponseBody, request_id: str, client_id: str | None) -> Asked:
    """Raises BadRequest."""
    if not body.model:
        raise MissingParameter("model")
    _check(body)
    items = read_items(body.input)
    tools = decoded(body.tools, list[WireTool], "tools") or []
    known = placed(tools)
    form = _form(body, known)
    is_flex = body.service_tier == "flex"
    effort = (body.reasoning or NO_REASONING).effort
    request = GenerationRequest(
        request_id=request_id,
        kind=Kind.RESPONSE,
        model=body.model,
        tools=form.tools,
        grammar=form.grammar,
        may_call=form.may_call,
        most_calls=form.most_calls,
        custom_tools=form.custom_tools,
        tool_places=form.tool_places,
        text_grammars=tuple(
            replace(each, param=_in_our_words(each.param, known)) for each in form.text_grammars
        ),
        template_kwargs=template_kwargs(
            effort, body.chat_template_kwargs, (body.text or NO_TEXT).verbosity
        ),
        sampling=sampling(body, logprobs=_logprobs(body), choices=1),
        max_tokens=body.max_output_tokens,
        takes_less=True,
        min_tokens=body.min_tokens or 0,
        stop=stops(body.stop),
        tells_stop=bool(body.include_stop_str_in_output),
        shows_special=body.skip_special_tokens is False,
        stop_token_ids=stop_token_ids(body.stop_token_ids),
        bad_words=bad_words(body.bad_words),
        ignore_eos=bool(body.ignore_eos),
        include_cost=bool(body.include_cost),
        priority=(body.priority or 0) + (FLEX_PRIORITY if is_flex else 0),
        has_priority=body.priority is not None,
        is_flex=is_flex,
        timeout_ms=body.timeout_ms,
        cache_salt=body.cache_salt or "",
        stream=bool(body.stream),
        client_request_id=client_id,
        user=body.user,
    )
    formed_as = _formed_as((body.text or NO_TEXT).format)
    return Asked(
        body=body,
        request=request,
        items=items,
        tools=tools,
        formed_as=formed_as,
        spaces=spaces_of(known),
    )


def warming(asked: Asked) -> Asked:
    """The same without an answer."""
    return replace(asked, request=replace(asked.request, max_tokens=0, min_tokens=0, warms=True))


def kept_input(items: Sequence[WireItem]) -> list[Item]:
    """Raises BadRequest that names the item."""
    return [kept_item(item, f"input[{place}]") for place, item in enumerate(items)]


def _check(body: ResponseBody) -> None:
    REFUSED.check(body)
    if body.max_tokens is not None:
        raise UnsupportedParameter(
            "'max_tokens' is not a parameter of this route. Send 'max_output_tokens'.",
            param="max_tokens",
        )
    if asks(body.response_format):
        raise UnsupportedParameter(
            "'response_format' is not a parameter of this route. Send 'text.format'.",
            param="response_format",
        )
    refuse(
        {
            "n": body.n not in (None, 1),
            "prompt": asks(body.prompt),
            "context_management": asks(body.context_management),
            "moderation": asks(body.moderation),
            "personality": asks(body.personality),
            "prompt_logprobs": body.prompt_logprobs is not None,
            "return_token_ids": bool(body.return_token_ids),
            "truncate_prompt_tokens": body.truncate_prompt_tokens is not None,
            "add_special_tokens": bool(body.add_special_tokens),
        }
    )
    _check_summary(body.reasoning or NO_REASONING)
    _check_window(body.background_options)
    if body.previous_response_id is not None and body.conversation is not None:
        raise InvalidValue(
            "'previous_response_id' and 'conversation' both say what to go on with. Send one.",
            param="conversation",
        )
    if body.background and body.store is False:
        raise InvalidValue(
            "A background response has to be stored, or nobody could ask for it. Leave 'store' out.",
            param="background",
        )
    if body.conversation is not None and body.store is False:
        raise InvalidValue(
            "What is said in a conversation is kept there. Leave 'store' out.", param="store"
        )
    for place, name in enumerate(body.include or ()):
        if name not in INCLUDABLE:
            raise InvalidValue(
                f"'include' may hold {', '.join(sorted(INCLUDABLE))}; {name[:80]!r} is none of them.",
                param=f"include[{place}]",
            )
    check_signs([body.input, body.tools], "input")


def _check_window(asked: Raw) -> None:
    """Whoever waits for hours is charged less for it elsewhere."""
    options = loose(asked, WireBackground, "background_options") or WireBackground()
    if options.completion_window not in (None, "soonest"):
        raise UnsupportedParameter(
            "A response in the background runs at once, and is charged as any other. Leave 'background_options' out,"
            " or send a batch.",
            param="background_options",
        )


def _check_summary(asked: WireReasoning) -> None:
    """Nobody summarises thoughts here: `auto` is as much of a summary as there is, which is none."""
    for name in ("summary", "generate_summary"):
        if getattr(asked, name) not in (None, "auto"):
            raise UnsupportedParameter(
                f"'reasoning.{name}' can be 'auto': thoughts are told as they are, in 'content', and not summarised.",
                param=f"reasoning.{name}",
            )


def _logprobs(body: ResponseBody) -> int | None:
    if LOGPROBS in (body.include or ()) or body.top_logprobs:
        return body.top_logprobs or 0
    return None


# ------------------------------------------------------------ tools and forms, in the words of chats


def _form(body: ResponseBody, tools: Sequence[Placed]) -> Form:
    known, choice = _tools(tools), _choice(body.tool_choice, tools)
    try:
        form = chat_form(
            ChatBody(
                tools=known,
                tool_choice=choice,
                parallel_tool_calls=body.parallel_tool_calls,
                response_format=_response_format((body.text or NO_TEXT).format),
                structured_outputs=body.structured_outputs,
                guided_json=body.guided_json,
                guided_regex=body.guided_regex,
                guided_choice=body.guided_choice,
                guided_grammar=body.guided_grammar,
                guided_whitespace_pattern=body.guided_whitespace_pattern,
            )
        )
    except BadRequest as error:
        raise in_our_words(error, tools) from None
    places = {name: _place_in_ours(at, tools) for name, at in form.tool_places.items()}
    form = replace(form, tool_places=places)
    if form.grammar is None:
        return form
    if form.grammar.kind == "tool_calls":
        return replace(
            form, grammar=replace(form.grammar, text=_placed_in_ours(form.grammar, tools))
        )
    if form.grammar.param != "response_format":
        return form
    return replace(form, grammar=replace(form.grammar, param="text.format.schema"))


def _placed_in_ours(grammar: GrammarSpec, tools: Sequence[Placed]) -> str:
    """Calls that must be, whose faults are told where they are in this route's body."""
    wish = msgspec.json.decode(grammar.text)
    for tool in wish["tools"]:
        tool["at"] = _place_in_ours(tool["at"], tools)
    return _encode(wish).decode()


def _place_in_ours(at: str, tools: Sequence[Placed]) -> str:
    return _in_our_words(f"tools{at}", tools).removeprefix("tools")


def in_our_words(error: LlmhostError, tools: Sequence[Placed]) -> LlmhostError:
    """A fault of a tool or form, which is told in the words of chats, where it is in this route's body."""
    error.message = _in_our_words(error.message, tools)
    error.param = error.param and _in_our_words(error.param, tools)
    return error


def _in_our_words(text: str, tools: Sequence[Placed]) -> str:
    text = _PLACE.sub(lambda found: _place_told(found, tools), text)
    for theirs, ours in _FIELDS:
        text = text.replace(theirs, ours)
    return text


def _place_told(found: "re.Match[str]", tools: Sequence[Placed]) -> str:
    """A message may repeat what a caller wrote, which may look like a place and be none."""
    place = int(found[1])
    return tools[place].at if place < len(tools) else found[0]


_PLACE = re.compile(r"tools\[(\d{1,9})\]")
_FIELDS = (
    (".function.parameters", ".parameters"),
    (".function.name", ".name"),
    (".function", ""),
    (".custom.format.grammar", ".format"),
    (".custom", ""),
    (', "function": {"name": "get_weather"}}', ', "name": "get_weather"}'),
    ("response_format.json_schema", "text.format"),
    ("response_format", "text.format"),
)


def _tools(tools: Sequence[Placed]) -> Raw:
    if not tools:
        return NULL
    return Raw(_encode([_tool(each.tool, each.at) for each in tools]))


def _tool(tool: WireOwnTool, at: str) -> dict[str, Any]:
    if tool.type not in KINDS:
        raise UnsupportedParameter(
            f"A tool of type {tool.type!r} is not supported: this server runs none itself. Send functions and custom"
            " tools of your own.",
            param=f"{at}.type",
        )
    if tool.name is None:
        raise MissingParameter(f"{at}.name")
    known: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        known["description"] = tool.description
    if tool.type == "custom":
        if tool.format is not None:
            known["format"] = _input_format(tool.format, f"{at}.format")
        return {"type": "custom", "custom": known}
    known["strict"] = strictness(tool)
    if said(tool.parameters) != b"null":
        known["parameters"] = tool.parameters
    return {"type": "function", "function": known}


def _input_format(asked: WireInputFormat, at: str) -> dict[str, Any]:
    if asked.type == "text":
        return {"type": "text"}
    for name in ("syntax", "definition"):
        if getattr(asked, name) is None:
            raise MissingParameter(f"{at}.{name}")
    grammar = {"syntax": asked.syntax, "definition": asked.definition}
    return {"type": "grammar", "grammar": grammar}


def strictness(tool: WireOwnTool) -> bool:
    """Unless it is said, tools are strict whose parameters are as strict ones have to be."""
    return is_strict(tool.parameters) if tool.strict is None else tool.strict


def _choice(raw: Raw, tools: Sequence[Placed]) -> Raw:
    if said(raw) == b"null" or bytes(raw).startswith(b'"'):
        return raw
    choice: WireChoice = decoded(raw, WireChoice, "tool_choice")
    match choice.type:
        case "function" | "custom":
            if choice.name is None:
                raise MissingParameter("tool_choice.name")
            [meant] = names_meant(choice, tools)
            return Raw(_encode(_named(*meant)))
        case "allowed_tools":
            some = [names_meant(one, tools) for one in choice.tools or ()]
            kinds = {one.type for one in choice.tools or ()}
            if not some or not all(some) or not kinds <= {*KINDS, NAMESPACE}:
                raise InvalidValue(
                    "'tool_choice.tools' names tools of yours, such as"
                    ' {"type": "function", "name": "get_weather"}.',
                    param="tool_choice.tools",
                )
            named = [_named(*each) for meant in some for each in meant]
            allowed = {"mode": choice.mode, "tools": named}
            return Raw(_encode({"type": "allowed_tools", "allowed_tools": allowed}))
    raise UnsupportedParameter(
        f"'tool_choice' of type {choice.type!r} is not supported: this server runs no tools itself.",
        param="tool_choice.type",
    )


def _named(kind: str, name: str) -> dict[str, Any]:
    return {"type": kind, kind: {"name": name}}


def _response_format(asked: WireFormat | None) -> Raw:
    if asked is None or asked.type == "text":
        return NULL
    if asked.type == "json_object":
        return Raw(b'{"type":"json_object"}')
    if asked.type != "json_schema":
        raise UnsupportedParameter(
            f"'text.format' of type {asked.type!r} is not supported; text, json_object and json_schema are.",
            param="text.format.type",
        )
    if not asked.name:
        raise MissingParameter("text.format.name")
    if said(asked.schema) == b"null":
        raise MissingParameter("text.format.schema")
    schema = {"name": asked.name, "schema": asked.schema, "strict": bool(asked.strict)}
    return Raw(_encode({"type": "json_schema", "json_schema": schema}))


def _formed_as(asked: WireFormat | None) -> dict[str, Any]:
    if asked is None or asked.type in ("text", "json_object"):
        return {"type": "text" if asked is None else asked.type}
    return {
        "type": "json_schema",
        "name": asked.name,
        "description": asked.description,
        "schema": loose(asked.schema, dict[str, Any], "text.format.schema"),
        "strict": bool(asked.strict),
    }
