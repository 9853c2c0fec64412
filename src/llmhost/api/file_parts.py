"""Parts of content that are files, in the words of each API."""

from typing import Protocol

from llmhost.core.attached import FETCHES_NOTHING, file_of_data, mark_of
from llmhost.core.errors import MissingParameter, UnsupportedParameter


class FilePart(Protocol):
    @property
    def file_data(self) -> str | None: ...

    @property
    def file_id(self) -> str | None: ...

    @property
    def filename(self) -> str | None: ...

    @property
    def file_url(self) -> str | None: ...


def text_of_file(part: FilePart, at: str) -> str:
    """What stands in the prompt for it: its text, or a mark where it is named by its id. Raises BadRequest."""
    if part.file_url is not None:
        raise UnsupportedParameter(FETCHES_NOTHING, param=f"{at}.file_url")
    if part.file_data is not None:
        return file_of_data(part.file_data, part.filename, f"{at}.file_data")
    if part.file_id is not None:
        return mark_of(part.file_id, f"{at}.file_id")
    raise MissingParameter(f"{at}.file_data")


def name_of_file(part: FilePart) -> str:
    """What a list of messages says in the place of a file."""
    return f"[file {part.filename or part.file_id or 'without a name'}]"
