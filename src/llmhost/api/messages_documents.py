"""Anthropic's documents and results of searches, as text."""

from llmhost.api.loose import NULL, Raw, loose
from llmhost.api.messages_bodies import WireBlock, WireSource
from llmhost.core.attached import enclosed, file_of_data, mark_of
from llmhost.core.errors import InvalidValue, MissingParameter, UnsupportedParameter


def document_text(block: WireBlock, at: str) -> str:
    """What stands in the prompt for it, with what is said of it before. Raises BadRequest."""
    _check_citations(block, at)
    source = loose(block.source, WireSource, f"{at}.source")
    if source is None:
        raise MissingParameter(f"{at}.source")
    return "\n".join(
        filter(None, (block.context, _source_text(source, block.title, f"{at}.source")))
    )


def search_result_text(block: WireBlock, at: str) -> str:
    """The same of what a caller has searched. Raises BadRequest."""
    _check_citations(block, at)
    source = loose(block.source, str, f"{at}.source")
    name = " - ".join(filter(None, (block.title, source)))
    return enclosed(_content_text(block.content, f"{at}.content"), name)


def _check_citations(block: WireBlock, at: str) -> None:
    if block.citations is not None and block.citations.enabled:
        raise UnsupportedParameter("Answers here cite nothing.", param=f"{at}.citations.enabled")


def _source_text(source: WireSource, title: str | None, at: str) -> str:
    match source.type:
        case "text":
            return enclosed(_needed(source.data, f"{at}.data"), title)
        case "base64":
            data = _needed(source.data, f"{at}.data")
            url = f"data:{source.media_type or ''};base64,{data}"
            return file_of_data(url, title, f"{at}.data")
        case "file":
            return mark_of(_needed(source.file_id, f"{at}.file_id"), f"{at}.file_id")
        case "content":
            return enclosed(_content_text(source.content, f"{at}.content"), title)
    raise UnsupportedParameter(
        f"A document from {source.type!r} is not supported: this server fetches nothing. Send its text.",
        param=f"{at}.type",
    )


def _needed(value: str | None, param: str) -> str:
    if value is None:
        raise MissingParameter(param)
    return value


def _content_text(raw: Raw, at: str) -> str:
    if raw is NULL:
        raise MissingParameter(at)
    if bytes(raw).startswith(b'"'):
        return loose(raw, str, at) or ""
    parts = loose(raw, list[WireBlock], at) or []
    for place, part in enumerate(parts):
        if part.type != "text" or part.text is None:
            raise InvalidValue("A document's content is text.", param=f"{at}[{place}].type")
    return "\n\n".join(part.text or "" for part in parts)
