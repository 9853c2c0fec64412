"""Another way to settle entries, for tests in which the ledger does not take them."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from llmhost.cost.entries import Entry
from llmhost.cost.ledger import Ledger
from llmhost.storage.doorbell import Hear, HearAll, Result

Settle = Callable[[Entry], "asyncio.Future[Any]"]


def then_by(settle: Settle) -> Callable[[Entry, Hear], None]:
    """The same for those who want no future, and have a function told."""

    def then(entry: Entry, hear: Hear) -> None:
        def told(done: "asyncio.Future[Any]") -> None:
            error = done.exception()
            hear(None if error else done.result(), error)

        settle(entry).add_done_callback(told)

    return then


def together_by(settle: Settle) -> Callable[[Sequence[Entry], HearAll], None]:
    """The same of several at once, of which one function is told."""

    def together(entries: Sequence[Entry], hear: HearAll) -> None:
        def told(done: "asyncio.Future[list[Any]]") -> None:
            hear([_result(found) for found in done.result()], None)

        every = asyncio.gather(*map(settle, entries), return_exceptions=True)
        every.add_done_callback(told)

    return together


def _result(found: Any) -> Result:
    return (None, found) if isinstance(found, Exception) else (found, None)


def settle_by(patch: pytest.MonkeyPatch, ledger: Ledger, settle: Settle) -> None:
    """Have `settle` do what the ledger does."""
    patch.setattr(ledger, "settle", settle)
    patch.setattr(ledger, "settle_then", then_by(settle))
    patch.setattr(ledger, "settle_together", together_by(settle))
