"""Another way to settle entries, for tests in which the ledger does not take them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmhost.cost.entries import Entry
from llmhost.cost.ledger import Ledger
from llmhost.storage.doorbell import Hear

Settle = Callable[[Entry], "asyncio.Future[Any]"]


def then_by(settle: Settle) -> Callable[[Entry, Hear], None]:
    """The same for those who want no future, and have a function told."""

    def then(entry: Entry, hear: Hear) -> None:
        def told(done: "asyncio.Future[Any]") -> None:
            error = done.exception()
            hear(None if error else done.result(), error)

        settle(entry).add_done_callback(told)

    return then


def settle_by(patch: pytest.MonkeyPatch, ledger: Ledger, settle: Settle) -> None:
    """Have `settle` do what the ledger does."""
    patch.setattr(ledger, "settle", settle)
    patch.setattr(ledger, "settle_then", then_by(settle))
