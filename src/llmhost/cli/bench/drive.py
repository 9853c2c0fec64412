"""Runs a load against an endpoint, in an open or a closed loop, on one event loop of its own."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import httpx
import msgspec

from llmhost.cli.bench.answer import ask
from llmhost.cli.bench.figures import Record, percentile
from llmhost.cli.bench.workload import Ask, Workload, arrivals, asks
from llmhost.cli.connect import reach

LAG_PROBE_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to ask, and how."""

    url: str
    model: str
    api_key: str | None = None
    is_chat: bool = False
    ignore_eos: bool = False
    temperature: float | None = None
    timeout_s: float = 600.0
    tls_cert: str | None = None
    """As of `cli.node.Node`."""

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def body(self, asked: Ask) -> bytes:
        """The request as it goes over the wire."""
        content: dict[str, Any] = {
            "model": self.model,
            "max_tokens": asked.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.is_chat:
            content["messages"] = [{"role": "user", "content": asked.prompt}]
        else:
            content["prompt"] = asked.prompt
        if self.temperature is not None:
            content["temperature"] = self.temperature
        if self.ignore_eos:
            content["ignore_eos"] = True
        return msgspec.json.encode(content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast requests come. `rate` makes an open loop, `concurrency` a closed one."""

    rate: float | None = None
    burstiness: float = 1.0
    concurrency: int = 1
    requests: int | None = None
    duration_s: float = math.inf
    """No request begins after this."""


@dataclass(slots=True)
class Run:
    """What happened."""

    records: list[Record] = field(default_factory=list)
    is_interrupted: bool = False
    seconds: float = 0.0
    cpu_s: float = 0.0
    """CPU time of this client."""
    lags_s: list[float] = field(default_factory=list)
    """By how much the client's event loop was late."""

    @property
    def cpu_share(self) -> float:
        """Of one core."""
        return self.cpu_s / self.seconds if self.seconds else 0.0

    @property
    def lag_p99_ms(self) -> float:
        return 1e3 * percentile(sorted(self.lags_s), 99) if self.lags_s else 0.0


Watch = Callable[[list[Record]], None]
"""Told of all records so far, a few times a second."""


def drive(target: Target, work: Workload, pace: Pace, watch: Watch | None = None) -> Run:
    """Run the whole load. After Ctrl-C, what was measured so far: running requests are cut."""
    return asyncio.run(_Driver(target, work, pace, watch).drive())


def warm_up(target: Target, work: Workload, requests: int) -> list[Record]:
    """Requests of their own, all at once, before the measured ones."""
    driver = _Driver(target, work, Pace(requests=requests, concurrency=requests), None, "warm-up")
    run = asyncio.run(driver.drive())
    if run.is_interrupted:
        raise KeyboardInterrupt
    return run.records


class _Driver:
    def __init__(
        self, target: Target, work: Workload, pace: Pace, watch: Watch | None, part: str = "run"
    ) -> None:
        self._target = target
        self._pace = pace
        self._watch = watch
        self._seed = work.seed
        self._asks: Iterator[Ask] = islice(asks(work, part), pace.requests)
        self._run = Run()
        self._began = 0.0

    async def drive(self) -> Run:
        run, cpu = self._run, time.process_time()
        async with _client(self._target) as client:
            self._began = time.perf_counter()
            aside = [asyncio.create_task(self._probe())]
            try:
                if self._pace.rate is None:
                    await self._closed_loop(client)
                else:
                    await self._open_loop(client, self._pace.rate)
            except asyncio.CancelledError:  # Ctrl-C: what was measured still counts
                run.is_interrupted = True
                for record in run.records:
                    record.was_cut = record.ended_s is None
            run.seconds, run.cpu_s = self._now(), time.process_time() - cpu
            for task in aside:
                task.cancel()
        return run

    def _now(self) -> float:
        return time.perf_counter() - self._began

    async def _closed_loop(self, client: httpx.AsyncClient) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self._pace.concurrency):
                group.create_task(self._worker(client))

    async def _worker(self, client: httpx.AsyncClient) -> None:
        for asked in self._asks:
            if self._now() >= self._pace.duration_s:
                return
            await self._ask(client, asked, self._now())

    async def _open_loop(self, client: httpx.AsyncClient, rate: float) -> None:
        due = arrivals(rate, self._pace.burstiness, self._seed)
        async with asyncio.TaskGroup() as group:
            for asked, due_s in zip(self._asks, due, strict=False):
                if due_s >= self._pace.duration_s:
                    return
                await asyncio.sleep(due_s - self._now())
                group.create_task(self._ask(client, asked, due_s))

    async def _ask(self, client: httpx.AsyncClient, asked: Ask, due_s: float) -> None:
        body = self._target.body(asked)
        record = Record(number=asked.number, due_s=due_s, sent_s=self._now())
        self._run.records.append(record)
        await ask(client, self._target.path, body, record, self._now)

    async def _probe(self) -> None:
        """Measure how late this loop wakes, and let somebody watch."""
        shown = 0.0
        while True:
            before = self._now()
            await asyncio.sleep(LAG_PROBE_S)
            now = self._now()
            self._run.lags_s.append(now - before - LAG_PROBE_S)
            if self._watch is not None and now - shown > 0.2:
                shown = now
                self._watch(self._run.records)


def _client(target: Target) -> httpx.AsyncClient:
    headers = {"content-type": "application/json"}
    if target.api_key:
        headers["authorization"] = f"Bearer {target.api_key}"
    return reach(target.url, target.tls_cert).async_client(
        httpx.Limits(max_connections=None, max_keepalive_connections=None),
        headers=headers,
        timeout=httpx.Timeout(target.timeout_s),
    )
