"""All batches that have not ended: each is a task here, from its validation to its files.

States go as OpenAI has them: validating, in_progress, finalizing, and completed, failed or expired; or cancelling and
cancelled. Each is on disk before it is told. A process that takes over finds the batch in some state, with results of
some of its lines, and goes on from there.
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import msgspec

from llmhost.config.schema.state import BatchSettings
from llmhost.core.caller import Caller
from llmhost.core.errors import LlmhostError
from llmhost.core.ports import Clock
from llmhost.observe.batches import BatchMetrics
from llmhost.observe.logs import log_event
from llmhost.pipeline.batches.attempt import LineRunner
from llmhost.pipeline.batches.booking import Booking
from llmhost.pipeline.batches.job import Job
from llmhost.pipeline.batches.lines import Check
from llmhost.pipeline.batches.output import Outputs
from llmhost.pipeline.batches.pace import Pace
from llmhost.pipeline.batches.record import Batch, BatchStatus, Fault, Tally, from_record, to_record
from llmhost.pipeline.batches.source import Source, check_input, lines_left
from llmhost.storage.batches import Batches, LineResult
from llmhost.storage.files import Files, Owner, StoredFile
from llmhost.storage.keyed_calls import Note

log = logging.getLogger("llmhost.batches")

AGAIN_S = 5.0
"""How long a batch that the disk stopped waits before it is taken up again."""

BUG = Fault(code="internal_error", message="The server failed while it ran this batch.")
GONE = Fault(code="file_not_found", message="The input file is not there any more.")


class BatchRunner:
    """Owns every batch that has not ended, its record included. Used on the event loop alone."""

    def __init__(
        self,
        settings: BatchSettings,
        store: Batches,
        files: Files,
        lines: LineRunner,
        booking: Booking,
        pace: Pace,
        clock: Clock,
        metrics: BatchMetrics,
        *,
        longest_line_bytes: int,
    ) -> None:
        self._settings = settings
        self._store = store
        self._files = files
        self._lines = lines
        self._booking = booking
        self._pace = pace
        self._clock = clock
        self._metrics = metrics
        self._longest_line_bytes = longest_line_bytes
        self._places = asyncio.Semaphore(settings.max_in_flight)
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_draining = False

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The routes that lines may name."""
        return self._lines.endpoints

    # ------------------------------------------------------------ from outside

    async def start(self) -> None:
        """Book what a process before this one could not, and go on with its batches."""
        await self._booking.catch_up()
        await self._store.forget_lines()
        for record in await self._store.live():
            batch = from_record(record)
            tally = await self._tally(batch.id)
            self._launch(Job(msgspec.structs.replace(batch, tally=tally)))

    async def add(self, batch: Batch, owner: Owner, note: Note | None = None) -> None:
        """Take a batch in; done when it will outlive this process. Raises InvalidValue, RateLimited, and what `note`
        does."""
        await self._store.add(
            batch.id,
            owner,
            to_record(batch),
            input_file_id=batch.input_file_id,
            most_live=self._settings.max_live_per_team,
            note=note,
        )
        log_event(
            log, "batch.created", batch=batch.id, org=batch.caller.org, endpoint=batch.endpoint
        )
        self._launch(Job(batch))

    async def cancel(self, batch_id: str) -> Batch | None:
        """Begin no more of its lines. None where it has ended already."""
        job = self._jobs.get(batch_id)
        if job is None:
            return None
        if job.batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS):
            await self._move(job, BatchStatus.CANCELLING)
        job.stop(BatchStatus.CANCELLED)
        return job.batch

    def now(self, batch: Batch) -> Batch:
        """A batch as it is known here, which may be further than its record."""
        job = self._jobs.get(batch.id)
        return batch if job is None else job.batch

    def states(self) -> Iterator[str]:
        """Of each batch that has not ended."""
        return (job.batch.status.value for job in self._jobs.values())

    def drain(self) -> None:
        """Begin no more lines: the next process does. What runs is waited for by those who wait for requests."""
        self._is_draining = True
        for job in self._jobs.values():
            job.stop(None)

    async def close(self, within_s: float = 5.0) -> None:
        """Nothing runs any more: let lines be kept and booked that have ended, and leave the others."""
        self.drain()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ------------------------------------------------------------ one batch

    def _launch(self, job: Job) -> None:
        self._jobs[job.batch.id] = job
        if self._is_draining:
            job.stop(None)
        task = asyncio.create_task(self._run(job), name=f"batch-{job.batch.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, job: Job) -> None:
        """Until the batch has ended or the process does. A disk that refuses is tried again."""
        if job.batch.status is BatchStatus.CANCELLING:
            job.stop(BatchStatus.CANCELLED)
        alarm = asyncio.get_running_loop().call_later(
            max(0.0, job.batch.expires_at - self._clock.utc_ns() / 1e9),
            job.stop,
            BatchStatus.EXPIRED,
        )
        try:
            while not await self._taken_on(job):
                if job.is_draining:
                    return
                await asyncio.sleep(AGAIN_S)
        finally:
            alarm.cancel()
        if job.batch.status.is_end:
            del self._jobs[job.batch.id]
            await self._forget_lines()

    async def _taken_on(self, job: Job) -> bool:
        """Whether it has come to its end."""
        try:
            if job.batch.status is BatchStatus.VALIDATING and not job.is_stopped:
                await self._validate(job)
            if not job.batch.status.is_end and not job.is_draining:
                await self._work(job)
            if not job.batch.status.is_end and not job.is_draining:
                await self._finish(job)
        except LlmhostError as error:
            log.error("batch.stuck batch=%s error=%s", job.batch.id, error)
            return False
        except FileNotFoundError:
            return await self._give_up(job, GONE)
        except Exception:  # boundary: the batch ends, and says so
            log.exception("batch.bug batch=%s", job.batch.id)
            return await self._give_up(job, BUG)
        return job.batch.status.is_end

    async def _validate(self, job: Job) -> None:
        batch = job.batch
        check = Check(
            batch.endpoint,
            most_lines=self._settings.max_lines,
            longest_bytes=self._longest_line_bytes,
        )
        path = self._files.path(batch.input_file_id)
        await asyncio.to_thread(check_input, path, check, self._longest_line_bytes)
        if check.faults:
            await self._fail(job, check.faults)
        elif not job.is_stopped:
            facts = {"total": check.total, "model": check.model}
            await self._move(job, BatchStatus.IN_PROGRESS, **facts)
        else:
            job.batch = msgspec.structs.replace(job.batch, total=check.total, model=check.model)

    async def _fail(self, job: Job, faults: list[Fault]) -> None:
        """It could not begin: there are no files."""
        job.batch = msgspec.structs.replace(job.batch, faults=tuple(faults))
        await self._end(job, BatchStatus.FAILED, ())

    async def _give_up(self, job: Job, fault: Fault) -> bool:
        """It can't go on: what was answered is written, if that can be done."""
        faults = [*job.batch.faults, fault]
        job.ends_as = BatchStatus.FAILED
        job.batch = msgspec.structs.replace(job.batch, faults=tuple(faults))
        job.stop(BatchStatus.FAILED)
        try:
            await self._finish(job)
        except LlmhostError as error:
            log.error("batch.stuck batch=%s error=%s", job.batch.id, error)
        except Exception:  # boundary: as above
            log.exception("batch.bug batch=%s", job.batch.id)
            await self._end_without_files(job, faults)
        return job.batch.status.is_end

    async def _end_without_files(self, job: Job, faults: list[Fault]) -> None:
        """If that can be done now."""
        try:
            await self._fail(job, faults)
        except LlmhostError as error:
            log.error("batch.stuck batch=%s error=%s", job.batch.id, error)

    # ------------------------------------------------------------ its lines

    async def _work(self, job: Job) -> None:
        """Run all lines that have no result yet, until there are no more or the batch is stopped."""
        if job.is_stopped:
            return
        source = self._source(job, await self._store.done_lines(job.batch.id))
        workers = {
            asyncio.create_task(self._worker(job, source))
            for _ in range(self._settings.max_in_flight_per_batch)
        }
        job.idle = set(workers)
        stopped = asyncio.create_task(job.stopped())
        try:
            everybody = asyncio.gather(*workers)
            # Those that are dropped are not asked how they ended.
            everybody.add_done_callback(lambda done: done.cancelled() or done.exception())
            either: set[asyncio.Future[Any]] = {everybody, stopped}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not everybody.done():
                await self._wind_up(job, workers)
            else:
                everybody.result()
        finally:
            stopped.cancel()
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _wind_up(self, job: Job, workers: set["asyncio.Task[None]"]) -> None:
        """Stopped: lines that run may go on for a while, and the others need not begin."""
        for worker in job.idle:
            worker.cancel()
        busy = workers - job.idle
        if busy:  # at a drain the processor cuts what takes too long
            await asyncio.wait(busy, timeout=None if job.is_draining else self._settings.grace_s)

    async def _worker(self, job: Job, source: Source) -> None:
        me = asyncio.current_task()
        assert me is not None
        while not job.is_stopped and (line := await source.next()) is not None:
            async with self._places:
                await self._pace.begin()
                try:
                    caller = self._may_go_on(job)
                    if caller is None:
                        return
                    job.idle.discard(me)
                    result = await self._lines.run(job, line, caller)
                finally:
                    job.idle.add(me)
                    self._pace.end()
            if result is not None:
                self._count(job, result)

    def _may_go_on(self, job: Job) -> Caller | None:
        """Whom the next line is run as. None, and the batch is stopped, when there is no next one."""
        if self._clock.utc_ns() >= job.batch.expires_at * 10**9:
            job.stop(BatchStatus.EXPIRED)
        if job.is_stopped:
            return None
        try:
            return self._lines.caller_of(job.batch.caller)
        except LlmhostError as error:
            fault = Fault(code=error.code or "invalid_api_key", message=error.message)
            job.batch = msgspec.structs.replace(job.batch, faults=(fault,))
            job.stop(BatchStatus.FAILED)
            return None

    def _count(self, job: Job, result: LineResult) -> None:
        self._metrics.line_ended(is_error=result.is_error)
        tally = job.batch.tally.with_line(
            is_error=result.is_error,
            input_tokens=result.input_tokens,
            cached=result.cached_tokens,
            output=result.output_tokens,
            reasoning=result.reasoning_tokens,
        )
        job.batch = msgspec.structs.replace(job.batch, tally=tally)

    def _source(self, job: Job, done: set[int]) -> Source:
        path = self._files.path(job.batch.input_file_id)
        return Source(path, job.batch.endpoint, self._longest_line_bytes, done)

    # ------------------------------------------------------------ its end

    async def _finish(self, job: Job) -> None:
        """Write the files, and end."""
        batch, end = job.batch, job.ends_as
        await self._booking.catch_up(batch.id)
        job.batch = msgspec.structs.replace(job.batch, tally=await self._tally(batch.id))
        if end is not BatchStatus.CANCELLED:
            await self._move(job, BatchStatus.FINALIZING)
        done = await self._store.done_lines(batch.id)
        if end is BatchStatus.COMPLETED:
            assert len(done) == job.batch.total, (
                f"{len(done)} of {job.batch.total} lines have ended"
            )
        path = self._files.path(batch.input_file_id)
        outputs = Outputs(self._files)
        try:
            left = lines_left(path, batch.endpoint, self._longest_line_bytes, done)
            if end is BatchStatus.COMPLETED or not batch.total or not path.exists():
                left = iter(())
            results = self._store.results(batch.id)
            await asyncio.to_thread(outputs.write, results, left, batch.id, end)
            await self._end(job, end, self._rows(batch, outputs))
        except BaseException:
            await asyncio.to_thread(outputs.discard)
            raise

    def _rows(self, batch: Batch, outputs: Outputs) -> tuple[StoredFile | None, StoredFile | None]:
        owner = Owner(batch.caller.org, batch.caller.team)

        def row(draft: object, suffix: str) -> StoredFile | None:
            if draft is None:
                return None
            return self._files.facts(
                draft,  # type: ignore[arg-type]
                owner,
                purpose="batch_output",
                filename=f"{batch.id}_{suffix}.jsonl",
                lasts_s=batch.output_lasts_s,
            )

        return row(outputs.answers, "output"), row(outputs.errors, "error")

    async def _end(
        self,
        job: Job,
        end: BatchStatus,
        made: tuple[StoredFile | None, StoredFile | None] | tuple[()],
    ) -> None:
        answers, errors = made or (None, None)
        ended = msgspec.structs.replace(
            job.batch.moved(end, self._now_s),
            output_file_id=None if answers is None else answers.id,
            error_file_id=None if errors is None else errors.id,
        )
        files = [file for file in (answers, errors) if file is not None]
        async with job.turn:
            await self._store.end(ended.id, to_record(ended), ended.input_file_id, files)
            job.batch = ended
        self._metrics.batch_ended(end.value)
        log_event(
            log,
            "batch.ended",
            batch=ended.id,
            status=end.value,
            completed=ended.tally.completed,
            failed=ended.tally.failed,
            total=ended.total,
        )

    async def _move(self, job: Job, status: BatchStatus, **facts: object) -> None:
        async with job.turn:  # or a cancel that was told would be written over
            moved = msgspec.structs.replace(job.batch.moved(status, self._now_s), **facts)
            await self._store.update(moved.id, to_record(moved))
            # What was counted meanwhile is counted.
            job.batch = msgspec.structs.replace(moved, tally=job.batch.tally)

    async def _tally(self, batch_id: str) -> Tally:
        counts = await self._store.counts(batch_id)
        return Tally(
            completed=counts.completed,
            failed=counts.failed,
            input_tokens=counts.input_tokens,
            cached_tokens=counts.cached_tokens,
            output_tokens=counts.output_tokens,
            reasoning_tokens=counts.reasoning_tokens,
        )

    async def _forget_lines(self) -> None:
        try:
            await self._store.forget_lines()
        except LlmhostError as error:
            log.warning("batch.lines_not_forgotten error=%s", error)

    @property
    def _now_s(self) -> int:
        return self._clock.utc_ns() // 10**9
