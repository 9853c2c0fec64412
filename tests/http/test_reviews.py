"""Reviewers at work on a real server that is killed amid it."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from reviewers import Crowd, check, prepare
from server_process import Node, chat_body, eventually

SETTINGS = """
[reviews]
webhook = "{url}"
webhook_private = true
[safety]
blocked_words = ["forbidden"]
review = ["words"]
[models.echo]
engine = "fake"
"""


@dataclass
class Asking:
    """The holder of a key, of whichever process serves now."""

    node: Node
    key: str

    def chat(self) -> httpx.Response:
        body = chat_body("a forbidden word", max_tokens=2)
        return self.node.post("/v1/chat/completions", body, headers=self._headers)

    def get(self, path: str) -> httpx.Response:
        return self.node.get(path, headers=self._headers)

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


@contextmanager
def taking() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that takes webhooks: its URL, and review and type of each event."""
    told: list[tuple[str, str]] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["content-length"])))
            told.append((event["data"]["id"], event["type"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", told
    finally:
        server.shutdown()
        server.server_close()


def test_eight_reviewers_decide_each_text_once_though_the_server_is_killed(
    new_node: Callable[..., Node],
) -> None:
    with taking() as (url, told):
        node = new_node(SETTINGS.format(url=url))
        keys, ids = prepare(node.data_dir, reviewers=8, texts=40)
        node.start()
        crowd = Crowd(node, keys)

        crowd.work(kill_at=(12,))

        check(crowd, ids)
        eventually(lambda: {name for name, _ in told} >= {*ids}, "not all ends were told")
        assert {kind for _, kind in told} <= {"review.approved", "review.rejected"}
    assert node.metric("llmhost_reviews_open") == 0
    shown = node.cli("reviews", "show", ids[0])
    assert "text 0" in shown.stdout
    assert node.cli("reviews", "claim").returncode == 1

    asked = Asking(node, node.create_key("acme")["key"])
    refused = asked.chat()
    review_id = re.search(r"review_\w+", refused.text)[0]  # type: ignore[index]
    assert refused.status_code == 400
    assert "is approved" in node.cli("reviews", "decide", review_id, "approve").stdout
    node.kill()
    node.start()
    assert asked.chat().status_code == 200
    assert asked.get(f"/v1/reviews/{review_id}").json()["status"] == "approved"
