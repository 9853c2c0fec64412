"""Files as OpenAI tells them."""

from typing import Any, Literal

import msgspec

from llmhost.core.errors import InvalidValue, MissingParameter
from llmhost.storage.files import StoredFile

PURPOSES = ("batch", "user_data", "assistants", "fine-tune", "vision")
"""What callers may upload files for. Batches are what this server uses them for; others are kept."""
MADE = "batch_output"
SHORTEST_S, LONGEST_S = 3_600, 30 * 86_400
LONGEST_NAME = 255


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file, without what is in it."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class FilePage(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def file_object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.utc_ns // 10**9,
        expires_at=None if file.expires_ns is None else file.expires_ns // 10**9,
        filename=file.filename,
        purpose=file.purpose,
    )


def file_page(found: list[StoredFile], limit: int) -> FilePage:
    """`found` may have one more than the page holds."""
    data = [file_object(file) for file in found[:limit]]
    return FilePage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def purpose_of(fields: dict[str, str]) -> str:
    """Raises MissingParameter or InvalidValue."""
    purpose = fields.get("purpose")
    if purpose is None:
        raise MissingParameter("purpose")
    if purpose not in PURPOSES:
        raise InvalidValue(
            f"'purpose' is {purpose[:80]!r}; it may be {', '.join(PURPOSES)}.", param="purpose"
        )
    return purpose


def lasts_s_of(fields: dict[str, str]) -> int | None:
    """Seconds of `expires_after`, as a form sends it: in two fields, or as JSON. None where it is absent.

    Raises InvalidValue.
    """
    anchor: object = fields.get("expires_after[anchor]")
    seconds: object = fields.get("expires_after[seconds]")
    whole = fields.get("expires_after")
    if whole is not None:
        anchor, seconds = _read_expiry(whole)
    elif anchor is None and seconds is None:
        return None
    return checked_lasts_s(anchor, seconds, "expires_after")


def _read_expiry(text: str) -> tuple[object, object]:
    try:
        said = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidValue(
            "'expires_after' must be an object with 'anchor' and 'seconds'.", param="expires_after"
        ) from None
    return said.get("anchor"), said.get("seconds")


def checked_lasts_s(anchor: object, seconds: object, param: str) -> int:
    """Raises InvalidValue."""
    if anchor != "created_at":
        raise InvalidValue(f"'{param}.anchor' must be 'created_at'.", param=f"{param}.anchor")
    text = str(seconds)
    is_number = len(text) < 12 and text.isascii() and text.isdecimal()
    if not (is_number and SHORTEST_S <= int(text) <= LONGEST_S):
        raise InvalidValue(
            f"'{param}.seconds' must be a whole number from {SHORTEST_S} to {LONGEST_S}.",
            param=f"{param}.seconds",
        )
    return int(text)
