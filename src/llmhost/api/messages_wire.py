"""Anthropic's requests: bodies, checked as a whole and turned into core types.

Tools and forms go the way of OpenAI's (`structured`), whose words they are put in first. What a body says of
caching is read over: computed beginnings of prompts are found again without being told.
"""

from dataclasses import replace
from typing import Any

import msgspec

from llmhost.api.bodies import ChatBody
from llmhost.api.loose import NULL, Raw, asks, read_body, refuse, said
from llmhost.api.messages_bodies import MessagesBody, WireOutputFormat, WireTool, WireToolChoice
from llmhost.api.messages_turns import Turns
from llmhost.api.sampling import SEED_MASK, stops
from llmhost.api.structured import Form, chat_form, check_size, decoded
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.request import GenerationRequest, Kind
from llmhost.core.sampling import Sampling

FORMAT = "output_config.format"

_encode = msgspec.json.encode


def parse_messages(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, None]:
    """Raises BadRequest."""
    body = read_body(raw, MessagesBody)
    if body.max_tokens is None:
        raise MissingParameter("max_tokens")
    return messages_request(body, request_id, client_id), None


def parse_count(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, None]:
    """Raises BadRequest."""
    return messages_request(read_body(raw, MessagesBody), request_id, client_id), None


def messages_request(
    body: MessagesBody, request_id: str, client_request_id: str | None
) -> GenerationRequest:
    """A validated request. Raises BadRequest."""
    if not body.model:
        raise MissingParameter("model")
    if body.messages is None:
        raise MissingParameter("messages")
    if not body.messages:
        raise InvalidValue("'messages' must hold at least one message.", param="messages")
    refuse({name: asks(getattr(body, name)) for name in ("mcp_servers", "container", "thread")})
    turns, form = Turns(body.system, body.messages), _form(body)
    return GenerationRequest(
        request_id=request_id,
        kind=Kind.CHAT,
        model=body.model,
        messages=tuple(turns.messages),
        add_generation_prompt=not turns.is_begun,
        continue_final_message=turns.is_begun,
        tools=form.tools,
        grammar=form.grammar,
        may_call=form.may_call,
        most_calls=form.most_calls,
        template_kwargs=_template_kwargs(body),
        hides_thoughts=body.thinking is not None and body.thinking.display == "omitted",
        sampling=_sampling(body),
        max_tokens=body.max_tokens,
        warms=body.max_tokens == 0,
        takes_less=True,
        stop=stops(body.stop_sequences, "stop_sequences"),
        include_cost=bool(body.include_cost),
        priority=body.priority or 0,
        has_priority=body.priority is not None,
        timeout_ms=body.timeout_ms,
        cache_salt=body.cache_salt or "",
        stream=bool(body.stream),
        client_request_id=client_request_id,
        user=None if body.metadata is None else body.metadata.user_id,
    )


def _sampling(body: MessagesBody) -> Sampling:
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k or None,
        seed=None if body.seed is None else body.seed & SEED_MASK,
    )


def _template_kwargs(body: MessagesBody) -> dict[str, Any]:
    """Under every name that templates know; those that know none think as they always do."""
    kwargs: dict[str, Any] = {}
    if body.thinking is not None:
        is_on = body.thinking.type != "disabled"
        kwargs |= {"enable_thinking": is_on, "thinking": is_on}
    if body.output_config is not None and (effort := body.output_config.effort) is not None:
        kwargs["reasoning_effort"] = effort
    return kwargs


def _form(body: MessagesBody) -> Form:
    """What OpenAI's fields of the same meaning ask for."""
    choice = body.tool_choice or WireToolChoice("auto")
    form = chat_form(
        ChatBody(
            tools=_tools(body.tools),
            tool_choice=NULL if body.tool_choice is None else Raw(_encode(_choice(choice))),
            parallel_tool_calls=not choice.disable_parallel_tool_use,
            response_format=_response_format(body),
        )
    )
    if form.grammar is None or form.grammar.kind != "json_schema":
        return form
    return replace(form, grammar=replace(form.grammar, param=f"{FORMAT}.schema"))


def _tools(raw: Raw) -> Raw:
    """In OpenAI's shape. Raises BadRequest."""
    tools = decoded(raw, list[WireTool], "tools")
    if not tools:
        return NULL
    return Raw(_encode([_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)]))


def _tool(tool: WireTool, at: str) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise UnsupportedParameter(
            f"A tool of type {tool.type!r} is not supported: this server runs none itself. Send one of your own, with"
            " 'input_schema'.",
            param=f"{at}.type",
        )
    if tool.name is None:
        raise MissingParameter(f"{at}.name")
    if said(tool.input_schema) == b"null":
        raise MissingParameter(f"{at}.input_schema")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: WireToolChoice) -> Any:
    match choice.type:
        case "any":
            return "required"
        case "tool":
            if choice.name is None:
                raise MissingParameter("tool_choice.name")
            return {"type": "function", "function": {"name": choice.name}}
        case other:
            return other


def _response_format(body: MessagesBody) -> Raw:
    in_config = None if body.output_config is None else body.output_config.format
    asked, at = (
        (in_config, FORMAT) if in_config is not None else (body.output_format, "output_format")
    )
    if asked is None:
        return NULL
    _check_format(asked, at)
    schema = {"schema": asked.schema, "strict": True, "name": "answer"}
    return Raw(_encode({"type": "json_schema", "json_schema": schema}))


def _check_format(asked: WireOutputFormat, at: str) -> None:
    if asked.type != "json_schema":
        raise UnsupportedParameter(
            f"'{at}' of type {asked.type!r} is not supported; json_schema is.", param=f"{at}.type"
        )
    if said(asked.schema) == b"null":
        raise MissingParameter(f"{at}.schema")
    check_size(asked.schema, f"{at}.schema")
