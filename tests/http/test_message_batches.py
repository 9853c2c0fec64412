"""Anthropic's batches with Anthropic's own client, in its strict mode, against a server process that is killed."""

from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, DefaultHttpxClient
from anthropic.types.messages import MessageBatch
from server_process import Node, eventually

SETTINGS = """
[models.echo]
engine = "fake"
[models.echo.price]
input = "1.00"
output = "2.00"
[models.echo.options]
token_delay_ms = 10
"""


def client_of(node: Node) -> Anthropic:
    return Anthropic(
        base_url=node.url,
        api_key="any",
        max_retries=0,
        http_client=DefaultHttpxClient(),
        _strict_response_validation=True,
    )


def requests(count: int) -> list[Any]:
    said = {"model": "echo", "max_tokens": 8}
    return [
        {
            "custom_id": f"id-{n}",
            "params": {**said, "messages": [{"role": "user", "content": f"hello {n}"}]},
        }
        for n in range(count)
    ]


def ended(client: Anthropic, batch: MessageBatch) -> MessageBatch:
    return eventually(
        lambda: (
            now
            if (now := client.messages.batches.retrieve(batch.id)).processing_status == "ended"
            else None
        ),
        "the batch did not end",
    )


def test_a_batch_that_a_kill_interrupts_ends_with_each_message_once_at_half_the_price(
    tmp_path: Path,
) -> None:
    node = Node(tmp_path, SETTINGS).start()
    try:
        with client_of(node) as client:
            batch = client.messages.batches.create(requests=requests(60))
            assert batch.processing_status == "in_progress"
            eventually(lambda: node.metric("llmhost_batch_lines_total") or 0, "no line ended")
        node.kill()
        node.start()
        with client_of(node) as client:
            done = ended(client, batch)
            assert (done.request_counts.succeeded, done.request_counts.errored) == (60, 0)
            found = {
                each.custom_id: each.result for each in client.messages.batches.results(done.id)
            }
            assert found.keys() == {f"id-{n}" for n in range(60)}
            assert {each.type for each in found.values()} == {"succeeded"}
            assert client.messages.batches.list(limit=1).data[0].id == done.id
            assert client.beta.messages.batches.retrieve(done.id).processing_status == "ended"
            with pytest.raises(anthropic.NotFoundError):
                client.messages.batches.retrieve("msgbatch_none")
            assert client.messages.batches.delete(done.id).type == "message_batch_deleted"
        entries = [each for each in node.entries() if each["outcome"] == "answered"]
        assert len(entries) == len({each["request_id"] for each in entries}) == 60
        for entry in entries:
            tokens = entry["tokens"]
            assert entry["amount_nano"] == 500 * tokens["fresh_input"] + 1000 * tokens["output"]
    finally:
        node.close()
