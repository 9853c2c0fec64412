"""What an answer must look like, from a caller's words into llguidance's.

It reads untrusted text with a library that recurses and whose work grows faster than the text, so it runs in a
process of its own (`grammar_child`), which may die of it.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, StructTag, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from llmhost.text.grammar_calls import SPACED, HeldFormat, calls_grammar, quoted
from llmhost.text.grammar_tagged import Unspeakable
from llmhost.text.grammar_template import form_of
from llmhost.text.schema import enforceable

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_SPEC_BYTES = 256 * 1024
"""Of a grammar's text."""

PROBED_BYTES = 8
ALL_BYTES = (1 << 256) - 1

LIMITS = LLParserLimits(
    max_lexer_states=20_000,  # 2 kB each, in every sequence
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Fuel for compiling and for each mask is the library's own: about 20 and 14 ms of one core."""

_COMPACT: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
}
"""No white space between the parts of JSON, as OpenAI has it: who may say one more blank may do so for ever."""
STRICT: "JsonCompileOptions" = {**_COMPACT, "lenient": False, "coerce_one_of": False}
LENIENT: "JsonCompileOptions" = {**_COMPACT, "lenient": True, "coerce_one_of": True}
"""Keywords that can't be enforced are ignored, and exactly one of several becomes any of them."""


class Unreadable(Exception):
    """Not a grammar. `place` says which part of the text, where it has parts: `[2].function.parameters`."""

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.place = place


def read_grammar(kind: str, text: str, *, is_strict: bool) -> str:
    """A grammar in llguidance's JSON, found to be sound. Raises Unreadable."""
    grammar = READERS[kind](text, is_strict)
    matcher = matcher_of(grammar)
    _go_ahead(matcher)
    if fault := in_our_words(matcher.get_error()):
        raise Unreadable(fault)
    return grammar


def fault_of(grammar: str) -> str:
    """What llguidance has against a grammar; empty when nothing."""
    return in_our_words(matcher_of(grammar).get_error())


def matcher_of(grammar: str) -> LLMatcher:
    return LLMatcher(_BYTES, grammar, log_level=0, limits=LIMITS)


def _go_ahead(matcher: LLMatcher) -> None:
    """Some bytes into an answer: what is too complex to follow is found here, where it costs nobody else anything."""
    for _ in range(PROBED_BYTES):
        if matcher.is_error() or matcher.is_stopped():
            return
        bits = int.from_bytes(matcher.compute_bitmask(), "little") & ALL_BYTES
        if not bits:
            return
        matcher.consume_token(bits.bit_length() - 1)


def in_our_words(fault: str) -> str:
    """An error of llguidance, without the options of a library that the caller does not see."""
    if fault.startswith("Unimplemented keys: "):
        return (
            f"it uses keywords that can't be enforced: {fault.removeprefix('Unimplemented keys: ')}"
        )
    if fault.startswith("oneOf constraints are not supported"):
        return "it uses oneOf with branches that may both match, which can't be enforced: use anyOf"
    if fault.startswith("panic"):
        return "it is too large"
    if any(sign in fault for sign in ("Too many items", "too many expressions", "Current row has")):
        return "it is too complex for an answer to follow: it leaves too many ways to go on at once"
    return fault.split("<backtrace>")[0].strip()[:500]


def _json_schema(text: str, is_strict: bool) -> str:
    return _schema_grammar(_json(text), is_strict)


def _json_object(text: str, is_strict: bool) -> str:
    return _schema_grammar({"type": "object"}, is_strict)


def _schema_grammar(schema: Any, is_strict: bool) -> str:
    if not isinstance(schema, (dict, bool)):
        raise Unreadable("a schema is a JSON object or a boolean")
    if schema is False:
        raise Unreadable("the schema false lets nothing through")
    return LLMatcher.grammar_from_json_schema(
        json.dumps({} if schema is True else enforceable(schema)),
        overrides=STRICT if is_strict else LENIENT,
    )


def _regex(text: str, is_strict: bool) -> str:
    return LLMatcher.grammar_from_regex(text)


def _lark(text: str, is_strict: bool) -> str:
    return LLMatcher.grammar_from_lark(text)


def _gbnf(text: str, is_strict: bool) -> str:
    try:
        return LLMatcher.grammar_from_lark(any_to_lark(text))
    except Exception as error:  # noqa: BLE001 - the converter raises whatever its text leads to
        raise Unreadable(f"it can't be read as GBNF: {error}"[:500]) from None


def _choice(text: str, is_strict: bool) -> str:
    choices = _json(text)
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise Unreadable("choices are a list of strings")
    if not choices:
        raise Unreadable("there is nothing to choose from")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(quoted, choices)))


def _tool_calls(text: str, is_strict: bool) -> str:
    """One call, or a list of them: `{"name": ..., "arguments": {...}}`, each tool by its own schema and strictness.

    Spaces are where Python's json writes them, since models have learnt calls with them.
    """
    wish = _json(text)
    rules = []
    for place, tool in enumerate(wish["tools"]):
        if "lark" in tool:
            rules.append(_text_call(place, tool))
            continue
        options = {**(STRICT if tool["strict"] else LENIENT), **SPACED}
        parameters = tool["parameters"] if tool["strict"] else _closed(tool["parameters"])
        schema = {**enforceable(parameters), "x-guidance": options}
        if fault := fault_of(LLMatcher.grammar_from_json_schema(json.dumps(schema))):
            raise Unreadable(fault, _place(place, tool))
        head = quoted(f'{{"name": {json.dumps(tool["name"])}, "arguments": ')
        rules.append(
            f'call{place}: {head} args{place} "}}"\nargs{place}: %json {json.dumps(schema)}'
        )
    call = "call: " + " | ".join(f"call{place}" for place in range(len(rules)))
    start = 'start: "[" call (", " call)* "]"' if wish["many"] else "start: call"
    return LLMatcher.grammar_from_lark("\n".join([start, call, *rules]))


_OPENING = frozenset(
    (
        "additionalProperties",
        "patternProperties",
        "allOf",
        "anyOf",
        "oneOf",
        "$ref",
        "minProperties",
    )
)


def _closed(parameters: Any) -> Any:
    """Parameters of a function that names them, and says nothing of others: it has no others to take."""
    if "properties" not in parameters or parameters.keys() & _OPENING:
        return parameters
    return {**parameters, "additionalProperties": False}


def _place(place: int, tool: Any) -> str:
    """The field that says what a tool may be given."""
    return str(tool.get("at") or f"[{place}].function.parameters")


def _text_call(place: int, tool: Any) -> str:
    """A call with a text by a grammar, as it is: it has no end but the answer's."""
    if fault := fault_of(LLMatcher.grammar_from_lark(tool["lark"])):
        raise Unreadable(fault, _place(place, tool))
    head = quoted(f'{{"name": {json.dumps(tool["name"])}, "input": ')
    return f"call{place}: {head} text{place}\ntext{place}: %lark {{\n{tool['lark']}\n}}"


def _text_of(made: HeldFormat, place: int, tool: Any) -> list[str]:
    if fault := fault_of(LLMatcher.grammar_from_lark(tool["lark"])):
        raise Unreadable(fault, _place(place, tool))
    try:
        return made.text(place, tool["lark"])
    except Unspeakable as fault:
        raise Unreadable(str(fault), _place(place, tool)) from None


def _auto_calls(text: str, is_strict: bool) -> str:
    """Calls in a model's own format, from its opener on: strict tools by their schemas, others with any object."""
    wish = _json(text)
    made = form_of(wish)
    arguments: list[list[str]] = []
    for place, tool in enumerate(wish["tools"]):
        if "lark" in tool:
            arguments.append(_text_of(made, place, tool))
            continue
        strict = {**SPACED, "lenient": False, "coerce_one_of": False}
        schema = {"type": "object", "x-guidance": SPACED}
        if tool["strict"]:
            schema = {**enforceable(tool["parameters"]), "x-guidance": strict}
        if fault := fault_of(LLMatcher.grammar_from_json_schema(json.dumps(schema))):
            raise Unreadable(fault, _place(place, tool))
        try:
            arguments.append(made.arguments(place, schema))
        except Unspeakable as fault:
            raise Unreadable(str(fault), _place(place, tool)) from None
    names = [tool["name"] for tool in wish["tools"]]
    try:
        return calls_grammar(made, names, arguments, many=wish["many"])
    except Unspeakable as fault:
        raise Unreadable(str(fault)) from None


def _structural_tag(text: str, is_strict: bool) -> str:
    """Free text with tags in it, within which a schema is followed."""
    tags = []
    for place, tag in enumerate(_json(text)):
        schema = {} if tag["schema"] is True else tag["schema"]
        if not isinstance(schema, dict):
            raise Unreadable("a schema is a JSON object", f"[{place}]")
        schema = {**enforceable(schema), "x-guidance": STRICT}
        if fault := fault_of(LLMatcher.grammar_from_json_schema(json.dumps(schema))):
            raise Unreadable(fault, f"[{place}]")
        facts = {name: tag[name] for name in ("trigger", "begin", "end")}
        tags.append(StructTag(grammar=schema, **facts))
    return LLMatcher.grammar_from_lark(StructTag.to_grammar(tags, assume_special=False))


READERS: Mapping[str, Callable[[str, bool], str]] = {
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "lark": _lark,
    "gbnf": _gbnf,
    "choice": _choice,
    "structural_tag": _structural_tag,
    "tool_calls": _tool_calls,
    "auto_calls": _auto_calls,
}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unreadable(f"it is not valid JSON: {error}") from None
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None


class _Bytes:
    """A vocabulary of single bytes: grammars are read for no model in particular."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


_BYTES = LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
