"""The answers that lie on disk: diskcache, hardened, behind one small door. Blocks; used from one thread.

diskcache unpickles what it finds, so whoever can write its files could run code in this process. Here nothing is ever
pickled or unpickled: keys are text, values are bytes in the database itself, anything else is refused both ways, and
whatever comes back has to carry a seal that only this node can make. What is damaged is thrown away and made anew.
"""

import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import diskcache
from diskcache.core import MODE_RAW

from llmhost.cache.keys import Keys
from llmhost.core.errors import ConfigError
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.cache")

PRIVATE = 0o700
TIMEOUT_S = 5.0
MOST_REBUILDS = 3
"""A store that is damaged so often in one process is not used any more."""
CULL = 16
"""Most answers that one new one pushes out, when the store is full."""

T = TypeVar("T")


class RefusedPickle(Exception):
    """Something was to be pickled or unpickled."""


class BytesOnly(diskcache.Disk):  # type: ignore[misc] # it has no types
    """Text for keys, bytes for values, and no files beside the database."""

    def put(self, key: Any) -> tuple[Any, bool]:
        if type(key) is not str:
            raise RefusedPickle(f"a key is text, not {type(key).__name__}")
        return super().put(key)  # type: ignore[no-any-return]

    def get(self, key: Any, raw: Any) -> Any:
        if not raw or type(key) is not str:
            raise RefusedPickle("a key that is no text")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, bytes]:
        if type(value) is not bytes:
            raise RefusedPickle(f"a value is bytes, not {type(value).__name__}")
        return 0, MODE_RAW, None, value

    def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> bytes:
        if mode != MODE_RAW or filename is not None or type(value) is not bytes:
            raise RefusedPickle(f"a value of mode {mode}")
        return value

    def filename(self, key: Any = None, value: Any = None) -> tuple[str, str]:
        raise RefusedPickle("a file for a value")


class Disk:
    """Sealed values by key, in files that are made when the first is. Every method comes back, whatever the files hold;
    `is_broken` once they can't be used."""

    def __init__(self, folder: Path, keys: Keys, most_bytes: int) -> None:
        """Raises ConfigError where `folder` is somebody else's."""
        self._folder = folder
        self._keys = keys
        self._most_bytes = most_bytes
        self._cache: Any = None
        self.rebuilds = 0
        self.refused = 0
        """Values without our seal, or that were pickles."""
        self.is_broken = False
        check_private(folder)

    def get(self, key: str) -> bytes | None:
        return self._guarded(lambda cache: self._get(cache, key), None)

    def put(self, key: str, value: bytes, *, expires_s: float, tag: str | None) -> None:
        sealed = self._keys.seal(key, value)
        self._guarded(
            lambda cache: cache.set(key, sealed, expire=expires_s, tag=tag, retry=False), False
        )

    def drop(self, key: str) -> None:
        self._guarded(lambda cache: cache.delete(key), False)

    def drop_tag(self, tag: str) -> int:
        return self._guarded(lambda cache: int(cache.evict(tag)), 0)

    def drop_keys(self, is_meant: Callable[[str], bool]) -> int:
        """Forget every key that is meant; how many they were."""

        def act(cache: Any) -> int:
            meant = [key for key in cache.iterkeys() if is_meant(key)]
            return sum(bool(cache.delete(key)) for key in meant)

        return self._guarded(act, 0)

    def clear(self) -> int:
        return self._guarded(lambda cache: int(cache.clear()), 0)

    def drop_expired(self) -> int:
        return self._guarded(lambda cache: int(cache.expire()), 0)

    def size(self) -> tuple[int, int]:
        """How many answers there are, and bytes of the files."""
        return self._guarded(lambda cache: (len(cache), int(cache.volume())), (0, 0))

    def close(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _get(self, cache: Any, key: str) -> bytes | None:
        try:
            sealed = cache.get(key)
        except RefusedPickle:
            sealed = b""
        if sealed is None:
            return None
        value = self._keys.opened(key, sealed)
        if value is None:
            self.refused += 1
            log_event(log, "cache.refused", level=logging.WARNING, why="not_sealed_by_this_node")
            cache.delete(key)
        return value

    def _guarded(self, act: Callable[[Any], T], otherwise: T) -> T:
        """What `act` makes of the open store; `otherwise` where it is busy, or was damaged and begins anew."""
        if self.is_broken:
            return otherwise
        try:
            if self._cache is None:
                self._cache = self._open()
            return act(self._cache)
        except diskcache.Timeout:
            return otherwise
        except Exception as error:  # noqa: BLE001 - boundary: whatever the files hold, answers can be made again
            self._rebuild(error)
            return otherwise

    def _open(self) -> Any:
        check_private(self._folder)
        self._folder.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        return diskcache.Cache(
            str(self._folder),
            timeout=TIMEOUT_S,
            disk=BytesOnly,
            eviction_policy="least-recently-stored",
            size_limit=self._most_bytes,
            cull_limit=CULL,
            statistics=0,
            tag_index=0,
        )

    def _rebuild(self, error: Exception) -> None:
        self.rebuilds += 1
        why = f"{type(error).__name__}: {error}"
        log_event(log, "cache.rebuilt", level=logging.WARNING, times=self.rebuilds, why=why)
        try:
            self.close()
            check_private(self._folder)
            shutil.rmtree(self._folder)
        except (OSError, ConfigError) as failure:
            why = str(failure)
            self.rebuilds = MOST_REBUILDS
        if self.rebuilds >= MOST_REBUILDS:
            self.is_broken = True
            log_event(log, "cache.disk_off", level=logging.ERROR, why=why)


def check_private(folder: Path) -> None:
    """Have a folder, if it is there, that only this user can look into. Raises ConfigError where it is a link or
    somebody else's."""
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigError(
                f"The cache's folder {folder} is a link or belongs to another user. Remove it: it is made anew."
            )
        if stat.S_IMODE(found.st_mode) != PRIVATE:
            folder.chmod(PRIVATE)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(
            f"The cache's folder {folder} can't be used: {error.strerror}."
        ) from error
