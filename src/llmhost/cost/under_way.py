"""Requests between their admission and their entry: in the journal, so that neither a killed process nor a full disk
loses what they owe.

A slot is opened when a request is admitted, counts what its caller was given, and is closed when the entry is on
disk. What a process did not live to settle, the next one settles at the last count. An entry that the ledger can't
take now stays in its slot and is tried again.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import msgspec

from llmhost.core.errors import LlmhostError
from llmhost.core.output import Outcome, Usage
from llmhost.cost.ledger import Entry, Ledger, Recorded
from llmhost.cost.pricing import Rates, amount_nano
from llmhost.observe.logs import log_event
from llmhost.storage.connect import StorageFailed
from llmhost.storage.doorbell import Result
from llmhost.storage.journal import Journal, Slot, close_all

log = logging.getLogger("llmhost.ledger")

CRASHED = "process_ended"
"""The `code` of an entry whose process ended before its request did."""
INPUT, OUTPUT = 0, 1
"""Counters of a slot: tokens that were given to the engine, and tokens that the caller was given."""
RETRY_S = 1.0
LINGER_S = 0.035
"""So long entries gather that nobody waits for: each would cost a commit, and all of a moment cost the same."""
FLUSH_S = 2.0
"""A power cut may take from the journal what is younger. A killed process takes nothing."""


class UnderWay(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """What a slot says of a request that runs."""

    request_id: str
    utc_ns: int
    key_id: str | None
    org: str
    team: str | None
    run_id: str | None
    model: str
    adapter: str | None
    price_version: str | None
    rates: Rates | None
    is_embedding: bool = False
    held_nano: int = 0
    """What was held of budgets at first."""
    is_line: bool = False
    """Nobody is given anything of it before it has ended: killed, it is owed for nothing, and run again."""
    is_hit: bool = False
    """It is given an answer that was made before: its prompt is cached input."""


class Unsettled(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """What it says of one that has ended, while the ledger can't take its entry."""

    entry: Entry


Then = Callable[[BaseException | None], None]
"""Told once that an entry can't be lost any more, or why it could not be taken."""

SomeThen = TypeVar("SomeThen", bound=Then)

_NOTHING_OWED = Entry(request_id="", utc_ns=0, key_id=None, org="", model="", outcome="")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(UnderWay | Unsettled).decode


class Settlements:
    """Owns the journal. Used from the event loop's thread, but for `replay`, which comes before it."""

    def __init__(self, ledger: Ledger, journal: Journal) -> None:
        self._ledger = ledger
        self._journal = journal
        self._unsettled: dict[str, tuple[Entry, Slot]] = {}
        self._tried: str | None = None
        """The one of them that the ledger has been given again."""
        self._is_wanted = asyncio.Event()
        self._soon: list[tuple[Entry, Slot]] = []

    @property
    def under_way(self) -> int:
        """Requests that have a slot."""
        return self._journal.open_slots

    @property
    def unsettled(self) -> int:
        """Requests that have ended, and whose entries the ledger could not take yet."""
        return len(self._unsettled)

    def begin(self, request: UnderWay) -> Slot:
        """A slot for a request that is admitted. Raises StorageFailed when there is no room for one."""
        return self._journal.open(_encode(request))

    def reserve(self) -> Slot:
        """A slot that says nothing yet. Raises StorageFailed when there is no room for one."""
        return self._journal.open(b"")

    def secure(self, entry: Entry, slot: Slot) -> None:
        """Say all of an entry that is about to be settled: from here on a kill can't take it."""
        slot.write(_encode(Unsettled(entry=entry)))

    def settle_soon(self, entry: Entry, slot: Slot) -> None:
        """As `settle`, with others of the same moment: of an entry that is in its slot, that moves no money, and that
        nobody waits for."""
        self._soon.append((entry, slot))
        if len(self._soon) == 1:
            asyncio.get_running_loop().call_later(LINGER_S, self.hand_over)

    def hand_over(self) -> None:
        """Give the ledger what was to be settled soon."""
        soon, self._soon = self._soon, []
        if not soon:
            return
        try:
            recorded = self._ledger.settle_all([entry for entry, _ in soon])
        except LlmhostError:
            self._settle_each(soon)
            return
        recorded.add_done_callback(partial(self._all_recorded, soon))

    def _all_recorded(
        self, soon: list[tuple[Entry, Slot]], recorded: "asyncio.Future[None]"
    ) -> None:
        if recorded.exception() is None:
            for _, slot in soon:
                slot.close()
        else:
            self._settle_each(soon)  # those that were recorded are found to be so

    def _settle_each(self, soon: list[tuple[Entry, Slot]]) -> None:
        for entry, slot in soon:
            self.settle(entry, slot).add_done_callback(_look_at)

    def settle(self, entry: Entry, slot: Slot | None) -> "asyncio.Future[None]":
        """Append an entry; done when it can't be lost any more. Without a slot, what the ledger can't take fails."""
        settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.settle_then(entry, slot, partial(tell, settled))
        return settled

    def settle_then(self, entry: Entry, slot: Slot | None, then: Then) -> None:
        """As `settle`, without a future and its turn of the loop. `then` is never called before this returns."""
        try:
            self._ledger.settle_then(entry, partial(self._recorded, entry, slot, then))
        except LlmhostError as error:
            self._refused(entry, slot, then, error)

    def settle_together(
        self,
        entries: Sequence[Entry],
        slots: Sequence[Slot | None],
        thens: Sequence[SomeThen],
        done: Callable[[Sequence[SomeThen]], None],
    ) -> None:
        """As `settle_then` of each, with one wish to the ledger: of those that it takes none is called, and `done` is
        told which they are, in one turn."""
        owed = list(zip(entries, slots, thens, strict=True))
        try:
            self._ledger.settle_together(entries, partial(self._all_told, owed, done))
        except LlmhostError:
            for entry, slot, then in owed:
                self.settle_then(entry, slot, then)  # there may be room for some

    def _all_told(
        self,
        owed: Sequence[tuple[Entry, Slot | None, SomeThen]],
        done: Callable[[Sequence[SomeThen]], None],
        results: Sequence[Result],
        _: BaseException | None,
    ) -> None:
        taken: list[SomeThen] = []
        freed: list[Slot | None] = []
        for (entry, slot, then), (_, failure) in zip(owed, results, strict=True):
            if failure is None:
                freed.append(slot)
                taken.append(then)
            else:
                self._refused(entry, slot, then, failure)
        close_all(freed)
        done(taken)

    def _recorded(
        self,
        entry: Entry,
        slot: Slot | None,
        then: Then,
        recorded: Recorded | None,
        failure: BaseException | None,
    ) -> None:
        if failure is not None:
            self._refused(entry, slot, then, failure)
            return
        if slot is not None:
            slot.close()
        then(None)

    def _refused(self, entry: Entry, slot: Slot | None, then: Then, failure: BaseException) -> None:
        """What the disk or a full queue refuses is kept, and tried again; anything else can't ever be taken."""
        kept: Slot | None = None
        if slot is not None and isinstance(failure, LlmhostError):
            try:
                kept = self._said_anew(slot, Unsettled(entry=entry))
            except ValueError as error:  # no slot has room for all that it says
                failure = error
        if kept is None:
            if slot is not None:
                slot.close()
            asyncio.get_running_loop().call_soon(then, failure)
            return
        self._unsettled[entry.request_id] = entry, kept
        self._is_wanted.set()
        forced = asyncio.ensure_future(asyncio.to_thread(self._journal.flush))
        forced.add_done_callback(lambda done: self._forced(entry, then, done.exception()))

    def _said_anew(self, slot: Slot, said: Unsettled) -> Slot:
        """What a request has from now on instead of its slot. It has one at every moment."""
        note = _encode(said)
        try:
            fresh = self._journal.open(note)
        except (
            StorageFailed
        ):  # the disk is full: what a kill amid this write would take is not worth more
            slot.write(note)
            return slot
        slot.close()
        return fresh

    def _forced(self, entry: Entry, then: Then, failure: BaseException | None) -> None:
        """An entry that is not safe is nobody's money, unless the ledger has it by now or is about to."""
        request_id = entry.request_id
        is_lost = failure is not None and request_id != self._tried
        if is_lost and request_id in self._unsettled:
            self._forget(request_id)
        elif failure is not None:
            failure = None
        then(failure)

    def _forget(self, request_id: str) -> None:
        _, slot = self._unsettled.pop(request_id)
        slot.close()

    async def keep_trying(self) -> None:
        """Settle what could not be settled, once a second, as long as there is any. Runs for ever."""
        while True:
            await self._is_wanted.wait()
            await asyncio.sleep(RETRY_S)
            for request_id in list(self._unsettled):
                if request_id in self._unsettled and not await self._try(request_id):
                    break
            if not self._unsettled:
                self._is_wanted.clear()

    async def _try(self, request_id: str) -> bool:
        """Give the ledger an entry again, and say whether it takes any now."""
        entry, _ = self._unsettled[request_id]
        self._tried = request_id
        try:
            await self._ledger.settle(entry)
        except LlmhostError:
            return False
        except Exception:  # it can't ever be taken, and others wait behind it
            log.exception("ledger.entry_impossible request=%s", request_id)
        else:
            log_event(log, "ledger.settled_late", request=request_id)
        finally:
            self._tried = None
        self._forget(request_id)
        return True

    async def keep_flushing(self) -> None:
        """Force the journal to disk every now and then, as long as anything is under way. Runs for ever."""
        while True:
            await asyncio.sleep(FLUSH_S)
            if self.under_way:
                try:
                    await asyncio.to_thread(self._journal.flush)
                except StorageFailed as error:
                    log.error("ledger.journal_not_forced error=%s", error)

    def replay(self, on_settled: Callable[[Entry], None] = lambda _: None) -> int:
        """Settle what a process before this one left; how many there were. Blocks. Raises StorageFailed."""
        waiting = [(slot, self._ledger.record(entry)) for slot, entry in self._left()]
        count = 0
        for slot, future in waiting:
            try:
                entry = future.result().entry
            except LlmhostError:
                raise
            except Exception:  # it can't ever be taken, and no start could get past it
                log.exception("ledger.entry_impossible")
                slot.close()
                continue
            count += 1
            slot.close()
            on_settled(entry)
            log_event(
                log,
                "ledger.replayed",
                request=entry.request_id,
                output_tokens=entry.output_tokens,
                amount_nano=entry.amount_nano,
            )
        return count

    def _left(self) -> list[tuple[Slot, Entry]]:
        """What was left, ended requests first: of one that was about to be said anew, that is the better known."""
        ended: list[tuple[Slot, Entry]] = []
        running: list[tuple[Slot, Entry]] = []
        for slot, note, counts in self._journal.left_open():
            entry = _entry(note, counts)
            if entry is _NOTHING_OWED:
                slot.close()
            elif entry is None:
                log.error("ledger.journal_unreadable bytes=%d", len(note))
                slot.close()
            else:
                (running if entry.code == CRASHED else ended).append((slot, entry))
        return [*ended, *running]


def _entry(note: bytes, counts: tuple[int, ...]) -> Entry | None:
    """What is owed for a slot. None for a note that another version wrote, and this one can't read."""
    try:
        found = _decode(note)
    except msgspec.MsgspecError:
        return None
    if isinstance(found, Unsettled):
        return found.entry
    if found.is_line:
        return _NOTHING_OWED
    cached = counts[INPUT] if found.is_hit else 0
    usage = Usage(counts[INPUT], cached, counts[OUTPUT])
    return Entry(
        request_id=found.request_id,
        utc_ns=found.utc_ns,
        key_id=found.key_id,
        org=found.org,
        team=found.team,
        model=found.model,
        outcome=Outcome.CANCELLED.value,
        code=CRASHED,
        fresh_input_tokens=0 if found.is_embedding else usage.prompt_tokens - cached,
        cached_input_tokens=cached,
        output_tokens=usage.completion_tokens,
        embedding_tokens=usage.prompt_tokens if found.is_embedding else 0,
        run_id=found.run_id,
        adapter=found.adapter,
        from_cache="hit" if found.is_hit else None,
        price_version=found.price_version,
        amount_nano=amount_nano(found.rates, usage, is_embedding=found.is_embedding),
    )


def tell(settled: "asyncio.Future[None]", failure: BaseException | None) -> None:
    """A `Then` for those who wait for a future."""
    if settled.done():
        return
    if failure is None:
        settled.set_result(None)
    else:
        settled.set_exception(failure)


def _look_at(settled: "asyncio.Future[None]") -> None:
    """Neither the ledger nor the journal's disk could take the entry of an answer that has gone out."""
    if not settled.cancelled() and (failure := settled.exception()) is not None:
        log.error("ledger.unrecorded error=%s", failure)
