"""Batches as Anthropic tells them, and how one is asked for. Pure."""

import re
from collections.abc import Container, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from llmhost.api.dialect import ANTHROPIC_PATH
from llmhost.api.loose import Raw, read_body
from llmhost.core.errors import InvalidValue, MissingParameter, RequestTooLarge
from llmhost.pipeline.batches.lines import read_line
from llmhost.pipeline.batches.record import Batch, BatchStatus, Fault

MARK = "msgbatch_"
"""How the ids of these batches begin, by which they are told from OpenAI's."""
PATH = f"{ANTHROPIC_PATH}/batches"
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")

_encode = msgspec.json.Encoder().encode


class MessageBatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request: `params` is a body of POST /v1/messages."""

    custom_id: str | None = None
    params: dict[str, Any] | None = None


class NewMessageBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /v1/messages/batches."""

    requests: list[MessageBatchRequest] | None = None


class _Request(msgspec.Struct):
    custom_id: str | None = None
    params: Raw = Raw(b"null")


class _New(msgspec.Struct):
    """The same; what is asked in a request is for its line to judge."""

    requests: list[_Request] | None = None


class MessageBatchCounts(msgspec.Struct, frozen=True, kw_only=True):
    """All are `processing` until the batch has ended."""

    processing: int = 0
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


class MessageBatchObject(msgspec.Struct, frozen=True, kw_only=True):
    """A batch of messages."""

    id: str
    type: Literal["message_batch"] = "message_batch"
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: MessageBatchCounts
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    cancel_initiated_at: datetime | None
    archived_at: datetime | None
    results_url: str | None


class MessageBatchPage(msgspec.Struct, frozen=True, kw_only=True):
    data: list[MessageBatchObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedMessageBatch(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["message_batch_deleted"] = "message_batch_deleted"


def read_lines(raw: bytes, *, most: int, longest_bytes: int) -> list[bytes]:
    """The requests of a body, each as a line of a batch's input. Raises BadRequest and RequestTooLarge."""
    requests = read_body(raw, _New).requests
    if requests is None:
        raise MissingParameter("requests")
    if not 0 < len(requests) <= most:
        raise InvalidValue(
            f"{len(requests)} requests are sent; a batch may have 1 to {most}.", param="requests"
        )
    places: dict[str, int] = {}
    return [_line(each, at, places, longest_bytes) for at, each in enumerate(requests)]


def _line(request: _Request, at: int, places: dict[str, int], longest_bytes: int) -> bytes:
    name = f"requests[{at}]"
    if request.custom_id is None:
        raise MissingParameter(f"{name}.custom_id")
    if not _CUSTOM_ID.fullmatch(request.custom_id):
        raise InvalidValue(
            f"'{name}.custom_id' must be 1 to 64 letters, digits, '_' and '-'.",
            param=f"{name}.custom_id",
        )
    if (first := places.setdefault(request.custom_id, at)) != at:
        raise InvalidValue(
            f"'{name}.custom_id' is {request.custom_id!r}, which is that of requests[{first}], too.",
            param=f"{name}.custom_id",
        )
    if (params := bytes(request.params).strip()) == b"null":
        raise MissingParameter(f"{name}.params")
    line = _encode(
        {
            "custom_id": request.custom_id,
            "method": "POST",
            "url": ANTHROPIC_PATH,
            "body": Raw(b" ".join(params.splitlines())),  # a line break can only be white space
        }
    )
    if len(line) > longest_bytes:
        raise RequestTooLarge(
            f"'{name}' has more than {longest_bytes} bytes, which a request may have.",
            param=f"{name}.params",
        )
    if isinstance(read_line(line, at + 1, ANTHROPIC_PATH), Fault):
        raise InvalidValue(f"'{name}.params' must be a JSON object.", param=f"{name}.params")
    return line


def message_batch(
    batch: Batch, now_s: int, base_url: str, there: Container[str]
) -> MessageBatchObject:
    """`base_url` is what its client has put before the path; `there` are files that have not been deleted."""
    archived_s = archived_at(batch)
    is_archived = archived_s is not None and archived_s <= now_s
    files = result_files(batch)
    has_results = bool(files) and not is_archived and all(file in there for file in files)
    return MessageBatchObject(
        id=batch.id,
        processing_status=_status(batch.status),
        request_counts=_counts(batch),
        created_at=_time(batch.created_at),
        expires_at=_time(batch.expires_at),
        ended_at=_when(ended_at(batch)),
        cancel_initiated_at=_when(batch.cancelling_at),
        archived_at=_when(archived_s) if is_archived else None,
        results_url=f"{base_url}{PATH}/{batch.id}/results" if has_results else None,
    )


def message_batch_page(
    found: Sequence[Batch], now_s: int, base_url: str, there: Container[str], *, has_more: bool
) -> MessageBatchPage:
    return MessageBatchPage(
        data=[message_batch(batch, now_s, base_url, there) for batch in found],
        has_more=has_more,
        first_id=found[0].id if found else None,
        last_id=found[-1].id if found else None,
    )


def ended_at(batch: Batch) -> int | None:
    """In seconds since 1970."""
    if not batch.status.is_end:
        return None
    when: int | None = getattr(batch, f"{batch.status}_at")
    return when


def archived_at(batch: Batch) -> int | None:
    """When its results are forgotten, in seconds since 1970."""
    ended_s = ended_at(batch)
    return None if ended_s is None else ended_s + batch.output_lasts_s


def result_files(batch: Batch) -> list[str]:
    """Ids of the files that its results are in."""
    return [file for file in (batch.output_file_id, batch.error_file_id) if file is not None]


def _status(status: BatchStatus) -> Literal["in_progress", "canceling", "ended"]:
    if status is BatchStatus.CANCELLING:
        return "canceling"
    return "ended" if status.is_end else "in_progress"


def _counts(batch: Batch) -> MessageBatchCounts:
    tally = batch.tally
    left = batch.total - tally.completed - tally.failed
    match batch.status:
        case BatchStatus.CANCELLED:
            unrun = {"canceled": left}
        case BatchStatus.EXPIRED:
            unrun = {"expired": left}
        case BatchStatus.COMPLETED | BatchStatus.FAILED:
            unrun = {}
        case _:
            return MessageBatchCounts(processing=batch.total)
    errored = batch.total - tally.completed - sum(unrun.values())
    return MessageBatchCounts(succeeded=tally.completed, errored=errored, **unrun)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _when(seconds: int | None) -> datetime | None:
    return None if seconds is None else _time(seconds)


# ---------------------------------------------------------------- results


class _Response(msgspec.Struct):
    status_code: int
    body: Raw


class _Unrun(msgspec.Struct):
    code: str
    message: str


class _Kept(msgspec.Struct):
    """A line of a batch's files."""

    custom_id: str
    response: _Response | None = None
    error: _Unrun | None = None


_read_kept = msgspec.json.Decoder(_Kept).decode
_UNRUN = {"batch_cancelled": "canceled", "batch_expired": "expired"}


def results(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines of a batch's files as Anthropic has them."""
    for line in lines:
        kept = _read_kept(line)
        yield _encode({"custom_id": kept.custom_id, "result": _result(kept)}) + b"\n"


def _result(kept: _Kept) -> dict[str, Any]:
    if kept.response is not None:
        if kept.response.status_code == 200:
            return {"type": "succeeded", "message": kept.response.body}
        return {"type": "errored", "error": kept.response.body}
    assert kept.error is not None, "a line has been run or has not"
    if (how := _UNRUN.get(kept.error.code)) is not None:
        return {"type": how}
    error = {"type": "api_error", "message": kept.error.message}
    return {"type": "errored", "error": {"type": "error", "error": error, "request_id": None}}
