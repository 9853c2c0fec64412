"""Bodies of /v1/decisions, checked at the edge: an input, and questions about it that have fixed answers.

What the model is asked is written here, and so is what each of its answers means.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmhost.api.bodies import MAX_MODEL_CHARS, MAX_TIMEOUT_MS
from llmhost.api.loose import NULL, Raw, loose, read_body
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.request import GenerationRequest, Kind, Question

DECISIONS_PATH = "/v1/decisions"
MAX_QUESTIONS = 400
MAX_CHOICES = 255
MAX_ANSWERS = 4096
"""Of all questions of a request together."""
MAX_JSON_BYTES = 256 * 1024
MAX_JSON_DEPTH = 32
MAX_JSON_VALUES = 10_000
MAX_ITEMS = 1_000
YES, NO = "Yes", "No"
TEXTS = ("input_text", "output_text", "text")

Message = dict[str, Any]


class DecisionPart(msgspec.Struct, frozen=True):
    """A part of content: a text, or JSON that is written as text."""

    type: str
    text: str | None = None
    refusal: str | None = None
    data: Raw = NULL


Content = str | list[DecisionPart]


class DecisionItem(msgspec.Struct, frozen=True):
    """One item of an input; one without a type is a message."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: Content | None = None


class DecisionChoice(msgspec.Struct, frozen=True):
    """A text and a boolean of the same words are two choices."""

    value: Annotated[str, Meta(min_length=1)] | bool
    description: str | None = None


class DecisionLevel(msgspec.Struct, frozen=True):
    label: Annotated[str, Meta(min_length=1)]
    description: str | None = None


class DecisionQuestion(msgspec.Struct, frozen=True):
    type: Literal["predicate", "choice", "score"]
    instructions: Content
    name: str | None = None
    choices: list[DecisionChoice] | None = None
    levels: list[DecisionLevel] | None = None


class DecisionBody(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/decisions. Every field may be null, which means absent."""

    model: Annotated[str, Meta(max_length=MAX_MODEL_CHARS)] | None = None
    input: str | list[DecisionItem] | None = None
    questions: list[DecisionQuestion] | None = None
    prompt_cache_key: Annotated[str, Meta(max_length=128)] | None = None
    prompt_cache_options: Raw = NULL
    safety_identifier: str | None = None
    user: str | None = None
    priority: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    timeout_ms: Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    cache_salt: Annotated[str, Meta(max_length=128)] | None = None
    include_cost: bool | None = None


def parse_decision(
    raw: bytes, request_id: str, client_id: str | None
) -> tuple[GenerationRequest, list[DecisionQuestion]]:
    """Raises BadRequest."""
    body = read_body(raw, DecisionBody)
    questions = _checked(body)
    return GenerationRequest(
        request_id=request_id,
        kind=Kind.DECISION,
        model=body.model or "",
        messages=tuple(_messages(body.input)),
        questions=tuple(_asked(one, f"questions[{i}]") for i, one in enumerate(questions)),
        max_tokens=0,
        priority=body.priority or 0,
        timeout_ms=body.timeout_ms,
        cache_salt=body.cache_salt or body.prompt_cache_key or "",
        client_request_id=client_id,
        user=body.user or body.safety_identifier,
        include_cost=bool(body.include_cost),
    ), questions


def _checked(body: DecisionBody) -> list[DecisionQuestion]:
    for name in ("model", "input", "questions"):
        if not getattr(body, name) and (name != "input" or body.input is None):
            raise MissingParameter(name)
    questions = body.questions or []
    if len(questions) > MAX_QUESTIONS:
        raise InvalidValue(
            f"'questions' holds {len(questions)}; {MAX_QUESTIONS} are allowed.", param="questions"
        )
    for place, question in enumerate(questions):
        _check_question(question, f"questions[{place}]")
    if (count := sum(len(values(one)) for one in questions)) > MAX_ANSWERS:
        raise InvalidValue(
            f"All questions together have {count} answers; {MAX_ANSWERS} are allowed in one request.",
            param="questions",
        )
    return questions


def _check_question(question: DecisionQuestion, at: str) -> None:
    kind = question.type
    if kind == "predicate":
        return
    field = "choices" if kind == "choice" else "levels"
    found = values(question)
    if getattr(question, field) is None:
        raise MissingParameter(f"{at}.{field}")
    if not 2 <= len(found) <= MAX_CHOICES:
        raise InvalidValue(
            f"'{at}.{field}' holds {len(found)}; a {kind} has 2 to {MAX_CHOICES}.",
            param=f"{at}.{field}",
        )
    seen: set[tuple[type, str | bool]] = set()
    for place, value in enumerate(found):
        if (key := (type(value), value)) in seen:
            raise InvalidValue(f"{value!r} is there twice.", param=f"{at}.{field}[{place}]")
        seen.add(key)


def values(question: DecisionQuestion) -> Sequence[str | bool]:
    """What a question's answers are, in their order: of a predicate the true one comes first."""
    match question.type:
        case "predicate":
            return (True, False)
        case "choice":
            return [choice.value for choice in question.choices or ()]
        case "score":
            return [level.label for level in question.levels or ()]


def _asked(question: DecisionQuestion, at: str) -> Question:
    instructions = _text(question.instructions, f"{at}.instructions").strip()
    if not instructions:
        raise InvalidValue("A question needs instructions.", param=f"{at}.instructions")
    if question.type == "predicate":
        return Question(
            f"Is this true of the above? Answer with {YES} or {NO} only.\n\n{instructions}",
            (YES, NO),
        )
    answers = tuple(_spelled(values(question)))
    if question.type == "choice":
        told = [choice.description for choice in question.choices or ()]
        lead = "Answer with one of these only:"
    else:
        told = [level.description for level in question.levels or ()]
        lead = "Answer with one of these levels only, the lowest of which comes first:"
    pairs = zip(answers, told, strict=True)
    lines = [f"- {answer}: {more}" if more else f"- {answer}" for answer, more in pairs]
    return Question("\n".join((instructions, "", lead, *lines)), answers)


def _spelled(given: Sequence[str | bool]) -> Iterator[str]:
    """A text that a boolean is spelled like is put in quotes."""
    flags = {str(value).lower() for value in given if isinstance(value, bool)}
    for value in given:
        if isinstance(value, bool):
            yield str(value).lower()
        else:
            yield f'"{value}"' if value in flags else value


def _messages(given: str | list[DecisionItem] | None) -> Iterator[Message]:
    """The input as chat templates know it."""
    if isinstance(given, str):
        if not given.strip():
            raise InvalidValue("'input' is empty.", param="input")
        yield {"role": "user", "content": given}
        return
    items = given or []
    if not 0 < len(items) <= MAX_ITEMS:
        raise InvalidValue(
            f"'input' holds {len(items)} items; 1 to {MAX_ITEMS} are allowed.", param="input"
        )
    names: dict[str, str] = {}
    for place, item in enumerate(items):
        yield _message(item, names, f"input[{place}]")


def _message(item: DecisionItem, names: dict[str, str], at: str) -> Message:
    """`names` has the tool of each call by its id."""
    match item.type or "message":
        case "message":
            role = _needed(item.role, "role", at)
            content = _needed(item.content, "content", at)
            return {"role": role, "content": _text(content, f"{at}.content")}
        case "function_call":
            return _call(item, _needed(item.arguments, "arguments", at), names, at)
        case "custom_tool_call":
            given = {"input": _needed(item.input, "input", at)}
            return _call(item, msgspec.json.encode(given).decode(), names, at)
        case "function_call_output" | "custom_tool_call_output":
            called = _needed(item.call_id, "call_id", at)
            if called not in names:
                raise InvalidValue(
                    f"No call before it has the id {called[:80]!r}.", param=f"{at}.call_id"
                )
            text = _text(_needed(item.output, "output", at), f"{at}.output")
            return {"role": "tool", "tool_call_id": called, "name": names[called], "content": text}
    raise UnsupportedParameter(
        f"Items of type {item.type!r} are not supported here.", param=f"{at}.type"
    )


def _call(item: DecisionItem, arguments: str, names: dict[str, str], at: str) -> Message:
    called, name = _needed(item.call_id, "call_id", at), _needed(item.name, "name", at)
    names[called] = name
    function = {"name": name, "arguments": arguments}
    call = {"id": called, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _text(content: Content, at: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_part(part, f"{at}[{place}]") for place, part in enumerate(content))


def _part(part: DecisionPart, at: str) -> str:
    if part.type == "input_json":
        return _json(part.data, f"{at}.data")
    if part.type not in (*TEXTS, "refusal"):
        raise UnsupportedParameter(
            f"Content of type {part.type!r} is not supported; this server takes text and JSON.",
            param=f"{at}.type",
        )
    field = "refusal" if part.type == "refusal" else "text"
    text: str = _needed(getattr(part, field), field, at)
    return text


def _json(raw: Raw, at: str) -> str:
    """An object or a list of objects as compact text."""
    if raw is NULL:
        raise MissingParameter(at)
    if len(bytes(raw)) > MAX_JSON_BYTES:
        raise InvalidValue(f"'{at}' is longer than {MAX_JSON_BYTES} bytes.", param=at)
    data = loose(raw, dict[str, Any] | list[dict[str, Any]], at)  # type: ignore[arg-type]
    level: list[Any] = [data]
    count = depth = 0
    while level:
        count, depth = count + len(level), depth + 1
        level = [inner for value in level for inner in _inner(value)]
        if count > MAX_JSON_VALUES or (level and depth > MAX_JSON_DEPTH):
            raise InvalidValue(
                f"'{at}' has more than {MAX_JSON_VALUES} values, or more than {MAX_JSON_DEPTH} levels.",
                param=at,
            )
    return msgspec.json.encode(data).decode()


def _inner(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _needed(value: Any, field: str, at: str) -> Any:
    if value is None:
        raise MissingParameter(f"{at}.{field}")
    return value
