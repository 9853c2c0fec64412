"""The short way of a real server: what it answers is paid for once, whenever the process is killed."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from typing import Any

import openai
import pytest
from server_process import Node

SETTINGS = """
[cache]
price_factor = "0.5"
[models.echo]
engine = "fake"
[models.echo.price]
input = "1"
output = "2"
"""
SAY = [{"role": "user", "content": "hello there"}]
WORDS: dict[str, Any] = {"model": "echo", "messages": SAY, "max_tokens": 5, "temperature": 0}
AT_ONCE, EACH = 4, 25


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("repeats"), SETTINGS).start()
    yield node
    node.close()


def ask(client: openai.OpenAI, wish: str = "on") -> tuple[str, str, str | None]:
    """The id of a request, what it cost, and how it met the cache."""
    raw = client.chat.completions.with_raw_response.create(
        **WORDS, extra_headers={"x-llmhost-cache": wish}
    )
    headers = raw.headers
    return headers["x-request-id"], headers["x-llmhost-cost-usd"], headers.get("x-llmhost-cache")


@pytest.mark.parametrize(("org", "wish"), [("acme", "on"), ("runs", "off")])
def test_what_was_answered_before_a_kill_is_in_the_ledger_once(
    node: Node, org: str, wish: str
) -> None:
    node.admin("POST", "/orgs", {"name": org}).raise_for_status()
    key = str(node.create_key(org)["key"])
    answers: list[tuple[str, str, str | None]] = []
    turn = Lock()

    def work(_: int) -> None:
        client = openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0)
        with client, suppress(openai.APIConnectionError):
            for _ in range(EACH):
                answer = ask(client, wish)
                with turn:
                    answers.append(answer)
                    is_half = len(answers) == AT_ONCE * EACH // 2
                if is_half:
                    node.kill()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(work, range(AT_ONCE)))
    node.start()

    entries = {entry["request_id"]: entry for entry in node.entries()}
    counts = Counter(entry["request_id"] for entry in node.entries())
    assert len(answers) >= AT_ONCE * EACH // 2
    for request_id, cost, met in answers:
        entry = entries[request_id]
        assert counts[request_id] == 1
        assert entry["outcome"] == "answered"
        assert entry["amount_nano"] == round(float(cost) * 10**9)
        assert (entry["price_version"].startswith("echo+cache")) is (met in ("hit", "joined"))
    usual = "hit" if wish == "on" else "bypass"
    assert sum(met == usual for _, _, met in answers) > AT_ONCE * EACH // 3
    assert node.verified()["ok"] is True


def test_a_file_that_is_gone_is_gone_for_what_was_answered_before_too(node: Node) -> None:
    key = str(node.create_key("acme")["key"])
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as client:
        name = client.files.create(file=("a.txt", b"milk"), purpose="user_data").id
        part: Any = {"type": "file", "file": {"file_id": name}}
        body: Any = {**WORDS, "messages": [{"role": "user", "content": [part]}]}

        def said() -> str | None:
            headers = {"x-llmhost-cache": "on"}
            answer = client.chat.completions.create(**body, extra_headers=headers)
            return answer.choices[0].message.content

        assert said() == said() == said()
        client.files.delete(name)
        with pytest.raises(openai.NotFoundError):
            said()
