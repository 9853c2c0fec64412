"""The books of a node that isn't running, for the command line: the same acts, straight on the data dir."""

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from llmhost.api.admin import Admin, NewKey, NewOrg, plugin_rows
from llmhost.config.load import LoadedSettings
from llmhost.hooks.registry import Plugins
from llmhost.host.books import open_books
from llmhost.observe.clock import SystemClock
from llmhost.storage.node import DataDir

T = TypeVar("T")


class OfflineAdmin:
    """Owns the data dir until closed, so that no node can start in between. Raises AlreadyRunning."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = DataDir(data_dir)
        self._data_dir.acquire()
        self._runner = asyncio.Runner()
        self._closing = AsyncExitStack()
        try:
            books = open_books(self._data_dir, SystemClock(), self._closing)
        except BaseException:
            self.close()
            raise
        self._admin = Admin(books.keys, books.ledger, Plugins(), None)

    def create_org(self, name: str) -> dict[str, Any]:
        return self._run(self._admin.create_org(NewOrg(name=name)))

    def orgs(self) -> list[dict[str, Any]]:
        return self._admin.list_orgs()

    def create_key(self, **facts: Any) -> dict[str, Any]:
        return self._run(self._admin.create_key(NewKey(**facts), utc_ns=time.time_ns()))

    def keys(self, *, org: str | None = None) -> list[dict[str, Any]]:
        return self._admin.list_keys(org, utc_ns=time.time_ns())

    def revoke_key(self, key_id: str) -> dict[str, Any]:
        return self._run(self._admin.revoke_key(key_id, utc_ns=time.time_ns()))

    def usage(
        self, *, by: str, since: datetime | None = None, until: datetime | None = None
    ) -> list[dict[str, Any]]:
        return self._admin.usage(by, _utc_ns(since), _utc_ns(until))

    def verify_ledger(self) -> dict[str, Any]:
        return self._admin.verify_ledger()

    def export_ledger(self) -> Iterator[dict[str, Any]]:
        return self._admin.export_ledger()

    def close(self) -> None:
        """Commit what is queued and let others in. Idempotent."""
        self._run(self._closing.aclose())
        self._runner.close()
        self._data_dir.release()

    def _run(self, act: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(act)


def list_plugins(loaded: LoadedSettings) -> list[dict[str, Any]]:
    """The plugins that a node with these settings would load. Raises ConfigError for one that is broken."""
    plugins = Plugins.load(loaded.settings.plugins, folder=loaded.plugins_dir)
    try:
        return plugin_rows(plugins)
    finally:
        plugins.close()


def _utc_ns(at: datetime | None) -> int | None:
    if at is None:
        return None
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 10**9)
