"""A loaded model put to work: its engine loop started, and asked for a first token."""

import asyncio
import logging
from collections.abc import Callable

from llmhost.core.errors import EngineFailed, LlmhostError, ModelUnavailable
from llmhost.core.ids import new_request_id
from llmhost.core.output import Delta
from llmhost.core.ports import Clock, Drafter, Lane, Runner, Tokenizer
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling, Purpose, SequenceSpec
from llmhost.core.step import StepResult
from llmhost.deploy.catalogue import ModelEntry
from llmhost.deploy.memory_plan import MemoryPlan
from llmhost.observe.logs import log_event
from llmhost.schedule.engine_loop import EngineLoop
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.scheduler import Scheduler
from llmhost.schedule.speculation import Speculation

log = logging.getLogger("llmhost.deploy")

PROBE_PROMPT = "Hello"
PROBE_TIMEOUT_S = 120.0


def start_engine(
    entry: ModelEntry,
    runner: Runner,
    plan: MemoryPlan,
    *,
    tokenizer: Tokenizer,
    drafter: Drafter | None,
    lane: Lane,
    clock: Clock,
    on_step: Callable[[StepResult], None],
    on_broken: Callable[[LlmhostError], None],
) -> EngineLoop:
    """Its loop, which runs, and closes `runner` when it is stopped."""
    limits = SchedulerLimits(
        max_batch_size=entry.spec.max_batch_size,
        max_tokens_per_batch=entry.spec.max_tokens_per_batch,
        max_sequence_length=plan.max_sequence_length,
        kv_blocks=plan.kv_blocks,
        block_tokens=runner.facts.block_tokens,
        target_itl_ms=entry.spec.target_itl_ms,
        least_chunk_tokens=runner.facts.least_chunk_tokens,
        rows_at_once=runner.facts.rows_at_once,
        prefix_cache=entry.spec.prefix_cache,
        host_kv_blocks=plan.host_kv_blocks,
    )
    engine = EngineLoop(
        str(entry.ref),
        runner,
        Scheduler(limits),
        tokenizer=tokenizer,
        lane=lane,
        max_queue=entry.spec.max_queue,
        on_step=on_step,
        on_broken=on_broken,
        now_ns=clock.monotonic_ns,
        guesser=_guesser(entry, runner, drafter),
        step_timeout_s=entry.spec.step_timeout_s,
    )
    engine.start()
    return engine


async def probe(
    entry: ModelEntry, engine: EngineLoop, tokenizer: Tokenizer, *, task: str, clock: Clock
) -> None:
    """One token, or vector, for a validation prompt: a model that can't do that is not put into service."""
    ended: asyncio.Future[Delta] = asyncio.get_running_loop().create_future()

    def sink(delta: Delta) -> None:
        if delta.finish_reason is not None and not ended.done():
            ended.set_result(delta)

    engine.submit(
        SequenceSpec(
            request_id=new_request_id(),
            index=0,
            model=entry.ref,
            prompt=tuple(tokenizer.encode(PROBE_PROMPT)),
            sampling=Sampling(temperature=0.0),
            seed=0,
            max_new_tokens=1,
            arrival_ns=clock.monotonic_ns(),
            pooling=None if task == "generate" else Pooling(task),
            purpose=Purpose.PROBE,
        ),
        sink,
    )
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            delta = await ended
    except TimeoutError:
        raise EngineFailed(
            f"The model {entry.ref} gave no token within {PROBE_TIMEOUT_S:.0f} s."
        ) from None
    if delta.error is not None:
        raise ModelUnavailable(
            f"The model {entry.ref} failed its first token: {delta.error.message}"
        ) from delta.error


def _guesser(entry: ModelEntry, runner: Runner, drafter: Drafter | None) -> Guesser | None:
    if drafter is None:
        return None
    if not runner.facts.checks_drafts:
        drafter.close()
        if entry.spec.speculation.method != "auto":
            why = "what runs this model can't check guesses"
            log_event(log, "speculation.off", model=str(entry.ref), why=why)
        return None
    settings = entry.spec.speculation
    return Guesser(
        drafter,
        Speculation(most_tokens=settings.max_tokens, most_sequences=settings.max_sequences),
    )
