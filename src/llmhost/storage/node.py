"""The data directory: who may use it, who this node is, and how commands find the running server.

The lock is the kernel's, so a killed process leaves nothing that must be cleared by hand. `server.json` may outlive
its process; whoever reads it checks.
"""

import fcntl
import os
import secrets
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import psutil

from llmhost.core.errors import AlreadyRunning, ConfigError
from llmhost.core.ids import new_node_id

_SAME_START_S = 2.0
"""Process start times read by two programs agree to within this; a reused pid's does not."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process that holds a data directory, as written in its lock file."""

    pid: int
    started_s: float
    """When the process began, in seconds since 1970, as the kernel has it."""
    url: str | None = None


class ServerInfo(Holder, frozen=True, kw_only=True, omit_defaults=True):
    """`server.json`: how to reach the running server, and the token that its admin routes want."""

    admin_token: str
    tls_cert: str | None = None
    """File with its certificate, where it speaks TLS."""


class DataDir:
    """A folder with mode 0700 that one process at a time may own. Making it takes no lock.

    Raises ConfigError when the folder can't be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The data directory {self.path} can't be made: {error.strerror}."
                " Choose another with --data-dir."
            ) from error
        self._lock_fd: int | None = None

    @property
    def money_db(self) -> Path:
        """Keys, prices and the ledger; every commit is forced to disk."""
        return self.path / "money.db"

    @property
    def journal(self) -> Path:
        """Requests under way, for the process that comes after one that was killed."""
        return self.path / "under_way.journal"

    @property
    def analytics_db(self) -> Path:
        """What can be lost for a moment of power cut: one row per request, and roll-ups."""
        return self.path / "analytics.db"

    @property
    def answers_db(self) -> Path:
        """Answers to requests with an Idempotency-Key, for a day or as long as settings say."""
        return self.path / "answers.db"

    @property
    def state_db(self) -> Path:
        """What callers have the server keep: responses, conversations and the like."""
        return self.path / "state.db"

    @property
    def reviews_db(self) -> Path:
        """Texts that humans are to decide on, and what they decided; every commit is forced to disk."""
        return self.path / "reviews.db"

    @property
    def audit_db(self) -> Path:
        """Who did what, what was screened, and the policies of organisations; every commit is forced to disk."""
        return self.path / "audit.db"

    @property
    def audit_head(self) -> Path:
        """Where the audit log ended when its last row was written."""
        return self.path / "audit.head"

    @property
    def learnt_db(self) -> Path:
        """What the cache has learnt; it can be learnt anew."""
        return self.path / "learnt.db"

    @property
    def registry_db(self) -> Path:
        """Models and what became of them."""
        return self.path / "registry.db"

    @cached_property
    def node_id(self) -> str:
        """This node's name in every durable row; made once."""
        return _kept(self.path / "node_id", lambda: new_node_id().encode()).decode()

    @cached_property
    def pepper(self) -> bytes:
        """The secret under which API keys are hashed; made once. Without it no stored key can be recognised."""
        return bytes.fromhex(
            _kept(self.path / "pepper", lambda: secrets.token_hex(32).encode()).decode()
        )

    @cached_property
    def statement_secret(self) -> bytes:
        """The secret key that statements are signed with; made once. Whoever has it can sign in this node's name."""
        return bytes.fromhex(
            _kept(self.path / "statement_key", lambda: secrets.token_hex(32).encode()).decode()
        )

    @cached_property
    def state_secret(self) -> bytes:
        """The secret key of what callers carry for us, encrypted; made once. Without it none of that can be read."""
        return bytes.fromhex(
            _kept(self.path / "state_key", lambda: secrets.token_hex(32).encode()).decode()
        )

    @cached_property
    def review_secret(self) -> bytes:
        """The secret key of the texts in `reviews_db`; made once. No backup has it: there, they can't be read."""
        return bytes.fromhex(
            _kept(self.path / "review_key", lambda: secrets.token_hex(32).encode()).decode()
        )

    @cached_property
    def webhook_secret(self) -> bytes:
        """The secret under which webhooks are signed; made once. Whoever has it can write in this node's name."""
        return bytes.fromhex(
            _kept(self.path / "webhook_key", lambda: secrets.token_hex(32).encode()).decode()
        )

    @cached_property
    def audit_key(self) -> bytes:
        """The secret under which rows of the audit log are chained; made once. Whoever has it can write another log."""
        return bytes.fromhex(
            _kept(self.path / "audit_key", lambda: secrets.token_hex(32).encode()).decode()
        )

    @cached_property
    def audit_text_secret(self) -> bytes:
        """The secret key of prompts in `audit_db`; made once. No backup has it: there, they can't be read."""
        return bytes.fromhex(
            _kept(self.path / "audit_text_key", lambda: secrets.token_hex(32).encode()).decode()
        )

    @property
    def cache(self) -> Path:
        """Answers that are kept for whoever asks again. Can be deleted while no node runs."""
        return self.path / "cache"

    @cached_property
    def cache_secret(self) -> bytes:
        """The secret of the cache's keys and seals; made once. Without it nothing that is kept there is found again."""
        return bytes.fromhex(
            _kept(self.path / "cache_key", lambda: secrets.token_hex(32).encode()).decode()
        )

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Own the directory until `release` or the end of the process.

        Raises AlreadyRunning, which names the holder, or ConfigError when the directory can't be written.
        """
        path = self.path / "lock"
        try:
            lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(
                f"The data directory {self.path} can't be written: {error.strerror}."
                " Choose another with --data-dir."
            ) from error
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            raise AlreadyRunning(
                f"The data directory {self.path} is in use by {_describe(path)}."
                " Stop that process, or choose another directory with --data-dir."
            ) from None
        self._lock_fd = lock_fd
        self._sign(url=None)

    def announce(self, *, url: str, admin_token: str, tls_cert: str | None = None) -> None:
        """Let commands on this machine find the server. Only the owner of the lock may."""
        self._sign(url=url)
        me = _myself()
        info = ServerInfo(
            pid=me.pid,
            started_s=me.started_s,
            url=url,
            admin_token=admin_token,
            tls_cert=tls_cert,
        )
        _replace(self.path / "server.json", msgspec.json.encode(info))

    def release(self) -> None:
        """Withdraw the announcement and let another process in. Idempotent."""
        if self._lock_fd is None:
            return
        (self.path / "server.json").unlink(missing_ok=True)
        os.ftruncate(
            self._lock_fd, 0
        )  # the file stays: deleting it would let two processes lock two files
        os.close(self._lock_fd)
        self._lock_fd = None

    def _sign(self, *, url: str | None) -> None:
        if self._lock_fd is None:
            raise RuntimeError(f"{self.path} is not locked by this object")
        me = _myself()
        note = msgspec.json.encode(Holder(pid=me.pid, started_s=me.started_s, url=url))
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, note, 0)


def read_server(path: Path) -> ServerInfo | None:
    """The server that runs on a data directory, or None when there is none or it has died without a goodbye."""
    try:
        info = msgspec.json.decode(
            (path.expanduser() / "server.json").read_bytes(), type=ServerInfo
        )
    except (OSError, msgspec.DecodeError):
        return None
    return info if _is_alive(info) else None


def _myself() -> Holder:
    process = psutil.Process()
    return Holder(pid=process.pid, started_s=process.create_time())


def _is_alive(holder: Holder) -> bool:
    try:
        process = psutil.Process(holder.pid)
        is_same = abs(float(process.create_time()) - holder.started_s) < _SAME_START_S
        return is_same and str(process.status()) != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _describe(lock: Path) -> str:
    try:
        holder = msgspec.json.decode(lock.read_bytes(), type=Holder)
        command = " ".join(psutil.Process(holder.pid).cmdline())
    except (OSError, msgspec.DecodeError, psutil.Error):
        return "another process"
    where = f" at {holder.url}" if holder.url else ""
    return f"process {holder.pid} ({command}){where}"


def _kept(path: Path, make: Callable[[], bytes]) -> bytes:
    """A small secret or name that is made once and then stays, whoever comes first."""
    if not path.exists():
        draft = _draft(path, make())
        try:
            os.link(
                draft, path
            )  # unlike a rename, never over one that another process made meanwhile
            _force(path.parent)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_bytes().strip()


def _replace(path: Path, content: bytes) -> None:
    """All of the new content or all of the old, never half, even after a power cut."""
    _draft(path, content).rename(path)
    _force(path.parent)


def _draft(path: Path, content: bytes) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return draft


def _force(folder: Path) -> None:
    """A new name in a folder is safe only once the folder itself is on disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
