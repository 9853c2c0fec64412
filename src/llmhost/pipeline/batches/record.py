"""What is known of a batch, as it is kept and as it is told. Pure."""

from enum import StrEnum

import msgspec

from llmhost.core.caller import Caller


class BatchStatus(StrEnum):
    """OpenAI's words. The last four are ends."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        return self in (
            BatchStatus.COMPLETED,
            BatchStatus.FAILED,
            BatchStatus.EXPIRED,
            BatchStatus.CANCELLED,
        )


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch could not run, or not to its end."""

    code: str
    message: str
    line: int | None = None
    """Of the input, from 1."""
    param: str | None = None


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Lines that have ended and are booked, and the tokens that they used."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def with_line(
        self, *, is_error: bool, input_tokens: int, cached: int, output: int, reasoning: int
    ) -> "Tally":
        return Tally(
            completed=self.completed + (not is_error),
            failed=self.failed + is_error,
            input_tokens=self.input_tokens + input_tokens,
            cached_tokens=self.cached_tokens + cached,
            output_tokens=self.output_tokens + output,
            reasoning_tokens=self.reasoning_tokens + reasoning,
        )


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. Times are seconds since 1970."""

    id: str
    caller: Caller
    """Who made it, as it was then."""
    run_id: str
    """The run that its lines are part of: the one that its maker named, or the batch itself."""
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    output_lasts_s: int
    """How long the files that it makes are kept."""
    status: BatchStatus = BatchStatus.VALIDATING
    total: int = 0
    """Lines of the input, once they have been counted."""
    tally: Tally = Tally()
    model: str | None = None
    """What all lines ask, where all ask the same."""
    faults: tuple[Fault, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    def moved(self, status: BatchStatus, now_s: int) -> "Batch":
        """The same in another state, or as it is where that would be back; the first time that it came to a state is
        the one that counts."""
        if self.status in _BEYOND.get(status, ()):
            return self
        if status is BatchStatus.VALIDATING:
            return msgspec.structs.replace(self, status=status)
        name = f"{status}_at"
        when = getattr(self, name) or now_s
        return msgspec.structs.replace(self, status=status, **{name: when})


_BEYOND = {
    BatchStatus.IN_PROGRESS: (BatchStatus.CANCELLING,),
    BatchStatus.CANCELLING: (BatchStatus.FINALIZING, *filter(lambda s: s.is_end, BatchStatus)),
}
"""States from which there is no way back to these: what a cancel and a batch's own way write at the same time."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Batch).decode


def to_record(batch: Batch) -> bytes:
    return _encode(batch)


def from_record(record: bytes) -> Batch:
    return _decode(record)
