"""Where a model's files are. The hub is a small server on loopback that speaks as much of its language as is needed."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from llmhost.core.errors import ModelUnavailable
from llmhost.deploy.sources import find_files, find_local, fingerprint

COMMIT = "a" * 40


@pytest.mark.parametrize("source", ["builtin:nothing", "builtin:../fake", "builtin:"])
def test_a_built_in_model_that_does_not_exist_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable):
        find_local(source, tmp_path)


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert find_files(str(tmp_path), tmp_path / "models") == tmp_path


def test_a_missing_folder_is_refused_with_what_a_source_may_be(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="A source is builtin:NAME, a folder, or hf:"):
        find_files(str(tmp_path / "nowhere"), tmp_path)


def test_a_folder_in_the_home_directory_may_be_written_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()

    assert find_local("~/model", tmp_path) == tmp_path / "model"


def test_a_hub_model_is_not_here_before_all_of_it_has_arrived(tmp_path: Path) -> None:
    folder = tmp_path / "org--name" / "main"
    folder.mkdir(parents=True)
    assert find_local("hf:org/name", tmp_path) is None
    (folder / ".llmhost-complete").touch()

    assert find_local("hf:org/name", tmp_path) == folder
    assert find_local("hf:org/name@v2", tmp_path) is None


def test_revisions_of_a_hub_model_do_not_share_a_folder(tmp_path: Path) -> None:
    for revision in ("main", "v2"):
        folder = tmp_path / "org--name" / revision
        folder.mkdir(parents=True)
        (folder / ".llmhost-complete").touch()

    assert find_local("hf:org/name", tmp_path) != find_local("hf:org/name@v2", tmp_path)


def test_a_fingerprint_sees_names_and_contents_and_not_the_order_or_the_place(
    tmp_path: Path,
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for name in ("a.json", "b.json"):
        (tmp_path / "one" / name).write_text(name)
    for name in ("b.json", "a.json"):
        (tmp_path / "two" / name).write_text(name)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "a.json").rename(tmp_path / "two" / "c.json")

    assert fingerprint(tmp_path / "one") != fingerprint(tmp_path / "two")


# -- a hub on loopback ----------------------------------------------------------------------------------------------

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 300_000,
    "pytorch_model.bin": b"\x80pickle",
    "modeling.py": b"print('no')",
}


@dataclass
class Hub:
    """A repository of four files. `cut` breaks a file's next transfer off after so many bytes, `broken` refuses it."""

    url: str = ""
    cut: dict[str, int] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def listing(self) -> bytes:
        siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
        return json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()

    def tree(self) -> bytes:
        return json.dumps(
            [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                for name, data in FILES.items()
            ]
        ).encode()


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer(send_body=False)

    def do_GET(self) -> None:
        self._answer(send_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return

    def _answer(self, *, send_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/name"):
            body = self.server.hub.tree() if "/tree/" in path else self.server.hub.listing()
            self._send(200, body, {"Content-Type": "application/json"}, send_body)
            return
        name = path.rpartition("/")[2]
        if "/resolve/" not in path or name not in FILES:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, send_body)
            return
        if name in self.server.hub.broken:
            self._send(403, b"", {}, send_body)
            return
        if send_body:
            self.server.hub.asked.append(f"{name} {self.headers.get('Range', 'all')}")
        self._file(name, FILES[name], send_body)

    def _file(self, name: str, data: bytes, send_body: bool) -> None:
        first = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        headers = {
            "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        limit = self.server.hub.cut.pop(name, None) if send_body else None
        self._send(206 if first else 200, data[first:], headers, send_body, limit)

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        send_body: bool,
        limit: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send_body:
            self.wfile.write(body[:limit])
        self.close_connection = self.close_connection or limit is not None


@contextmanager
def serving(hub: Hub) -> Iterator[None]:
    server = HubServer(hub)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    with serving(hub):
        point_to(monkeypatch, hub.url)
        yield hub


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The client library reads its settings when it is imported."""
    real: Callable[..., str] = huggingface_hub.snapshot_download

    def snapshot_download(*args: object, **kwargs: object) -> str:
        return real(*args, **kwargs, endpoint=url)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)


def test_a_fetch_brings_weights_and_settings_and_no_pickles_or_programs(
    hub: Hub, tmp_path: Path
) -> None:
    folder = find_files("hf:org/name", tmp_path)

    assert folder == tmp_path / "org--name" / "main"
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert {p.name for p in folder.iterdir() if p.is_file() and p.name[0] != "."} == {
        "config.json",
        "model.safetensors",
    }
    assert not [asked for asked in hub.asked if "bin" in asked or ".py" in asked]


def test_what_has_been_fetched_is_used_again_without_a_network(hub: Hub, tmp_path: Path) -> None:
    first = find_files("hf:org/name", tmp_path)
    hub.asked.clear()

    assert find_files("hf:org/name", tmp_path) == first
    assert hub.asked == []


def test_a_repository_that_does_not_exist_says_so(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="Could not fetch 'org/none' from the hub: "):
        find_files("hf:org/none", tmp_path)
    assert find_local("hf:org/none", tmp_path) is None


def test_a_hub_that_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Hub()
    with serving(gone):
        pass
    point_to(monkeypatch, gone.url)

    with pytest.raises(ModelUnavailable, match="Could not fetch 'org/name' from the hub: "):
        find_files("hf:org/name", tmp_path)


@pytest.mark.parametrize("error", [OSError(), ValueError(""), RuntimeError("odd"), OSError("\n")])
def test_an_error_of_any_kind_while_fetching_says_what_could_not_be_fetched(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)

    with pytest.raises(ModelUnavailable, match="Could not fetch 'org/name' from the hub: "):
        find_files("hf:org/name", tmp_path)


def test_a_fetch_that_was_cut_off_is_taken_up_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut["model.safetensors"] = 100_000
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    folder = find_files("hf:org/name", tmp_path)

    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert [asked for asked in hub.asked if asked.startswith("model.safetensors")] == [
        "model.safetensors all",
        "model.safetensors bytes=100000-",
    ]


def test_a_fetch_that_failed_half_way_is_not_taken_for_a_model_and_goes_on_next_time(
    hub: Hub, tmp_path: Path
) -> None:
    hub.broken.add("model.safetensors")
    with pytest.raises(ModelUnavailable):
        find_files("hf:org/name", tmp_path)
    assert find_local("hf:org/name", tmp_path) is None
    hub.broken.clear()
    folder = find_files("hf:org/name", tmp_path)

    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hub.asked.count("config.json all") == 1
