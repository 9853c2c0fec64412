"""Anthropic's documents as text."""

from llmhost.api.loose import loose
from llmhost.api.messages_bodies import WireBlock
from llmhost.core.attached import enclosed, file_of_data, mark_of
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter


def document_text(block: WireBlock, at: str) -> str:
    """What stands in the prompt for it, with what is said of it before. Raises BadRequest."""
    if block.citations is not None and block.citations.enabled:
        raise UnsupportedParameter("Answers here cite nothing.", param=f"{at}.citations.enabled")
    return "\n".join(filter(None, (block.context, _source_text(block, at))))


def _source_text(block: WireBlock, at: str) -> str:
    source, here = block.source, f"{at}.source"
    if source is None:
        raise MissingParameter(here)
    match source.type:
        case "text":
            if source.data is None:
                raise MissingParameter(f"{here}.data")
            return enclosed(source.data, block.title)
        case "base64":
            if source.data is None:
                raise MissingParameter(f"{here}.data")
            url = f"data:{source.media_type or ''};base64,{source.data}"
            return file_of_data(url, block.title, f"{here}.data")
        case "file":
            if source.file_id is None:
                raise MissingParameter(f"{here}.file_id")
            return mark_of(source.file_id, f"{here}.file_id")
        case "content":
            return enclosed(_content_text(block, f"{here}.content"), block.title)
    raise UnsupportedParameter(
        f"A document from {source.type!r} is not supported: this server fetches nothing. Send its text.",
        param=f"{here}.type",
    )


def _content_text(block: WireBlock, at: str) -> str:
    assert block.source is not None
    raw = block.source.content
    if bytes(raw).startswith(b'"'):
        return loose(raw, str, at) or ""
    parts = loose(raw, list[WireBlock], at) or []
    for place, part in enumerate(parts):
        if part.type != "text" or part.text is None:
            raise InvalidValue("A document's content is text.", param=f"{at}[{place}].type")
    return "\n\n".join(part.text or "" for part in parts)
