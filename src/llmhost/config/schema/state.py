"""[idempotency], [state], [files] and [batches]: what is kept on disk for callers, and what runs for them later."""

from typing import Annotated

from msgspec import Meta

from llmhost.config.schema.section import Count, Positive, Seconds, Section


class IdempotencySettings(Section, frozen=True):
    """[idempotency]: requests with the header `Idempotency-Key`, which run once however often they are sent."""

    kept_s: Annotated[float, Meta(ge=0, le=31_622_400)] = 86400.0
    """How long a finished answer is kept, on disk, for whoever sends its key again."""
    grace_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """How long such a request goes on when nobody reads its answer any more; then it is cancelled."""
    max_answer_bytes: Positive = 8 * 2**20
    """Answers beyond this are not kept, and while one runs its key is refused with 409."""
    max_kept_bytes: Positive = 2**30
    """All answers that are kept together; beyond it the oldest are forgotten."""


class StateSettings(Section, frozen=True):
    """[state]: what callers have the server keep for them, such as responses and conversations."""

    keep_days: Annotated[int, Meta(ge=1, le=36_500)] = 30
    """Days after which it is forgotten, unless its caller deletes it before."""
    chat_bytes_per_org: Positive = 2**28
    """Stored chats of one organisation together; beyond it its oldest are forgotten."""
    response_bytes_per_team: Positive = 2**30
    """Responses and conversations of a team, or of a key without one; beyond it its oldest responses are forgotten."""


class FileSettings(Section, frozen=True):
    """[files]: what callers upload to `/v1/files`, and what batches make."""

    max_file_bytes: Positive = 512 * 2**20
    """Larger files are refused with 413."""
    max_files_per_team: Positive = 1000
    """Files that a team may have; more are refused with 403."""
    max_bytes_per_team: Positive = 20 * 2**30
    """All files of a team together."""
    keep_free_bytes: Count = 2**30
    """So much of the disk uploads leave free: the ledger needs room, too."""
    batch_days: Annotated[int, Meta(ge=1, le=36_500)] = 30
    """Days after which files of batches are forgotten where nobody says otherwise; other files stay."""


class BatchSettings(Section, frozen=True):
    """[batches]: many requests in one file, which run when there is room and cost less."""

    price_factor: str = "0.5"
    """What a line costs of the price of the same request; "1" is all of it."""
    priority: Annotated[int, Meta(ge=-1000, le=1_000_000)] = 1000
    """Of lines in the scheduler; smaller runs first, and requests that name none have 0."""
    max_in_flight: Positive = 16
    """Lines of all batches that run at once on this node."""
    max_in_flight_per_batch: Positive = 8
    """Lines of one batch that run at once."""
    busy_share: Annotated[float, Meta(gt=0, le=1)] = 0.2
    """Part of the time that lines may run while others ask, so that most of those meet none; 1 is all of it."""
    max_lines: Positive = 50_000
    """Lines that a batch may have."""
    max_live_per_team: Positive = 100
    """Batches of a team that have not ended; more are refused with 429."""
    grace_s: Seconds = 600.0
    """How long lines that run may go on when their batch is cancelled or its time is over; then they are dropped."""
