"""Chat messages as a model's own prompt text, by the Jinja template that came with it.

Renders what transformers' `apply_chat_template` renders, and makes two things right that OpenAI's format and
published templates see differently: text parts become one string for a template that does not read parts, and
a tool call's arguments, JSON text on the wire, become an object, or stay text where a template writes them so.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Template, TemplateError, nodes

from llmhost.core.errors import BadRequest, ModelUnavailable
from llmhost.text.sandbox import Sandbox, metered

# What Python itself raises when a template does something wrong with the messages it got.
_TEMPLATE_FAULTS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
_TIME = re.compile(r"""\bstrftime_now\b(?!\s+is\s)(?:\s*\(\s*(['"])([^'"\\]*)\1\s*\))?""")
"""Where a template asks for the time, in a form that it spells out or not."""
EACH_MOMENT = "%c %f"
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?:(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""One of JSON's: a character in two halves, half a one (the group), or any other."""
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Refusal(TemplateError):
    """`raise_exception`: the template's own words to the caller."""


class ChatTemplate:
    """One or more named templates, each compiled when it is first used.

    `default` is rendered, or `tool_use` when there are tools and such a template. `special_tokens` are the
    variables that templates know them by (`bos_token`, ...).
    """

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        *,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
    ) -> None:
        self._sources = sources
        self._special_tokens = special_tokens or {}
        self._now = now
        self._compiled = cache(self._compile)

    @property
    def sources(self) -> Mapping[str, str]:
        """The templates by name."""
        return self._sources

    @property
    def text(self) -> str:
        """All templates as they are written."""
        return "\n".join(self._sources.values())

    @cached_property
    def times(self) -> tuple[str, ...]:
        """The forms in which the templates tell the time; none where they don't."""
        asked = _TIME.findall(self.text)
        return tuple(dict.fromkeys(form or EACH_MOMENT for _, form in asked))

    def moment(self) -> str:
        """What they would tell of the time now: as long as it is the same, they render the same."""
        now = self._now()
        return "\n".join(now.strftime(form) for form in self.times)

    def mentions(self, text: str) -> bool:
        return text in self.text

    @cached_property
    def _roles(self) -> dict[str, str]:
        """Those that no template knows, and what they are there."""
        known = {"developer": "system", "function": "tool"}
        return {
            role: other
            for role, other in known.items()
            if not re.search(f"(==|,| in \\[) *['\"]{role}['\"]", self.text)
        }

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The prompt text. `kwargs` are the template's own switches (`enable_thinking`, `documents`, ...).

        Raises BadRequest when the template refuses the messages, fails on them, or is itself broken.
        """
        name = "tool_use" if tools and "tool_use" in self._sources else "default"
        try:
            template, reads_parts = self._compiled(name)
            given = {
                "documents": None,
                **self._special_tokens,
                **kwargs,
                "messages": [
                    _as_templates_expect(message, reads_parts, self._roles) for message in messages
                ],
                "tools": list(tools) if tools else None,
                "add_generation_prompt": add_generation_prompt,
            }
            with metered():
                return template.render(given)
        except Refusal as refusal:
            raise BadRequest(str(refusal.message), param="messages") from None
        except _TEMPLATE_FAULTS as fault:
            raise BadRequest(
                f"This model's chat template can't render these messages: {_said(fault)}."
                " Check the messages' roles, order and content against the model's documentation.",
                param="messages",
            ) from fault

    def _compile(self, name: str) -> tuple[Template, bool]:
        if name not in self._sources:
            known = ", ".join(sorted(self._sources))
            raise TemplateError(f"there is no template named {name!r} among {known}")
        sandbox = Sandbox()
        sandbox.filters["tojson"] = _to_json
        sandbox.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: self._now().strftime(pattern),
        }
        source = self._sources[name]
        return sandbox.from_string(source), _reads_parts(sandbox.parse(source))


def load_chat_template(
    folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template of a model's folder, None when it has none. `config` is its tokenizer_config.json."""
    sources = dict(_config_sources(config.get("chat_template")))
    if (in_json := folder / "chat_template.json").is_file():
        try:
            content = msgspec.json.decode(in_json.read_bytes(), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ModelUnavailable(
                f"{in_json} is not a JSON object ({error}). Copy it again."
            ) from None
        sources = dict(_config_sources(content.get("chat_template"))) or sources
    if (own_file := folder / "chat_template.jinja").is_file():
        sources = {"default": own_file.read_text(encoding="utf-8")}
        for extra in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            sources[extra.stem] = extra.read_text(encoding="utf-8")
    return ChatTemplate(sources, special_tokens) if sources else None


def _config_sources(value: Any) -> Iterator[tuple[str, str]]:
    match value:
        case str():
            yield "default", value
        case list():
            for entry in value:
                yield entry["name"], entry["template"]
        case dict():
            yield from value.items()


def _reads_parts(tree: nodes.Template) -> bool:
    """The template loops over a message's content: it knows content parts, images and all."""
    return any(_names_content(loop.iter) for loop in tree.find_all(nodes.For))


def _names_content(node: nodes.Node | None) -> bool:
    match node:
        case nodes.Name(name="content") | nodes.Getattr(attr="content"):
            return True
        case nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Filter():
            return _names_content(node.node)
        case nodes.Or():
            return _names_content(node.left)
        case nodes.CondExpr():
            return _names_content(node.expr1) or _names_content(node.expr2)
    return False


def _as_templates_expect(
    message: Mapping[str, Any], reads_parts: bool, roles: Mapping[str, str]
) -> dict[str, Any]:
    seen = dict(message)
    if seen.get("role") in roles:
        seen["role"] = roles[seen["role"]]
    content = seen.get("content")
    if not reads_parts and isinstance(content, list):
        seen["content"] = "".join(_part_text(part) for part in content)
    if calls := seen.get("tool_calls"):
        seen["tool_calls"] = [_with_arguments(call) for call in calls]
    reasoning = next((seen[key] for key in _REASONING if seen.get(key) is not None), None)
    if reasoning is not None:
        seen = {"thinking": reasoning, "reasoning": reasoning, **seen}
        seen["reasoning_content"] = reasoning
    return seen


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise TemplateError(f"it takes text only, and a content part is of type {kind!r}")


class _Arguments(dict[str, Any]):
    """A call's arguments: an object for templates that look into it, and its JSON for those that write it as it is."""

    def __init__(self, value: Mapping[str, Any], text: str) -> None:
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def _without_halves(text: str) -> str:
    """JSON whose texts are whole: an escape of half a character means one that nobody knows."""
    if "\\ud" not in text and "\\uD" not in text:
        return text
    return _ESCAPE.sub(lambda found: "\\ufffd" if found[1] else found[0], text)


def _with_arguments(call: Any) -> Any:
    match call:
        case {"function": {"arguments": str(text)} as function}:
            try:
                arguments = json.loads(_without_halves(text))
            except ValueError:
                return call  # a model's own broken JSON is shown to it as it was
            if isinstance(arguments, dict):
                return {**call, "function": {**function, "arguments": _Arguments(arguments, text)}}
        case {"function": {"arguments": dict(arguments)} as function}:
            told = _Arguments(arguments, _to_json(arguments))
            return {**call, "function": {**function, "arguments": told}}
    return call


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, this one escapes nothing for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise Refusal(message)


def _said(fault: BaseException) -> str:
    text = str(fault).rstrip(".") or type(fault).__name__
    line = getattr(fault, "lineno", None)
    return f"{text} (line {line} of the template)" if line else text
