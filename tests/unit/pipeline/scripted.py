"""An engine whose sequences say what a test tells them to, when it tells them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from tests.unit.pipeline.node import settled

from llmhost.core.errors import LlmhostError, Overloaded
from llmhost.core.output import Delta, FinishReason, TokenLogprobs, Usage
from llmhost.core.ports import DeltaSink, EngineLoad
from llmhost.core.request import SequenceSpec
from llmhost.testing import FAKE_MODEL, TestHost, make_host


class ScriptedEngine:
    """Implements the EngineClient port. Sequences are named by their choice's index."""

    def __init__(self) -> None:
        self.specs: dict[int, SequenceSpec] = {}
        self.most = 10**6
        """More than so many sequences are refused."""
        self.cancelled: list[int] = []
        self.allowed: list[tuple[int, int, bool]] = []
        """Of which sequence how many tokens were paid for, and whether that was all."""
        self._sinks: dict[int, DeltaSink] = {}
        self._said: dict[int, int] = {}

    @property
    def live(self) -> int:
        return len(self._sinks)

    def submit(self, spec: SequenceSpec, sink: DeltaSink) -> int:
        if len(self.specs) >= self.most:
            raise Overloaded("full", retry_after_s=1)
        self.specs[spec.index], self._sinks[spec.index] = spec, sink
        return spec.index

    def cancel(self, seq_id: int) -> None:
        if seq_id in self._sinks:
            self.cancelled.append(seq_id)
            self.end(seq_id, FinishReason.CANCELLED)

    def allow(self, seq_id: int, held_tokens: int, *, is_final: bool = False) -> None:
        if seq_id in self._sinks:
            self.allowed.append((seq_id, held_tokens, is_final))

    def say(self, index: int, text: str, logprob: float = -1.0) -> None:
        """One token."""
        self._said[index] = self._said.get(index, 0) + 1
        self._sinks[index](Delta(index, text, (7,), logprobs=(TokenLogprobs(7, logprob, 1),)))

    def tell(self, index: int, *of_prompt: TokenLogprobs) -> None:
        self._sinks[index](Delta(index, prompt_logprobs=of_prompt))

    def end(
        self,
        index: int,
        reason: FinishReason = FinishReason.STOP,
        error: LlmhostError | None = None,
    ) -> None:
        usage = Usage(len(self.specs[index].prompt), 0, self._said.get(index, 0), 5)
        self._sinks.pop(index)(Delta(index, finish_reason=reason, usage=usage, error=error))

    def load(self) -> EngineLoad:
        return EngineLoad(running=self.live)

    def resize_kv(self, blocks: int) -> None: ...

    async def stop(self, *, drain_s: float = 0.0) -> None: ...


@asynccontextmanager
async def scripted_node() -> AsyncIterator[tuple[TestHost, ScriptedEngine]]:
    """A node with one model, `m`, that a test speaks for."""
    engine = ScriptedEngine()
    async with make_host(models={"m": FAKE_MODEL}) as host:
        [deployment] = host.host.deployments.all()
        before = deployment.replicas
        deployment.replicas = (replace(before[0], engine=engine),)
        try:
            yield host, engine
            await settled(host)
        finally:
            deployment.replicas = before
