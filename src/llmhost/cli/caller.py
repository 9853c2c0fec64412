"""A running node as any OpenAI client sees it: chat, files and batches of one key."""

from collections.abc import Generator, Iterable, Iterator
from typing import IO
from urllib.parse import quote

import httpx

from llmhost.cli.http import Http, Refused, Row, message_of, parsed
from llmhost.cli.node import Node

_CURE = "Give --api-key or set LLMHOST_API_KEY; `llmhost keys create` makes a key."


class ChatClient:
    """Chat completions of one node."""

    def __init__(
        self, node: Node, api_key: str | None, transport: httpx.BaseTransport | None = None
    ) -> None:
        """The node's admin token is not sent."""
        self._http = Http(node, api_key, _CURE, transport)

    def models(self) -> list[str]:
        return [row["id"] for row in self._http.many("/v1/models")]

    def complete(self, body: Row) -> Row:
        return self._http.one("POST", "/v1/chat/completions", json=body, read_s=None)

    def stream(self, body: Row) -> Generator[Row, None, None]:
        """The chunks of a streamed answer. Closing the iterator hangs up, which stops the model."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self._http.open("POST", "/v1/chat/completions", json=body) as answer:
            for text in server_sent_data(answer.iter_lines()):
                if text == "[DONE]":
                    return
                chunk = parsed(text)
                if "error" in chunk:
                    raise Refused(message_of(chunk) or "The answer failed.")
                yield chunk
            raise Refused("The answer broke off: the server closed the connection.")

    def upload(self, name: str, content: IO[bytes], purpose: str) -> Row:
        return self._http.one(
            "POST",
            "/v1/files",
            read_s=None,
            files={"file": (name, content)},
            data={"purpose": purpose},
        )

    def download(self, file_id: str) -> Iterator[bytes]:
        path = f"/v1/files/{quote(file_id, safe='')}/content"
        with self._http.open("GET", path) as answer:
            yield from answer.iter_bytes()

    def create_batch(self, body: Row) -> Row:
        return self._http.one("POST", "/v1/batches", json=body)

    def close(self) -> None:
        self._http.close()


def server_sent_data(lines: Iterable[str]) -> Iterator[str]:
    """The `data` of each event in a text/event-stream. Comments and other fields are skipped."""
    parts: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            parts.append(line[5:].removeprefix(" "))
        elif not line and parts:
            yield "\n".join(parts)
            parts = []
