"""An engine whose sequences say what a test tells them to, when it tells them."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from tests.unit.pipeline.node import settled

from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import LlmhostError, Overloaded
from llmhost.core.grammar import GrammarSpec
from llmhost.core.output import Delta, FinishReason, TokenLogprobs, Usage
from llmhost.core.ports import DeltaSink, EngineLoad, Marks, Runner, RunnerFacts, Tokenizer
from llmhost.core.sequence import SequenceSpec
from llmhost.engines.kinds import FakeKind
from llmhost.hooks.spec import hookimpl
from llmhost.testing import FAKE_MODEL, TestHost, make_host
from llmhost.text.words import WordTokenizer


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


class MarkedWords(WordTokenizer):
    """Words of a model that writes calls, or thoughts, as `marks` say."""

    marks: Marks

    def __init__(self, marks: Marks, *, is_thinking: bool = False) -> None:
        super().__init__(4096)
        self.marks = marks
        self._is_thinking = is_thinking
        self.rendered: dict[str, Any] = {}
        """What the last prompt was made of."""

    def begins_with_thoughts(self, prompt: Sequence[int]) -> bool:
        return self._is_thinking

    def compile_grammar(self, spec: GrammarSpec) -> None: ...

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **facts: Any) -> str:
        self.rendered = {"messages": list(messages), **facts}
        return super().render_chat(messages)


@dataclass(frozen=True)
class Spoken(FakeKind):
    """The engine of a model with a tokenizer of the test's. A plugin: `make_host(plugins=[Spoken(words)])`."""

    words: Tokenizer
    name: str = "spoken"

    @hookimpl
    def register_engines(self, register: Callable[[Any], None]) -> None:
        register(self)

    def footprint(self, spec: ModelSpec, folder: Path | None) -> RunnerFacts:
        return super().footprint(self._as_fake(spec), folder)

    def load(self, spec: ModelSpec, folder: Path | None, predicted: RunnerFacts) -> Runner:
        return super().load(self._as_fake(spec), folder, predicted)

    def tokenizer(self, spec: ModelSpec, folder: Path | None) -> Tokenizer:
        return self.words

    def _as_fake(self, spec: ModelSpec) -> ModelSpec:
        return msgspec.structs.replace(FAKE_MODEL, options=spec.options)


@asynccontextmanager
async def scripted_node(
    words: Tokenizer | None = None, **facts: Any
) -> AsyncIterator[tuple[TestHost, ScriptedEngine]]:
    """A node with one model, `m`, that a test speaks for. `facts` are of the model."""
    engine, model = ScriptedEngine(), msgspec.structs.replace(FAKE_MODEL, **facts)
    if words is not None:
        model = msgspec.structs.replace(model, engine="spoken")
    plugins = [] if words is None else [Spoken(words)]
    async with make_host(models={"m": model}, plugins=plugins) as host:
        [deployment] = host.host.deployments.all()
        before = deployment.replicas
        deployment.replicas = (replace(before[0], engine=engine),)
        try:
            yield host, engine
            await settled(host)
        finally:
            deployment.replicas = before
