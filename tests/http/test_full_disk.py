"""A disk that is full for a while: requests are refused, nothing that was answered is lost, and nobody has to help."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from server_process import Node, chat_body, eventually

MODELS = (
    '[models.echo]\nengine = "fake"\nprice = { output = "1" }\n'
    "[models.echo.options]\ntoken_delay_ms = 5\n"
)


@contextmanager
def no_file_grows(node: Node) -> Iterator[None]:
    """As if the node's disk were full: the log of its ledger has no byte more."""
    size = (node.data_dir / "money.db-wal").stat().st_size
    before = resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, before)


def test_what_was_answered_while_the_disk_was_full_is_in_the_ledger_afterwards(
    new_node: Callable[..., Node],
) -> None:
    node = new_node(MODELS).start()
    answered = [node.chat(max_tokens=2)]
    path = f"{node.url}/v1/chat/completions"
    with (
        no_file_grows(node),
        node.http.stream("POST", path, json=chat_body(max_tokens=60, stream=True)) as running,
    ):
        whole = running.read()
        refused = eventually(
            lambda: (found := node.chat(max_tokens=2)).status_code != 200 and found, "taken"
        )
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_is_overloaded"
        assert refused.headers["retry-after"] == "1"
        assert "storage.failed" in node.log()
        ready = node.get("/ready")
        assert (ready.status_code, node.get("/health").status_code) == (503, 200)
        assert "ledger" in ready.json()["error"]["message"]
    assert whole.endswith(b"data: [DONE]\n\n"), "it had begun before, and is settled later"

    answered.append(running)
    taken = eventually(lambda: (found := node.chat(max_tokens=2)).is_success and found, "refused")
    answered.append(taken)
    eventually(lambda: "storage.recovered" in node.log(), "nothing recovered")
    assert node.is_ready()
    for answer in answered:
        assert node.entry(answer.headers["x-request-id"])["outcome"] == "answered"
    assert node.verified()["ok"]
