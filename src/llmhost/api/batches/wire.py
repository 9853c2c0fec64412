"""Batches as OpenAI tells them, and how one is asked for."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from llmhost.api.files.wire import checked_lasts_s
from llmhost.core.caller import Caller
from llmhost.core.errors import InvalidValue, MissingParameter
from llmhost.pipeline.batches.lines import LONGEST_WINDOW_S, window_s
from llmhost.pipeline.batches.record import Batch, BatchStatus

MARK = "batch_"
"""How the ids of these batches begin; Anthropic's are no objects of this API."""
MOST_PAIRS, LONGEST_NAME, LONGEST_VALUE = 16, 64, 512


class ExpiresAfter(msgspec.Struct, frozen=True):
    anchor: str | None = None
    seconds: int | None = None


class NewBatch(msgspec.Struct, frozen=True, kw_only=True):
    """The body of POST /v1/batches."""

    input_file_id: str | None = None
    endpoint: str | None = None
    completion_window: str | None = None
    metadata: dict[str, Any] | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    total: int
    completed: int
    failed: int


class BatchInputDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int


class BatchOutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: BatchInputDetails
    output_tokens: int
    output_tokens_details: BatchOutputDetails
    total_tokens: int


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. Times are seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class BatchPage(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


_SAME = (
    *("id", "endpoint", "model", "input_file_id", "completion_window", "status", "output_file_id"),
    *("error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at"),
    *("completed_at", "failed_at", "expired_at", "cancelling_at", "cancelled_at", "metadata"),
)


def batch_object(batch: Batch) -> BatchObject:
    tally = batch.tally
    faults = [
        BatchError(code=fault.code, message=fault.message, param=fault.param, line=fault.line)
        for fault in batch.faults
    ]
    return BatchObject(
        **{name: getattr(batch, name) for name in _SAME},
        errors=BatchErrors(data=faults) if faults else None,
        request_counts=RequestCounts(
            total=batch.total, completed=tally.completed, failed=tally.failed
        ),
        usage=BatchUsage(
            input_tokens=tally.input_tokens,
            input_tokens_details=BatchInputDetails(cached_tokens=tally.cached_tokens),
            output_tokens=tally.output_tokens,
            output_tokens_details=BatchOutputDetails(reasoning_tokens=tally.reasoning_tokens),
            total_tokens=tally.input_tokens + tally.output_tokens,
        ),
    )


def batch_page(found: Sequence[Batch], limit: int) -> BatchPage:
    """`found` may have one more than the page holds."""
    data = [batch_object(batch) for batch in found[:limit]]
    return BatchPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(found) > limit,
    )


def batch_of(
    new: NewBatch,
    caller: Caller,
    run_id: str | None,
    *,
    endpoints: Sequence[str],
    now_s: int,
    usual_lasts_s: int,
) -> Batch:
    """What is asked for; its files are kept for `usual_lasts_s` where it does not say.

    Raises MissingParameter or InvalidValue.
    """
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not getattr(new, name):
            raise MissingParameter(name)
    assert new.input_file_id and new.endpoint and new.completion_window
    if new.endpoint not in endpoints:
        raise InvalidValue(
            f"'endpoint' is {new.endpoint[:80]!r}; it may be {', '.join(endpoints)}.",
            param="endpoint",
        )
    lasts_s = window_s(new.completion_window)
    if lasts_s is None:
        raise InvalidValue(
            f"'completion_window' is {new.completion_window[:80]!r}; it may be '24h', or another number of m, h or d"
            f" from '1m' to '{LONGEST_WINDOW_S // 86_400}d'.",
            param="completion_window",
        )
    output = new.output_expires_after
    batch_id = f"{MARK}{secrets.token_hex(12)}"
    return Batch(
        id=batch_id,
        caller=caller,
        run_id=run_id or batch_id,
        endpoint=new.endpoint,
        input_file_id=new.input_file_id,
        completion_window=new.completion_window,
        created_at=now_s,
        expires_at=now_s + lasts_s,
        metadata=_metadata(new.metadata),
        output_lasts_s=(
            usual_lasts_s
            if output is None
            else checked_lasts_s(output.anchor, output.seconds, "output_expires_after")
        ),
    )


def _metadata(said: Mapping[str, Any] | None) -> dict[str, str] | None:
    if said is None:
        return None
    if len(said) > MOST_PAIRS:
        raise InvalidValue(f"'metadata' may have {MOST_PAIRS} pairs.", param="metadata")
    for name, value in said.items():
        is_right = isinstance(value, str) and len(value) <= LONGEST_VALUE
        if len(name) > LONGEST_NAME or not is_right:
            raise InvalidValue(
                f"Names in 'metadata' may have {LONGEST_NAME} characters, and values are texts of at most"
                f" {LONGEST_VALUE}.",
                param=f"metadata.{name[:LONGEST_NAME]}",
            )
    return dict(said)
