"""A deployed model as a judge of what others ask and are answered.

Its sequences run in the same scheduler as everybody's, before callers' own, and not through the stages: they are
neither screened, so that no guard is asked about what a guard is asked, nor counted by anybody's limits. What they
took belongs to the request that is judged. Everything happens on the HTTP loop, but for tokenising long texts.
"""

import asyncio
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

from llmhost.core.caller import Caller
from llmhost.core.errors import EngineFailed, LlmhostError
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.ports import Clock
from llmhost.core.request import GenerationRequest
from llmhost.core.sequence import Purpose, SequenceSpec
from llmhost.deploy.deployment import Deployment
from llmhost.deploy.manager import Deployments
from llmhost.deploy.replica import Replica
from llmhost.pipeline.guarding import Asking, Scores, Sitting
from llmhost.pipeline.pacing import PacedEngine
from llmhost.pipeline.route import ready_replica
from llmhost.pipeline.tabs import Bear, Tabs
from llmhost.pipeline.terms import INLINE_CHARS
from llmhost.safety.guards.conversation import (
    USER,
    Conversation,
    alone,
    answered,
    asked_of_messages,
)
from llmhost.safety.verdict import Case, Direction, Finding, GuardUse, Opinion, Tier

PRIORITY = -10
"""Before callers' own sequences, which wait for its verdict."""
BATCHES_AHEAD = 2
"""Full batches of one case that are with the engine at once."""
KNOWN_TEXTS = 20_000
"""Verdicts that are remembered: a conversation brings its beginning again with each request."""
CONTEXT_CHARS = 400
"""Of an answer, a classifier is shown so much of what it has judged before."""


class ModelGuard:
    """Implements Guard with the models of one node."""

    def __init__(self, deployments: Deployments, clock: Clock, tabs: Tabs, bear: Bear) -> None:
        """`tabs` has what judging took until the request is booked, and `bear` what belongs to no request."""
        self._deployments = deployments
        self._clock = clock
        self._tabs = tabs
        self._bear = bear
        self._known = _Known(KNOWN_TEXTS)

    async def judge(self, case: Case, use: GuardUse) -> Opinion:
        """What the model is at least as sure of as the policy asks. Loads it if need be.

        Raises UnknownModel, InvalidValue for a model that is no guard, or why it could not be loaded or run.
        """
        deployment = self._deployments.find(use.model)
        facts = await self._deployments.facts(deployment)
        is_classifier = facts.task == "classify"
        conversations = _conversations(case, is_classifier)
        keys = [_key(case.caller, str(deployment.entry.ref), one) for one in conversations]
        scores = [self._known.get(key) for key in keys]
        new = [i for i, known in enumerate(scores) if known is None]
        usage = Usage()
        if new:
            replica = await ready_replica(deployment)
            judged, usage = await self._judge(
                [conversations[i] for i in new], case, deployment, replica
            )
            device = replica.facts.device
            self._tabs.add(case.request.request_id, len(new), usage, device)
            for i, found in zip(new, judged, strict=True):
                scores[i] = found
                self._known.put(keys[i], found)
        tier = Tier.CLASSIFIER if is_classifier else Tier.GUARD
        return Opinion(tuple(_findings(scores, use, tier)), usage, len(new))

    async def _judge(
        self,
        conversations: Sequence[Conversation],
        case: Case,
        deployment: Deployment,
        replica: Replica,
    ) -> tuple[list[Scores], Usage]:
        asking = Asking(
            deployment.entry.name,
            deployment.entry.spec,
            replica.facts,
            replica.tokenizer,
            replica.plan.max_sequence_length,
        )
        work = partial(asking.sitting, conversations)
        size = sum(len(turn.text) for one in conversations for turn in one)
        sitting = work() if size <= INLINE_CHARS else await asyncio.to_thread(work)
        run = _Run(sitting, case, deployment, replica, self._clock, self._bear)
        deltas = await run.whole()
        return sitting.scores(deltas), run.usage


class _Run:
    """The sequences of one case. Whoever waits and is cancelled has them stopped; what they cost is then nobody's."""

    def __init__(
        self,
        sitting: Sitting,
        case: Case,
        deployment: Deployment,
        replica: Replica,
        clock: Clock,
        bear: Bear,
    ) -> None:
        self.usage = Usage()
        self._sitting = sitting
        self._case = case
        self._entry = deployment.entry
        self._replica = replica
        self._engine = PacedEngine(
            replica.engine, BATCHES_AHEAD * deployment.entry.spec.max_batch_size
        )
        self._now_ns = clock.monotonic_ns()
        self._bear = bear
        self._deltas: dict[int, list[Delta]] = defaultdict(list)
        self._sequences: dict[int, int] = {}
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_left = False

    async def whole(self) -> dict[int, list[Delta]]:
        """All that was said, by the place of the prompt. Raises the first failure."""
        if not self._sitting.prompts:
            return {}
        try:
            for index in range(len(self._sitting.prompts)):
                self._sequences[index] = self._engine.submit(self._spec(index), self._take)
            await self._done
        finally:
            self._leave()
        return self._deltas

    def _take(self, delta: Delta) -> None:
        if self._is_left:
            if delta.usage is not None:
                self._bear(self._replica.facts.device, delta.usage)
            return
        self._deltas[delta.index].append(delta)
        if delta.finish_reason is None:
            return
        self._sequences.pop(delta.index, None)
        self.usage += delta.usage or Usage()
        if delta.finish_reason in (FinishReason.ERROR, FinishReason.CANCELLED):
            self._fail(delta.error or EngineFailed("The guard model's sequence was cut."))
        elif not self._sequences and len(self._deltas) == len(self._sitting.prompts):
            self._settle()

    def _settle(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _fail(self, error: LlmhostError) -> None:
        if not self._done.done():
            self._done.set_exception(error)

    def _leave(self) -> None:
        """Stop what still runs. If it did not end well, all of it is nobody's."""
        is_whole = self._done.done() and not self._done.cancelled() and not self._done.exception()
        if is_whole:
            return
        self._is_left = True
        self._bear(self._replica.facts.device, self.usage)
        for seq_id in self._sequences.values():
            self._engine.cancel(seq_id)

    def _spec(self, index: int) -> SequenceSpec:
        sitting, case = self._sitting, self._case
        poolings = sitting.poolings
        return SequenceSpec(
            request_id=case.request.request_id,
            index=index,
            model=self._entry.ref,
            prompt=sitting.prompts[index],
            sampling=sitting.sampling,
            seed=0,
            max_new_tokens=sitting.max_tokens,
            stop_token_ids=frozenset() if poolings else self._replica.tokenizer.eos_ids,
            pooling=poolings[index] if poolings else None,
            priority=PRIORITY,
            arrival_ns=self._now_ns,
            tenant=case.caller.org,
            cache_scope=f"guard\0{case.caller.org}",
            purpose=Purpose.GUARD,
        )


class _Known:
    """Verdicts of texts that came before, the latest used first to stay. It keeps digests, and no text."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._scores: OrderedDict[bytes, Scores] = OrderedDict()

    def get(self, key: bytes) -> Scores | None:
        scores = self._scores.get(key)
        if scores is not None:
            self._scores.move_to_end(key)
        return scores

    def put(self, key: bytes, scores: Scores) -> None:
        self._scores[key] = scores
        if len(self._scores) > self._most:
            self._scores.popitem(last=False)


def _key(caller: Caller, model: str, conversation: Conversation) -> bytes:
    """Of one organisation alone: how fast a verdict comes tells nobody what others asked."""
    digest = blake2b(digest_size=16)
    for part in (caller.org, model, *(p for turn in conversation for p in (turn.role, turn.text))):
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


def _conversations(case: Case, is_classifier: bool) -> list[Conversation]:
    """What there is to judge: of a prompt every text that the caller wrote, of an answer what is new in it."""
    request = case.request
    if case.direction is Direction.OUTPUT:
        if is_classifier:
            return [alone(case.answer[max(case.judged_chars - CONTEXT_CHARS, 0) :])]
        messages, is_continued = _messages(request), request.continue_final_message
        return [answered(messages, case.answer, is_continued=is_continued)]
    if is_classifier or not request.kind.is_chat:
        return [alone(text) for text in dict.fromkeys(request.texts) if text.strip()]
    return [*asked_of_messages(request.messages), *_beside(request)]


def _beside(request: GenerationRequest) -> list[Conversation]:
    """Texts of a chat that are in no message: tools, variables of the template, the form of the answer."""
    bare = GenerationRequest(
        request_id=request.request_id,
        kind=request.kind,
        model=request.model,
        tools=request.tools,
        grammar=request.grammar,
        questions=request.questions,
        template_kwargs=request.template_kwargs,
    )
    return [alone(text) for text in bare.texts if text.strip()]


def _messages(request: GenerationRequest) -> list[dict[str, object]]:
    if request.kind.is_chat:
        return list(request.messages)
    return [{"role": USER, "content": text} for text in request.texts]


def _findings(scores: Sequence[Scores | None], use: GuardUse, tier: Tier) -> list[Finding]:
    highest: dict[str, float] = {}
    for found in scores:
        for category, score in (found or {}).items():
            highest[category] = max(highest.get(category, 0.0), score)
    return [
        Finding(category, f"guard:{use.model}", tier, score)
        for category, score in sorted(highest.items(), key=lambda item: -item[1])
        if score >= use.threshold
    ]
