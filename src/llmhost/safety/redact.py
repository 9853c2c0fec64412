"""What was found, replaced by its rule's name: `[card]`. Pure."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from llmhost.core.request import GenerationRequest
from llmhost.safety.verdict import Finding


class Edit(NamedTuple):
    """What is put in place of a stretch of text."""

    start: int
    end: int
    mark: str
    rule: str


def mark_of(finding: Finding) -> str:
    """`[card]` for `pii.card`; the category for what is a place in a list, such as `blocked_words[2]`."""
    category, _, name = finding.rule.rpartition(".")
    return f"[{name}]" if category == finding.category else f"[{finding.category}]"


def edits_of(findings: Iterable[Finding]) -> list[Edit]:
    """In order; findings that overlap are one."""
    edits: list[Edit] = []
    for finding in sorted(findings, key=lambda finding: (finding.start, -finding.end)):
        if not 0 <= finding.start < finding.end:
            continue
        if edits and finding.start < edits[-1].end:
            edits[-1] = edits[-1]._replace(end=max(edits[-1].end, finding.end))
        else:
            edits.append(Edit(finding.start, finding.end, mark_of(finding), finding.rule))
    return edits


def redacted(text: str, findings: Iterable[Finding]) -> str:
    at = 0
    parts: list[str] = []
    for edit in edits_of(findings):
        parts += (text[at : edit.start], edit.mark)
        at = edit.end
    return "".join(parts) + text[at:] if parts else text


def in_json(text: str, edit: Edit) -> Edit:
    """Quoted where a bare number stood, so that JSON stays JSON."""
    before, after = text[: edit.start].rstrip()[-1:], text[edit.end :].lstrip()[:1]
    if before in (":", "[", ",") and after in (",", "]", "}", ""):
        return edit._replace(mark=f'"{edit.mark}"')
    return edit


def redacted_request(request: GenerationRequest, clean: Callable[[str], str]) -> GenerationRequest:
    """With every text of its prompts and messages cleaned. Tools and the answer's form are left as they are: they are
    names and rules, which a change would break."""
    questions = tuple(replace(asked, text=clean(asked.text)) for asked in request.questions)
    return replace(
        request,
        messages=tuple(_cleaned(message, clean, is_top=True) for message in request.messages),
        prompts=tuple(clean(p) if isinstance(p, str) else p for p in request.prompts),
        suffix=clean(request.suffix),
        questions=questions,
        template_kwargs=_cleaned(request.template_kwargs, clean),
    )


def _cleaned(value: Any, clean: Callable[[str], str], *, is_top: bool = False) -> Any:
    """Every text in there but names of members. Deeper than requests may nest is not reached here."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list | tuple):
        return type(value)(_cleaned(inner, clean) for inner in value)
    if not isinstance(value, dict):
        return value
    return {
        key: inner
        if is_top and key == "role"
        else _arguments(inner, clean)
        if key == "arguments"
        else _cleaned(inner, clean)
        for key, inner in value.items()
    }


def _arguments(value: Any, clean: Callable[[str], str]) -> Any:
    """Of a call: text that is JSON, in which escapes could hide something."""
    if not isinstance(value, str):
        return _cleaned(value, clean)
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return clean(value)
    said = _cleaned(read, clean)
    return value if said == read else json.dumps(said, ensure_ascii=False)
