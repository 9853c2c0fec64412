"""vLLM's `structural_tag`: text that is free but for the tags in it, what stands within which follows a schema."""

import json
from typing import Any, Literal

import msgspec

from llmhost.api.loose import Raw, loose
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter
from llmhost.core.grammar import GrammarSpec

Schema = dict[str, Any] | bool


class _Structure(msgspec.Struct, frozen=True):
    begin: str
    end: str
    schema: Schema = True


class _Content(msgspec.Struct, frozen=True):
    type: str
    json_schema: Schema = True


class _Tag(msgspec.Struct, frozen=True):
    begin: str
    end: str
    content: _Content


class _Format(msgspec.Struct, frozen=True):
    """The newer shape, of which one type is served."""

    type: str
    triggers: list[str] = []
    tags: list[_Tag] = []
    at_least_one: bool = False
    stop_after_first: bool = False


class _Wish(msgspec.Struct, frozen=True):
    type: Literal["structural_tag"] = "structural_tag"
    triggers: list[str] | None = None
    structures: list[_Structure] | None = None
    format: _Format | None = None


def structural_tag(raw: Raw, at: str) -> GrammarSpec:
    """Of a field that holds an object, or its JSON as a string. Raises BadRequest."""
    text = loose(raw, str, at) if bytes(raw).startswith(b'"') else None
    wish = loose(raw if text is None else Raw(text.encode(errors="replace")), _Wish, at)
    if wish is None:
        raise MissingParameter(at)
    if wish.format is not None:
        triggers, structures = wish.format.triggers, _structures(wish.format, f"{at}.format")
    else:
        triggers, structures = wish.triggers or [], wish.structures or []
    if not triggers or not structures:
        raise InvalidValue(f"'{at}' needs 'triggers' and tags that begin with them.", param=at)
    tags = [_told(each, triggers, f"{at}[{place}]") for place, each in enumerate(structures)]
    return GrammarSpec("structural_tag", json.dumps(tags), param=at)


def _structures(form: _Format, at: str) -> list[_Structure]:
    kinds = {tag.content.type for tag in form.tags} - {"json_schema"}
    if form.type != "triggered_tags" or form.at_least_one or form.stop_after_first or kinds:
        raise UnsupportedParameter(
            "Of structural tags 'triggered_tags' with content of type 'json_schema' are supported, without"
            " 'at_least_one' and 'stop_after_first'.",
            param=at,
        )
    return [_Structure(tag.begin, tag.end, tag.content.json_schema) for tag in form.tags]


def _told(tag: _Structure, triggers: list[str], at: str) -> dict[str, Any]:
    trigger = next((each for each in triggers if each and tag.begin.startswith(each)), None)
    if trigger is None:
        raise InvalidValue(
            f"The tag {tag.begin[:80]!r} begins with none of the triggers.", param=at
        )
    return {"trigger": trigger, "begin": tag.begin, "end": tag.end, "schema": tag.schema}
