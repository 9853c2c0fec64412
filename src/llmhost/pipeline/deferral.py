"""A request's end whose booking waits for whoever runs the request to have the answer where it can't be lost.

Elsewhere the ledger comes first and the reader after: who was killed in between has paid for what he can ask for again.
Nobody waits for the line of a batch, and it is run again until its answer is kept; so here the answer comes first.
"""

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from llmhost.core.ids import new_request_id
from llmhost.cost.entries import Entry

Book = Callable[[Entry], "asyncio.Future[None]"]


class Deferral:
    """Takes the entry of one request in place of the ledger. Then it is booked, or dropped, once."""

    def __init__(self) -> None:
        self._entry: Entry | None = None
        self._book: Book | None = None
        self._is_dropped = False

    def take(self, entry: Entry, book: Book) -> None:
        """The request has ended."""
        assert self._entry is None, "a request ends once"
        self._entry, self._book = entry, book
        if self._is_dropped:
            self.drop()

    @property
    def has_entry(self) -> bool:
        """Whether the request got as far as to be metered, and has ended."""
        return self._entry is not None

    @property
    def entry(self) -> Entry:
        assert self._entry is not None, "the request has not ended"
        return self._entry

    def waive(self) -> None:
        """Nobody pays for it: the answer was complete, and could not be given."""
        self._entry = self.entry.unpaid()

    def book(self) -> "asyncio.Future[None]":
        """Have the ledger take it, and the budgets be charged, in this turn; done when it can't be lost."""
        return self._end(self.entry)

    def drop(self) -> None:
        """What was made is thrown away, or will be when the request has ended: it is metered under a name of its own,
        and nobody pays for it. Idempotent, and nothing after `book`."""
        self._is_dropped = True
        if self._book is not None:
            nothing = replace(self.entry.unpaid(), request_id=new_request_id())
            self._end(nothing).add_done_callback(lambda done: done.exception())

    def _end(self, entry: Entry) -> "asyncio.Future[None]":
        book, self._book = self._book, None
        assert book is not None, "it is booked or dropped once"
        return book(entry)
