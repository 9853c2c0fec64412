"""One node over HTTP: every failure is a sentence about it. What is asked there is not known here."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from llmhost.cli.connect import reach
from llmhost.cli.node import Node, NoNode
from llmhost.core.errors import LlmhostError

Row = dict[str, Any]
Asked = str | list[str] | None
"""One value of a query, or the same name several times."""

_CONNECT_S = 5.0
_READ_S = 60.0


class Refused(LlmhostError):
    """The node said no. The message is its own."""


class Http:
    """httpx with our errors: every failure is a sentence about this node."""

    def __init__(
        self, node: Node, token: str | None, cure: str, transport: httpx.BaseTransport | None
    ) -> None:
        if token is not None and not token.isascii():
            raise Refused("A key or token has ASCII characters only.")
        self._url = node.url
        self._cure = cure  # what to do when the token is missing or wrong
        self._client = reach(node.url, node.tls_cert).client(
            transport,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(_READ_S, connect=_CONNECT_S),
        )

    def one(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        query: Mapping[str, Asked] | None = None,
        read_s: float | None = _READ_S,
        **form: Any,
    ) -> Row:
        with self._errors():
            answer = self._client.request(
                method,
                path,
                json=json,
                **form,
                params=given(query or {}),
                timeout=httpx.Timeout(read_s, connect=_CONNECT_S),
            )
        self._check(answer)
        return self._object(answer)

    def many(self, path: str, **query: Asked) -> list[Row]:
        return self._page(path, query)[0]

    def all(self, path: str, **query: Asked) -> list[Row]:
        """All pages of a list."""
        found, after = self._page(path, query)
        while after is not None:
            more, after = self._page(path, {**query, "after": after})
            found += more
        return found

    def _page(self, path: str, query: Mapping[str, Asked]) -> tuple[list[Row], str | None]:
        """A list, and what the next page comes after."""
        with self._errors():
            answer = self._client.get(path, params=given(query))
        self._check(answer)
        content = self._object(answer)
        data = content.get("data")
        if not isinstance(data, list):
            raise self._stranger()
        return data, content.get("last_id") if content.get("has_more") else None

    @contextmanager
    def open(
        self, method: str, path: str, *, json: Any = None, query: Mapping[str, Asked] | None = None
    ) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(None, connect=_CONNECT_S)
        with (
            self._errors(),
            self._client.stream(method, path, json=json, timeout=timeout, params=query) as answer,
        ):
            if answer.is_error:
                answer.read()
            self._check(answer)
            yield answer

    def close(self) -> None:
        self._client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise NoNode(
                f"No llmhost server answers at {self._url}. Start one with `llmhost serve`."
            ) from None
        except httpx.TimeoutException:
            raise NoNode(f"{self._url} did not answer in time.") from None
        except httpx.HTTPError as error:
            raise NoNode(f"The connection to {self._url} broke: {error}.") from None

    def _check(self, answer: httpx.Response) -> None:
        if not answer.is_error:
            return
        try:
            message = message_of(answer.json())
        except ValueError:
            message = None
        message = message or f"{self._url} answered {answer.status_code} {answer.reason_phrase}."
        raise Refused(f"{message} {self._cure}" if answer.status_code == 401 else message)

    def _object(self, answer: httpx.Response) -> Row:
        try:
            content = answer.json()
        except ValueError:
            raise self._stranger() from None
        if not isinstance(content, dict):
            raise self._stranger()
        return content

    def _stranger(self) -> NoNode:
        return NoNode(f"What answers at {self._url} is not an llmhost server.")


def given(query: Mapping[str, Asked]) -> dict[str, str | list[str]]:
    return {key: text for key, text in query.items() if text is not None}


def parsed(text: str) -> Row:
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise Refused("The answer broke off or is not what an llmhost server sends.")
    return content


def message_of(content: Any) -> str | None:
    """From OpenAI's form of an error."""
    error = content.get("error") if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else None
