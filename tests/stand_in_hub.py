"""A hub on loopback that speaks as much of Hugging Face's language as a download needs, and breaks when told to.

Large files are answered with a redirect to another host, as the real one does, and that host must never be shown a
token.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LARGE_BYTES = 2000
"""From this size on a file is kept as the hub keeps weights: known by its SHA-256, and sent by another host."""

PIECE_BYTES = 10_000


@dataclass
class Repository:
    """Commits of files, and what branches and tags point to. `readers` are the tokens of a gated repository."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    readers: set[str] | None = None
    is_private: bool = False

    def commit(self, files: Mapping[str, bytes], revision: str = "main") -> str:
        """A new commit, at which a branch or tag points from now on."""
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.revisions[revision] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.revisions.get(revision)


@dataclass
class Hub:
    """Repositories by name, faults by file name, and what was asked for."""

    url: str = ""
    store_url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    """Each next transfer of a file breaks off after so many bytes."""
    corrupt: Counter[str] = field(default_factory=Counter)
    """So many next transfers of a file have a wrong byte."""
    refuse: dict[str, list[int]] = field(default_factory=dict)
    """Statuses with which the next requests for a file are answered."""
    hold_after: dict[str, int] = field(default_factory=dict)
    """A file's transfers wait after so many bytes until `released`."""
    released: threading.Event = field(default_factory=threading.Event)
    ignores_ranges: bool = False
    lists_names_only: bool = False
    asked: list[str] = field(default_factory=list)
    """`NAME all` or `NAME bytes=N-` for each transfer."""
    leaks: list[str] = field(default_factory=list)
    """Requests that showed a token to the host that sends large files."""

    def add(self, name: str, files: Mapping[str, bytes], **facts: Any) -> Repository:
        self.repositories[name] = repository = Repository(**facts)
        repository.commit(files)
        return repository

    def add_folder(self, name: str, folder: Path) -> Repository:
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.add(name, files)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, *_: object) -> None:
        """Clients that are killed hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        return

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if known := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._listing(known[1], known[2] or "main")
        elif known := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(known[1], known[2], known[3])
        elif known := re.fullmatch(r"/stored/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._send_large(known[1], known[2], known[3])
        else:
            self._refuse(404, "EntryNotFound")

    # ------------------------------------------------------------ what the hub says

    def _listing(self, name: str, revision: str) -> None:
        repository = self._readable(name)
        if repository is None:
            return
        sha = repository.find(revision)
        if sha is None:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = [self._sibling(*each) for each in repository.commits[sha].items()]
        body = {"id": name, "sha": sha, "siblings": siblings, "gated": bool(repository.readers)}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _sibling(self, path: str, data: bytes) -> dict[str, Any]:
        if self.server.hub.lists_names_only:
            return {"rfilename": path}
        facts: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_hash(data)}
        if len(data) >= LARGE_BYTES:
            facts["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
        return facts

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._readable(name)
        if repository is None:
            return
        if repository.readers is not None and self._token() not in repository.readers:
            self._refuse(403 if self._token() else 401, "GatedRepo")
            return
        sha = repository.find(revision)
        data = repository.commits.get(sha or "", {}).get(path)
        if data is None:
            self._refuse(404, "EntryNotFound" if sha else "RevisionNotFound")
            return
        headers = {"X-Repo-Commit": str(sha), "ETag": f'"{git_hash(data)}"'}
        if len(data) < LARGE_BYTES:
            self._transfer(path, data, headers)
            return
        headers["Location"] = f"{self.server.hub.store_url}/stored/{name}/{sha}/{path}"
        headers |= {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        self._send(302, b"", headers)

    def _send_large(self, name: str, sha: str, path: str) -> None:
        if self._token() is not None:
            self.server.hub.leaks.append(path)
        data = self.server.hub.repositories[name].commits[sha][path]
        self._transfer(path, data, {"ETag": '"made up by the other host"'})

    def _readable(self, name: str) -> Repository | None:
        repository = self.server.hub.repositories.get(name)
        if repository is not None and not (repository.is_private and self._token() is None):
            return repository
        self._refuse(404 if self._token() else 401, "RepoNotFound")
        return None

    def _token(self) -> str | None:
        authorization = self.headers.get("Authorization")
        return None if authorization is None else authorization.removeprefix("Bearer ")

    # ------------------------------------------------------------ how it is sent

    def _transfer(self, path: str, data: bytes, headers: dict[str, str]) -> None:
        hub = self.server.hub
        if self.command == "GET":
            hub.asked.append(f"{path} {self.headers.get('Range', 'all')}")
            if statuses := hub.refuse.get(path):
                self._refuse(statuses.pop(0), None)
                return
            if hub.corrupt[path] > 0:
                hub.corrupt[path] -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
        asked = None if hub.ignores_ranges else self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        headers["Accept-Ranges"] = "bytes"
        if asked and first >= len(data):
            self._refuse(416, None)
            return
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._send(206 if asked else 200, data[first:], headers, path)

    def _refuse(self, status: int, code: str | None) -> None:
        self._send(status, b"", {} if code is None else {"X-Error-Code": code})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], path: str | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.server.hub.cut.get(path or "")
        limit = cuts.pop(0) if cuts else None
        self._write(body[:limit], self.server.hub.hold_after.get(path or ""))
        self.close_connection = self.close_connection or limit is not None

    def _write(self, body: bytes, hold_after: int | None) -> None:
        for start in range(0, len(body), PIECE_BYTES):
            if hold_after is not None and start >= hold_after:
                self.server.hub.released.wait(30)
            self.wfile.write(body[start : start + PIECE_BYTES])


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub, whose `url` is known from then on."""
    with _running(hub) as hub.url, _running(hub) as store_url:
        hub.store_url = store_url.replace(
            "127.0.0.1", "localhost"
        )  # ports alone make no other host
        try:
            yield hub
        finally:
            hub.released.set()


@contextmanager
def _running(hub: Hub) -> Iterator[str]:
    server = _Server(hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What HF_ENDPOINT does for a new process: the client library reads it when it is imported."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)  # no token of whoever runs the tests


def settings(hub: Hub) -> dict[str, str]:
    """Variables that let a process use this hub and no token or cache of whoever runs the tests."""
    return {"HF_ENDPOINT": hub.url, "HF_HOME": "/nonexistent", "HF_TOKEN": ""}
