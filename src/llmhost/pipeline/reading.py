"""How an answer is read: what of it is thoughts and what is calls, by the model's own marks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import UnsupportedParameter
from llmhost.core.grammar import GrammarSpec
from llmhost.core.ports import Tokenizer
from llmhost.core.request import GenerationRequest, TextGrammar
from llmhost.core.thoughts import ThoughtIds
from llmhost.text.calls.families import BY_NAME, Family, reader_of, reader_of_text
from llmhost.text.calls.pieces import Reader
from llmhost.text.calls.response_template import (
    RESPONSE_TEMPLATE,
    ResponseTemplate,
    template_of,
)
from llmhost.text.calls.templated import Templated
from llmhost.text.grammar_calls import HELD
from llmhost.text.grammar_template import template_format

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one request. An answer that must be calls has a grammar of its own, and only its thoughts are read here."""

    family: Family | None
    thoughts: tuple[str, str] | None
    begun: bool
    """Its prompt ends amid thoughts."""
    schemas: dict[str, Any]
    """Of each tool by its name, the JSON schema of its parameters."""
    thought_ids: ThoughtIds | None = None
    grammar: GrammarSpec | None = None
    """What calls that the model decides upon are held to, of formats that can be."""

    @property
    def shown(self) -> tuple[str, ...]:
        """Special tokens that have to be seen."""
        return (*(self.family.openers if self.family else ()), *(self.thoughts or ()))

    def reader(self) -> Reader:
        """For one choice."""
        marks = () if self.thoughts is None else (self.thoughts,)
        return reader_of(self.family, self.schemas, thoughts=marks, begun=self.begun)

    def text_reader(self) -> Reader:
        """For one choice that is a text held to a grammar. Families that know thoughts have marks around it as well."""
        if self.family is not None and self.family.knows_thoughts:
            return self.reader()
        return reader_of_text(self.thoughts, begun=self.begun)


def reading_of(
    request: GenerationRequest, spec: ModelSpec, tokenizer: Tokenizer, prompt: tuple[int, ...]
) -> Reading | None:
    """None where all of an answer is content.

    Raises UnsupportedParameter for tools that a model may call, and has no way to that is known.
    """
    if not request.kind.is_chat:
        return None
    marks = tokenizer.marks
    family = _family(spec, tokenizer, prompt)
    if request.may_call and (family is None or not family.has_calls):
        raise UnsupportedParameter(
            f"The model {request.model!r} has no way of calling tools by itself that is known here. Send"
            " 'tool_choice': \"required\" or a function's name, which works with every model; or have the operator"
            " name its format with tool_format in models.toml.",
            param="tools",
        )
    if request.may_call and request.text_grammars:
        _check_texts(request, family)
    if not request.may_call and not (family and family.knows_thoughts):
        family = None
    if family is None and marks.thoughts is None:
        return None
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters") or {}
        for tool in request.tools or ()
    }
    has_begun = marks.thoughts is not None and tokenizer.begins_with_thoughts(prompt)
    held = _held(request, family) if family is not None and request.may_call else None
    return Reading(family, marks.thoughts, has_begun, schemas, marks.thought_ids, held)


def _family(spec: ModelSpec, tokenizer: Tokenizer, prompt: tuple[int, ...]) -> Family | None:
    """The format of answers that is configured, or known by the chat template, or told by the model's files."""
    marks = tokenizer.marks
    name = marks.call_format if spec.tool_format == AUTO else spec.tool_format
    is_told = name == RESPONSE_TEMPLATE or (name is None and spec.tool_format == AUTO)
    if not is_told or marks.response_template is None:
        return None if name is None else BY_NAME.get(name)
    template = template_of(marks.response_template)
    before = _begun(template, tokenizer, prompt)
    return Family(
        RESPONSE_TEMPLATE,
        lambda schemas: Templated(template, schemas, before),
        signs=(),
        openers=template.shown(marks.special),
        knows_thoughts=True,
        thoughts=template.thoughts,
        has_calls=template.has_calls,
        template=marks.response_template,
    )


def _begun(template: ResponseTemplate, tokenizer: Tokenizer, prompt: tuple[int, ...]) -> str:
    """What the prompt says of the answer already. Its last tokens are asked first, and all of it hardly ever."""
    for count in (64, 1024, 16_384):
        text = tokenizer.decode(prompt[-count:], skip_special_tokens=False)
        if (before := template.after_start(text)) is not None:
            return before
        if count >= len(prompt):
            break
    return ""


def _held(request: GenerationRequest, family: Family) -> GrammarSpec | None:
    """None as well where the whole answer has a form already."""
    if not _can_be_held(request, family):
        return None
    texts = {each.tool: each for each in request.text_grammars}
    tools = [
        _held_tool(tool["function"], texts.get(tool["function"]["name"]), request.tool_places)
        for tool in request.tools or ()
    ]
    content: dict[str, Any] = {
        "format": family.name,
        "many": request.most_calls is None,
        "tools": tools,
    }
    if family.template is not None:
        content |= {"template": family.template, "special": family.openers}
    is_strict = any(tool["strict"] for tool in tools)
    return GrammarSpec("auto_calls", json.dumps(content), is_strict=is_strict, param="tools")


def _can_be_held(request: GenerationRequest, family: Family) -> bool:
    """Whether what the format's calls are held to is known, and the whole answer has no form already."""
    if request.grammar is not None:
        return False
    if family.template is not None:
        return template_format(family.template, family.openers) is not None
    return family.name in HELD


def _check_texts(request: GenerationRequest, family: Family | None) -> None:
    """Raises UnsupportedParameter where calls are read, and not held."""
    if family is not None and _can_be_held(request, family):
        return
    first = request.text_grammars[0]
    raise UnsupportedParameter(
        f"The lark grammar of {first.tool!r} can be enforced where a tool must be called, or with a model whose own"
        " calls can be held to it, which those of this one can't be, and without another form. Send 'tool_choice'.",
        param=first.param.removesuffix(".definition"),
    )


def _held_tool(
    function: dict[str, Any], text: TextGrammar | None, places: Mapping[str, str]
) -> dict[str, Any]:
    """Without strictness any object will do, so that tools of the same names have one grammar."""
    if text is not None:
        at = text.param.removeprefix("tools")
        return {"name": function["name"], "strict": True, "lark": text.lark, "at": at}
    is_strict = bool(function.get("strict"))
    parameters = {"type": "object", **(function.get("parameters") or {})} if is_strict else {}
    held = {"name": function["name"], "parameters": parameters, "strict": is_strict}
    place = places.get(function["name"]) if is_strict else None
    return held if place is None else {**held, "at": place}
