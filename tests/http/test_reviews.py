"""Reviewers at work on a real server that is killed amid it."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from reviewers import Crowd, check, prepare
from server_process import Node, chat_body

SETTINGS = """
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


def test_eight_reviewers_decide_each_text_once_though_the_server_is_killed(
    new_node: Callable[..., Node],
) -> None:
    node = new_node(SETTINGS)
    keys, ids = prepare(node.data_dir, reviewers=8, texts=40)
    node.start()
    crowd = Crowd(node, keys)

    crowd.work(kill_at=(12,))

    check(crowd, ids)
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
