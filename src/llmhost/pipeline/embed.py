"""A deployed model that makes vectors, for what the cache has to find: not through the stages, like a guard.

What a text took belongs to the request that it is of, or to nobody.
"""

import asyncio
from typing import Any, cast

import numpy as np

from llmhost.cache.alike import Vector, unit
from llmhost.core.caller import Caller
from llmhost.core.errors import EngineFailed, InvalidValue
from llmhost.core.output import Delta, FinishReason, Usage
from llmhost.core.ports import Clock, EngineClient
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling, Purpose, SequenceSpec
from llmhost.deploy.manager import Deployments
from llmhost.deploy.replica import Replica
from llmhost.pipeline.route import ready_replica
from llmhost.pipeline.tabs import Bear, Tabs
from llmhost.pipeline.terms import INLINE_CHARS

PRIORITY = -5
"""Before callers' own sequences, one of which waits for it; after guards."""

_ENDED_BADLY = (FinishReason.ERROR, FinishReason.CANCELLED)


class Embedder:
    """The models of one node. On the HTTP loop, but for tokenising long texts."""

    def __init__(self, deployments: Deployments, clock: Clock, tabs: Tabs, bear: Bear) -> None:
        self._deployments = deployments
        self._clock = clock
        self._tabs = tabs
        self._bear = bear

    def ref(self, model: str) -> str:
        """Its `name@version`."""
        return str(self._deployments.find(model).entry.ref)

    async def mark(self, model: str) -> str:
        """Its name, version and files: vectors of others can't be compared with its."""
        deployment = self._deployments.find(model)
        return f"{deployment.entry.ref} {await self._deployments.mark(deployment, None)}"

    async def vector(self, text: str, model: str, caller: Caller, request_id: str | None) -> Vector:
        """Of length 1. Loads the model if need be. What it takes is the request's, or the operator's without one.

        Raises InvalidValue for a model or a text that no vector can be made with, or why it could not be run.
        """
        deployment = self._deployments.find(model)
        if (await self._deployments.facts(deployment)).task != "embed":
            raise InvalidValue(f"The model {model!r} makes no embeddings.", param="model")
        replica = await ready_replica(deployment)
        ids = await _ids(text, replica)
        spec = SequenceSpec(
            request_id=request_id or "",
            index=0,
            model=deployment.entry.ref,
            prompt=ids,
            sampling=Sampling(),
            seed=0,
            max_new_tokens=0,
            pooling=Pooling("embed"),
            priority=PRIORITY,
            arrival_ns=self._clock.monotonic_ns(),
            tenant=caller.org,
            purpose=Purpose.EMBED,
        )
        device = replica.facts.device
        [*_, last], usage = await sequence_of(replica.engine, spec, self._bear, device)
        # Its tokens are not the request's, which are what its caller pays for.
        usage = Usage(engine_ns=usage.engine_ns, cost_nano=usage.cost_nano)
        if request_id is None:
            self._bear(device, usage)
        else:
            self._tabs.add_embedding(request_id, usage, device)
        assert last.pooled is not None
        return unit(np.frombuffer(cast(Any, last.pooled), np.float32))


async def sequence_of(
    engine: EngineClient, spec: SequenceSpec, bear: Bear, device: str
) -> tuple[list[Delta], Usage]:
    """All that one sequence says, and what it took. Raises why it failed; then, and when whoever waits is cancelled, it
    is stopped and `bear` has what it took."""
    deltas: list[Delta] = []
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(delta: Delta) -> None:
        deltas.append(delta)
        if delta.finish_reason is None:
            return
        is_bad = delta.finish_reason in _ENDED_BADLY
        if (is_bad or done.done()) and delta.usage is not None:
            bear(device, delta.usage)
        if done.done():
            return
        if is_bad:
            done.set_exception(delta.error or EngineFailed("The sequence was cut."))
        else:
            done.set_result(None)

    seq_id = engine.submit(spec, take)
    try:
        await done
    except asyncio.CancelledError:
        engine.cancel(seq_id)
        if done.done() and not done.cancelled() and done.exception() is None:
            bear(device, deltas[-1].usage or Usage())  # it ended in the very turn
        raise
    return deltas, deltas[-1].usage or Usage()


async def _ids(text: str, replica: Replica) -> tuple[int, ...]:
    def encode() -> list[int]:
        return replica.tokenizer.encode_whole(text)[0]

    ids = encode() if len(text) <= INLINE_CHARS else await asyncio.to_thread(encode)
    if not 0 < len(ids) <= replica.plan.max_sequence_length:
        raise InvalidValue("The text is too long for a vector.", param="messages")
    return tuple(ids)
