"""What tests of batches ask of a whole node."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmhost.testing import TestHost

WAIT_S = 60.0
"""Longer than anything here takes, on a busy machine too."""
CHAT = "/v1/chat/completions"


def line(number: int, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"model": "fake", "max_tokens": 4, **body}
    if url == CHAT:
        asked.setdefault("messages", [{"role": "user", "content": f"hello {number}"}])
    return {"custom_id": f"id-{number}", "method": "POST", "url": url, "body": asked}


def text(lines: Sequence[Any]) -> bytes:
    return b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines
    )


def bearing(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


async def upload(
    host: TestHost, content: bytes, key: str | None = None, **fields: str
) -> dict[str, Any]:
    answer = await host.client.post(
        "/v1/files",
        files={"file": ("in.jsonl", content)},
        data={"purpose": "batch", **fields},
        headers=bearing(key),
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def begin(
    host: TestHost, lines: Sequence[Any], key: str | None = None, **body: Any
) -> dict[str, Any]:
    """A batch over these lines, as it is answered."""
    file = await upload(host, text(lines), key)
    asked = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h", **body}
    headers = bearing(key)
    answer = await host.client.post("/v1/batches", json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ended(host: TestHost, batch: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
    """The same batch once it has ended."""
    runner = host.host.deferred.runner
    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(task for task in runner._tasks if batch["id"] in task.get_name()))
    answer = await host.client.get(f"/v1/batches/{batch['id']}", headers=bearing(key))
    found: dict[str, Any] = answer.json()
    return found


async def lines_of(
    host: TestHost, file_id: str | None, key: str | None = None
) -> list[dict[str, Any]]:
    """A file's lines; none of a file that was not made."""
    if file_id is None:
        return []
    answer = await host.client.get(f"/v1/files/{file_id}/content", headers=bearing(key))
    assert answer.status_code == 200, answer.text
    return [json.loads(each) for each in answer.text.splitlines()]
