"""The files that a batch makes at its end."""

from collections.abc import Iterable, Iterator

from llmhost.pipeline.batches.lines import Line, not_run
from llmhost.pipeline.batches.record import BatchStatus
from llmhost.storage.draft import Draft
from llmhost.storage.files import Files

NOT_RUN = {
    BatchStatus.EXPIRED: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    BatchStatus.CANCELLED: (
        "batch_cancelled",
        "The batch was cancelled before this request was executed.",
    ),
    BatchStatus.FAILED: ("batch_failed", "The batch ended before this request was executed."),
}
"""What is said of lines that never ran."""


class Outputs:
    """Two drafts, each made when it has a line. Its methods block."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.answers: Draft | None = None
        self.errors: Draft | None = None

    def write(
        self,
        results: Iterable[tuple[int, bool, bytes]],
        left: Iterator[Line],
        batch_id: str,
        end: BatchStatus,
    ) -> None:
        """All results, and a line for each that was not run; both files are on disk then. Raises StorageFailed."""
        for _, is_error, text in results:
            self._add(text, is_error=is_error)
        for line in left:
            self._add(not_run(batch_id, line, *NOT_RUN[end]), is_error=True)
        for draft in self.drafts:
            draft.finish()

    @property
    def drafts(self) -> list[Draft]:
        return [draft for draft in (self.answers, self.errors) if draft is not None]

    def discard(self) -> None:
        for draft in self.drafts:
            draft.discard()

    def _add(self, text: bytes, *, is_error: bool) -> None:
        if is_error:
            self.errors = self.errors or self._files.draft()
            self.errors.write(text + b"\n")
        else:
            self.answers = self.answers or self._files.draft()
            self.answers.write(text + b"\n")
