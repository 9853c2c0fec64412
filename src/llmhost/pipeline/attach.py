"""Puts the text of files that a conversation names by their ids in their places: of the caller's own files only."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from llmhost.core.attached import Named, file_text, has_marks, named_in, with_texts
from llmhost.core.caller import Caller
from llmhost.core.errors import InvalidValue, NotFound
from llmhost.pipeline.context import RequestContext
from llmhost.storage.files import Files, Owner

MOST_BYTES = 16 << 20
"""Of all files that one conversation names, each as often as it is named."""


class Attach:
    def __init__(self, files: Files, check_length: Callable[[RequestContext], None]) -> None:
        """`check_length` raises what refuses a request that has become too long."""
        self._files = files
        self._check_length = check_length

    async def __call__(self, context: RequestContext) -> None:
        """Raises NotFound for a file that the caller has not, BadRequest for one that is no text."""
        request = context.request
        named = [
            each
            for message in request.messages
            if isinstance(content := message.get("content"), str) and has_marks(content)
            for each in named_in(content)
        ]
        if not named:
            return
        texts = await self._texts(named, context.known_caller)
        messages = tuple(_with_texts(message, texts) for message in request.messages)
        context.request = replace(request, messages=messages)
        context.has_files = True
        self._check_length(context)

    async def _texts(self, named: list[Named], caller: Caller) -> dict[str, str]:
        """By their marks."""
        left = MOST_BYTES
        texts: dict[str, str] = {}
        known: dict[str, tuple[int, str]] = {}
        owner = Owner(caller.org, caller.team)
        for each in named:
            if (found := known.get(each.file_id)) is None:
                found = known[each.file_id] = await self._read(each, owner, left)
            size, texts[each.mark] = found
            left -= size  # each time that it is named: so often it is in the prompt
            _check_room(each, left)
        return texts

    async def _read(self, named: Named, owner: Owner, left: int) -> tuple[int, str]:
        """Its size and its text."""
        file = await self._files.find(named.file_id, owner)
        if file is None:
            raise _gone(named)
        _check_room(named, left - file.bytes)
        try:
            content = await asyncio.to_thread(self._files.path(file.id).read_bytes)
        except FileNotFoundError:
            raise _gone(named) from None
        return file.bytes, file_text(content, file.filename, named.param)


def _check_room(named: Named, left: int) -> None:
    if left < 0:
        raise InvalidValue(
            f"The files of a conversation may have {MOST_BYTES} bytes together.",
            param=named.param,
        )


def _gone(named: Named) -> NotFound:
    return NotFound(f"There is no file {named.file_id[:80]!r} here.", param=named.param)


def _with_texts(message: dict[str, object], texts: dict[str, str]) -> dict[str, object]:
    content = message.get("content")
    if not isinstance(content, str) or not has_marks(content):
        return message
    return {**message, "content": with_texts(content, texts)}
