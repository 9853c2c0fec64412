"""Stored chats with the real client, and what a killed process leaves of them."""

from collections.abc import Callable
from typing import Any

import pytest
from openai import NotFoundError, OpenAI
from server_process import Node

SETTINGS = "[models.echo]\nengine = 'fake'\n"


def test_stored_chats_outlive_a_process_that_is_killed(
    new_node: Callable[..., Node], client_of: Callable[[Node, str], OpenAI]
) -> None:
    node = new_node(SETTINGS).start()
    asked: Any = {
        "model": "echo",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "max_tokens": 4,
        "store": True,
    }
    client = client_of(node, "any")
    whole = client.chat.completions.create(**asked, metadata={"how": "whole"})
    pieces = list(client.chat.completions.create(**asked, metadata={"how": "piece"}, stream=True))
    node.kill()
    node.start()
    client = client_of(node, "any")

    found = client.chat.completions.retrieve(whole.id)
    assert found.choices == whole.choices
    assert found.usage == whole.usage
    assert [chat.id for chat in client.chat.completions.list()] == [whole.id, pieces[0].id]
    (streamed,) = client.chat.completions.list(metadata={"how": "piece"}).data
    assert streamed.choices == whole.choices
    (message,) = client.chat.completions.messages.list(whole.id).data
    assert (message.content, message.content_parts[0].text) == ("hello", "hello")
    changed = client.chat.completions.update(whole.id, metadata={"how": "new"})
    assert changed.model_dump()["metadata"] == {"how": "new"}
    pages = [chat.id for chat in client.chat.completions.list(limit=1, order="desc")]
    assert pages == [pieces[0].id, whole.id]
    assert client.chat.completions.delete(whole.id).deleted
    with pytest.raises(NotFoundError):
        client.chat.completions.retrieve(whole.id)
