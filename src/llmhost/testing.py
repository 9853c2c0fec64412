"""The public test kit: a whole node in the test's own process; a fake model, a clock that stands still, no network.

    async with make_host(plugins=[night_rates], clock=at("2026-01-10T03:00Z")) as host:
        answer = await host.chat("hello", max_tokens=8)
        assert host.entries()[-1]["amount_nano"] == 1_600

Everything is the real thing (pipeline, scheduler, ledger, HTTP application) but the socket and the model.
"""

import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.money import PriceSettings
from llmhost.config.schema.server import ServerSettings
from llmhost.core.ports import Clock
from llmhost.engines.fake import fake_answer
from llmhost.hooks.registry import Plugins
from llmhost.host.wiring import Host
from llmhost.storage.node import DataDir
from llmhost.text.words import WordTokenizer

FAKE_MODEL = ModelSpec(
    engine="fake",
    price=PriceSettings(input="0.10", cached_input="0.01", output="0.40"),
)
"""What `make_host` serves as `fake` when it is given no models."""


class ManualClock:
    """A clock that stands still until it is told otherwise. Implements the Clock port."""

    def __init__(self, utc: datetime) -> None:
        self._utc_ns = int(utc.timestamp() * 10**9)
        self._monotonic_ns = 0

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def utc_ns(self) -> int:
        return self._utc_ns

    def utc_now(self) -> datetime:
        return datetime.fromtimestamp(self._utc_ns / 1e9, UTC)

    def advance(self, seconds: float) -> None:
        self._utc_ns += int(seconds * 10**9)
        self._monotonic_ns += int(seconds * 10**9)


def at(text: str) -> ManualClock:
    """A clock that stands at an ISO date-time, in UTC unless it says otherwise."""
    moment = datetime.fromisoformat(text)
    return ManualClock(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def fake_words(prompt: str, count: int, vocab: int = 4096) -> str:
    """The text that a fake model answers to a /v1/completions prompt with: what tests compare with."""
    words = WordTokenizer(vocab)
    return words.decode(fake_answer(words.encode(prompt), count, vocab))


def fake_chat_words(messages: list[dict[str, Any]], count: int, vocab: int = 4096) -> str:
    """As `fake_words`, for the messages of a chat."""
    return fake_words(WordTokenizer(vocab).render_chat(messages), count, vocab)


class TestHost:
    """A running node and the calls that tests make. `client` is an httpx client on its HTTP application."""

    __test__ = False  # a helper, whatever its name says to pytest

    def __init__(self, host: Host, client: httpx.AsyncClient) -> None:
        self.host = host
        self.client = client

    async def chat(self, text: str, *, model: str = "fake", **body: Any) -> httpx.Response:
        """One user message to POST /v1/chat/completions; the whole response, whatever its status."""
        messages = [{"role": "user", "content": text}]
        return await self.client.post(
            "/v1/chat/completions", json={"model": model, "messages": messages, **body}
        )

    async def say(self, text: str, *, model: str = "fake", **body: Any) -> str:
        """As `chat`, but the answer's text; raises httpx.HTTPStatusError on any other status than 200."""
        response = await self.chat(text, model=model, **body)
        response.raise_for_status()
        content: str = response.json()["choices"][0]["message"]["content"]
        return content

    def entries(self) -> list[dict[str, Any]]:
        """Every ledger entry, oldest first."""
        return list(self.host.books.ledger.export())

    async def make_key(self, org: str = "acme", **facts: Any) -> str:
        """An API key of an organisation, which is made if need be."""
        keys = self.host.books.keys
        if org not in {known.name for known in keys.list_orgs()}:
            await keys.create_org(org)
        _, token = await keys.create(org=org, **facts)
        return token


@asynccontextmanager
async def make_host(
    *,
    plugins: Iterable[object] = (),
    models: Mapping[str, ModelSpec] | None = None,
    settings: Settings | None = None,
    clock: Clock | None = None,
    data_dir: Path | None = None,
) -> AsyncIterator[TestHost]:
    """A node with loaded models. `settings` brings everything but models; without `data_dir` nothing stays."""
    with tempfile.TemporaryDirectory(prefix="llmhost-test-") as folder:
        wanted = msgspec.structs.replace(
            settings or Settings(server=ServerSettings(drain_timeout_s=5.0)),
            models=dict(models or {"fake": FAKE_MODEL}),
        )
        with DataDir(data_dir or Path(folder)) as data:
            async with Host(wanted, data, plugins=Plugins.of(*plugins), clock=clock) as host:
                await host.start_loading()
                transport = httpx.ASGITransport(app=host.app.asgi)  # type: ignore[arg-type]
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://localhost"
                ) as client:
                    yield TestHost(host, client)
