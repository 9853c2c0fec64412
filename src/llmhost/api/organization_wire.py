"""OpenAI's pages of usage and costs: buckets of time, each with a result for every group that was asked for.

A project is a team here: `ORG/TEAM`, or `ORG` for what belongs to none. Requests have no users, batches or tiers.
"""

import base64
import binascii

import msgspec

from llmhost.core.errors import InvalidValue


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    """Null: not grouped by that, or there is none."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None


class CompletionsResult(_Result, frozen=True, kw_only=True):
    """Requests to models that answer with text, scores or labels, or to decide or judge, as the `object` says.
    `input_tokens` has the cached ones, too."""

    object: str = "organization.usage.completions.result"
    input_tokens: int
    output_tokens: int
    input_cached_tokens: int
    input_audio_tokens: int = 0
    output_audio_tokens: int = 0
    num_model_requests: int
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None


class EmbeddingsResult(_Result, frozen=True, kw_only=True):
    """Requests for embeddings."""

    object: str = "organization.usage.embeddings.result"
    input_tokens: int
    num_model_requests: int
    model: str | None = None


class Amount(msgspec.Struct, frozen=True, kw_only=True):
    """`value` is what OpenAI's clients read; `exact` is the same in decimal, to the last place."""

    value: float
    currency: str = "usd"
    exact: str


class CostsResult(_Result, frozen=True, kw_only=True):
    """What was charged."""

    object: str = "organization.costs.result"
    amount: Amount
    line_item: str | None = None
    quantity: int | None = None


class CompletionsBucket(msgspec.Struct, frozen=True, kw_only=True):
    """start_time <= time < end_time, in UTC seconds."""

    object: str = "bucket"
    start_time: int
    end_time: int
    results: list[CompletionsResult]


class EmbeddingsBucket(msgspec.Struct, frozen=True, kw_only=True):
    """start_time <= time < end_time, in UTC seconds."""

    object: str = "bucket"
    start_time: int
    end_time: int
    results: list[EmbeddingsResult]


class CostsBucket(msgspec.Struct, frozen=True, kw_only=True):
    """start_time <= time < end_time, in UTC seconds."""

    object: str = "bucket"
    start_time: int
    end_time: int
    results: list[CostsResult]


class CompletionsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets in order. The next page is the same question with `page`."""

    object: str = "page"
    data: list[CompletionsBucket]
    has_more: bool
    next_page: str | None


class EmbeddingsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets in order. The next page is the same question with `page`."""

    object: str = "page"
    data: list[EmbeddingsBucket]
    has_more: bool
    next_page: str | None


class CostsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets in order. The next page is the same question with `page`."""

    object: str = "page"
    data: list[CostsBucket]
    has_more: bool
    next_page: str | None


def cursor_of(start_s: int) -> str:
    """Names the bucket that the next page begins with."""
    return base64.urlsafe_b64encode(f"page_{start_s}".encode()).decode()


def start_in(cursor: str) -> int:
    """The seconds that a cursor was made of. Raises InvalidValue."""
    try:
        text = base64.urlsafe_b64decode(cursor.encode()).decode()
        prefix, _, number = text.partition("_")
        if prefix != "page" or not number.isdecimal() or len(number) > 12:
            raise ValueError
        return int(number)
    except (ValueError, binascii.Error):
        raise InvalidValue(
            f"'page' is {cursor[:80]!r}, which no earlier page has named.", param="page"
        ) from None
