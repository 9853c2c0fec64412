"""The acts behind a deployment: fetch, check that it fits, load, probe, unload. Each measures what it took; how a
model sleeps is told in `sleepers`.

Order matters: the footprint is read from headers and the memory leased before a single weight is read, so a model
that can't fit is refused at once with the numbers and takes nothing else down.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from llmhost.core.errors import (
    ConfigError,
    EngineFailed,
    LlmhostError,
    ModelUnavailable,
)
from llmhost.core.ids import new_request_id
from llmhost.core.output import Delta
from llmhost.core.ports import Clock, Drafter, Runner, RunnerFacts, Tokenizer
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling, Purpose, SequenceSpec
from llmhost.core.step import StepResult
from llmhost.cost.attribution import TrueCosts
from llmhost.cost.rates import NodeRates
from llmhost.deploy.adapters import AdapterShelf
from llmhost.deploy.catalogue import ModelEntry, Served
from llmhost.deploy.drafts import check_same_words, draft_entry, draft_holder
from llmhost.deploy.memory_plan import MemoryPlan, plan_memory
from llmhost.deploy.off_loop import OffLoop
from llmhost.deploy.registry import mark_of
from llmhost.deploy.replica import Replica
from llmhost.deploy.sleepers import HOST, Sleepers
from llmhost.deploy.sources import find_files, mark_of_read, presence
from llmhost.engines.kinds import EngineKind
from llmhost.gpu.devices import Devices
from llmhost.observe.logs import log_event
from llmhost.schedule.draft_model import ModelDrafter
from llmhost.schedule.drafting import PromptLookup
from llmhost.schedule.engine_loop import EngineLoop
from llmhost.schedule.guesser import Guesser
from llmhost.schedule.limits import SchedulerLimits
from llmhost.schedule.predicted import WithPredictions
from llmhost.schedule.scheduler import Scheduler
from llmhost.schedule.speculation import Speculation

log = logging.getLogger("llmhost.deploy")

PROBE_PROMPT = "Hello"
PROBE_TIMEOUT_S = 120.0

T = TypeVar("T")

StepObserverFor = Callable[[str], Callable[[StepResult], None]]


class LoadEffects:
    """Loads models onto the devices of this node."""

    def __init__(
        self,
        *,
        kinds: Mapping[str, EngineKind],
        devices: Devices,
        models_dir: Path,
        clock: Clock,
        observe_steps: StepObserverFor,
        costs: TrueCosts | None = None,
    ) -> None:
        self._kinds = kinds
        self._devices = devices
        self._models_dir = models_dir
        self._clock = clock
        self._observe_steps = observe_steps
        self._costs = costs or TrueCosts(NodeRates(), clock)
        self._off_loop = OffLoop()
        self._reading = asyncio.Lock()  # weights are read for one model at a time
        self._files: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by model
        self._tokenizers: dict[str, Tokenizer] = {}
        self._predictions: dict[str, RunnerFacts] = {}
        self._sleepers = Sleepers(devices, self._costs)
        self._marks: dict[tuple[str, str | None], str] = {}

    async def tokenizer(self, entry: ModelEntry) -> Tokenizer:
        """The model's tokenizer, which does not need its weights. Kept."""
        key = str(entry.ref)
        if key not in self._tokenizers:
            async with self._files[key]:
                if key not in self._tokenizers:
                    read = partial(self._kind(entry).tokenizer, entry.spec)
                    self._tokenizers[key] = await self._read(entry, read)
        return self._tokenizers[key]

    async def predict(self, entry: ModelEntry) -> RunnerFacts:
        """What the model would need, from its headers. Kept."""
        key = str(entry.ref)
        if key not in self._predictions:
            async with self._files[key]:
                if key not in self._predictions:
                    read = partial(self._kind(entry).footprint, entry.spec)
                    self._predictions[key] = await self._read(entry, read)
        return self._predictions[key]

    async def mark(self, served: Served) -> str:
        """What the files of a model hold, by samples, and in what precision they are computed, or those of an adapter.
        For what is not loaded; kept until the model is loaded or unloaded, and empty before the files are here."""
        key = str(served.entry.ref), served.adapter
        if key not in self._marks:
            self._marks[key] = await self._off_loop.run(partial(mark_of, served, self._models_dir))
        return self._marks[key]

    def forget_marks(self, entry: ModelEntry) -> None:
        """Its files, or those of an adapter, are about to be read anew."""
        self._forget_marks_of(str(entry.ref))

    def _forget_marks_of(self, ref: str) -> None:
        for key in [key for key in self._marks if key[0] == ref]:
            del self._marks[key]

    async def load(self, entry: ModelEntry, on_broken: Callable[[LlmhostError], None]) -> Replica:
        started_ns = self._clock.monotonic_ns()
        async with self._reading:
            self.forget_marks(entry)
            began = self._costs.moment()
            tokenizer = await self.tokenizer(entry)
            facts = await self.predict(entry)
            mark = await self.mark(Served(entry))  # the files are here by now, and not read yet
            await self._know_device(entry, facts.device)
            begun = self._costs.begin_load(facts.device, began)
            drafter: Drafter | None = None
            try:
                drafter = await self._drafter(entry, tokenizer)
                kept = await self._adapter_bytes(entry)
                plan = self._lease(entry, facts, kept)
                before = psutil.Process().memory_info().rss
                runner = await self._read_weights(entry, facts, plan)
                grown = psutil.Process().memory_info().rss - before
                mark = await self._mark_of_read(entry, mark)
                engine = self._start(entry, runner, plan, tokenizer, on_broken, drafter)
            except BaseException:
                if drafter is not None:
                    drafter.close()
                self._costs.bear_load(begun)
                self._give_back(str(entry.ref), facts.device)
                raise
        self._costs.engine_started(facts.device, engine.load)
        try:
            await self._probe(entry, engine, tokenizer)
        except BaseException:
            await engine.stop()
            self._costs.engine_ended(facts.device, engine.load)
            self._costs.bear_load(begun)
            self._give_back(str(entry.ref), facts.device)
            raise
        return Replica(
            devices=(facts.device,),
            engine=engine,
            tokenizer=tokenizer,
            plan=plan,
            facts=runner.facts,
            lease_holder=str(entry.ref),
            adapters=self._shelf(entry, runner, engine),
            load_s=(self._clock.monotonic_ns() - started_ns) / 1e9,
            ready_utc_ns=self._clock.utc_ns(),
            measured_bytes=_measured(runner.facts, grown),
            load_id=await self._costs.end_load(begun, str(entry.ref), engine.load),
            mark=mark,
        )

    async def _mark_of_read(self, entry: ModelEntry, before: str) -> str:
        self.forget_marks(entry)
        return mark_of_read(before, await self.mark(Served(entry)))

    async def unload(self, replica: Replica, *, drain_s: float) -> None:
        await replica.engine.stop(drain_s=drain_s)
        if replica.adapters is not None:
            replica.adapters.close()
        self._costs.engine_ended(replica.facts.device, replica.engine.load)
        await self._costs.unload(replica.load_id)
        self._forget_marks_of(replica.lease_holder)
        for device in replica.devices:
            self._give_back(replica.lease_holder, device)

    def check_sleep(self, replica: Replica) -> None:
        """Raises Conflict where a model gains nothing by sleeping, or can't."""
        self._sleepers.check(replica)

    async def sleep(self, replica: Replica, *, drain_s: float) -> int:
        """The bytes of the weights, which are in host memory then. Raises DoesNotFit, and the model stays as it is."""
        return await self._sleepers.put_to_sleep(replica, drain_s=drain_s)

    async def wake(self, replica: Replica) -> None:
        """Raises DoesNotFit or OutOfMemory, and the model sleeps on."""
        await self._sleepers.wake(replica)

    def files(self, entry: ModelEntry) -> str | None:
        """Whether the model's files are here: present, partial or absent; None for an engine without files. Blocks."""
        kind = self._kinds.get(entry.spec.engine)
        if kind is None or not kind.needs_files:
            return None
        return presence(entry.spec.source, self._models_dir)

    def presence(self, source: str) -> str:
        """Whether a source's files are here: present, partial or absent. Blocks."""
        return presence(source, self._models_dir)

    @property
    def is_reading(self) -> bool:
        """A thread still reads or fetches a model's files."""
        return self._off_loop.is_busy

    def stop_reading(self) -> None:
        """Whoever waits for a model's files is refused. What is being read is read by a thread for nobody."""
        self._off_loop.close()

    def _kind(self, entry: ModelEntry) -> EngineKind:
        kind = self._kinds.get(entry.spec.engine)
        if kind is None:
            known = ", ".join(sorted(self._kinds))
            raise ConfigError(
                f"[models.{entry.name}] engine {entry.spec.engine!r} is unknown; there is: {known}."
            )
        return kind

    async def _read(self, entry: ModelEntry, act: Callable[[Path | None], T]) -> T:
        """What an engine makes of the model's files, off the HTTP loop. Raises ModelUnavailable, whatever it raised."""
        kind = self._kind(entry)
        needs_files = kind.needs_files
        require: Any = getattr(kind, "require", None)

        def read() -> T:
            if require is not None:
                require()
            return act(find_files(entry.spec.source, self._models_dir) if needs_files else None)

        try:
            return await self._off_loop.run(read)
        except LlmhostError:
            raise
        except Exception as error:
            raise ModelUnavailable(
                f"The model {entry.ref} could not be loaded: {type(error).__name__}: {error}"
            ) from error

    async def _know_device(self, entry: ModelEntry, device: str) -> None:
        if self._devices.memory(device) is None:
            total_bytes = await self._read(entry, lambda _: self._kind(entry).device_bytes(device))
            if total_bytes is not None:
                self._devices.add_gpu(device, total_bytes)

    async def _adapter_bytes(self, entry: ModelEntry) -> int:
        """What the declared adapters will take, as many as may be loaded at once, the largest first. Fetches them."""
        size_bytes: Any = getattr(self._kind(entry), "adapter_bytes", None)
        if size_bytes is None:
            return 0
        sizes = []
        for name, source in entry.spec.adapters.items():

            def look(model: Path | None, source: str = source) -> int:
                return int(size_bytes(entry.spec, model, find_files(source, self._models_dir)))

            try:
                sizes.append(await self._read(entry, look))
            except (
                ModelUnavailable
            ) as error:  # whoever asks for it hears so; the model itself is fine
                facts = {"model": str(entry.ref), "adapter": name, "why": error.message}
                log_event(log, "adapter.unusable", level=logging.WARNING, **facts)
        return sum(sorted(sizes)[-entry.spec.max_adapters :])

    def _shelf(self, entry: ModelEntry, runner: Runner, engine: EngineLoop) -> AdapterShelf | None:
        host = getattr(runner, "adapters", None)
        if host is None:
            return None
        return AdapterShelf(
            str(entry.ref),
            host,
            call=engine.call,
            off_thread=self._off_loop.run,
            memory=self._devices.memory(runner.facts.device),
            limit=entry.spec.max_adapters,
            models_dir=self._models_dir,
        )

    def _lease(self, entry: ModelEntry, facts: RunnerFacts, kept_bytes: int) -> MemoryPlan:
        """Lease weights and KV cache, and leave `kept_bytes` of what is free to adapters."""
        memory = self._devices.memory(facts.device)
        free_bytes = None if memory is None else memory.free_bytes - kept_bytes
        plan = plan_memory(entry.spec, facts, free_bytes)
        if memory is not None:
            memory.grant(
                str(entry.ref),
                weights_bytes=plan.weights_bytes,
                kv_bytes=plan.kv_bytes,
                step_bytes=plan.step_bytes,
            )
        self._lease_host(str(entry.ref), plan)
        asked = entry.spec.max_sequence_length or facts.max_sequence_length
        if plan.max_sequence_length < max(asked, facts.max_sequence_length):
            log_event(
                log,
                "model.length_limited",
                model=str(entry.ref),
                tokens=plan.max_sequence_length,
                model_tokens=facts.max_sequence_length,
                configured_tokens=entry.spec.max_sequence_length,
            )
        return plan

    def _lease_host(self, holder: str, plan: MemoryPlan) -> None:
        memory = self._devices.memory(HOST)
        if plan.host_kv_bytes and memory is not None:
            memory.grant(_on_host(holder), weights_bytes=0, kv_bytes=plan.host_kv_bytes)

    def _give_back(self, holder: str, device: str) -> None:
        """End a model's stay: its memory is free, and its files are looked at anew when it comes back."""
        draft = draft_holder(holder)
        self._sleepers.forget(holder)
        for name, lease in ((device, holder), (device, draft), (HOST, _on_host(holder))):
            memory = self._devices.memory(name)
            if memory is not None:
                memory.give_back(lease)
        for model in (holder, draft):
            self._tokenizers.pop(model, None)
            self._predictions.pop(model, None)

    async def _drafter(self, entry: ModelEntry, tokenizer: Tokenizer) -> Drafter | None:
        """What guesses for the model: nothing, its own text, or a smaller model, which is loaded first."""
        method = entry.spec.speculation.method
        if method == "ngram" or (method == "auto" and entry.spec.engine == "torch"):
            return PromptLookup()
        draft = draft_entry(entry)
        if draft is None:
            return None
        words = await self.tokenizer(draft)
        await self._off_loop.run(partial(check_same_words, entry.spec, tokenizer, words))
        facts = await self.predict(draft)
        plan = self._lease(draft, facts, 0)
        small = ModelDrafter(
            str(draft.ref),
            await self._read_weights(draft, facts, plan),
            lane=self._devices.lane(facts.device),
            kv_blocks=plan.kv_blocks,
            vocab_size=tokenizer.vocab_size,
            end_ids=tokenizer.eos_ids,
            most_tokens=entry.spec.max_tokens_per_batch,
        )
        return WithPredictions(small)

    async def _read_weights(
        self, entry: ModelEntry, facts: RunnerFacts, plan: MemoryPlan
    ) -> Runner:
        kind = self._kind(entry)

        def read(folder: Path | None) -> Runner:
            runner = kind.load(entry.spec, folder, facts)
            try:
                runner.set_kv_blocks(plan.kv_blocks)
                runner.set_host_blocks(plan.host_kv_blocks)
            except BaseException:
                runner.close()  # the error's traceback would keep its weights
                raise
            return runner

        return await self._read(entry, read)

    def _start(
        self,
        entry: ModelEntry,
        runner: Runner,
        plan: MemoryPlan,
        tokenizer: Tokenizer,
        on_broken: Callable[[LlmhostError], None],
        drafter: Drafter | None,
    ) -> EngineLoop:
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
        try:
            engine = EngineLoop(
                str(entry.ref),
                runner,
                Scheduler(limits),
                tokenizer=tokenizer,
                lane=self._devices.lane(runner.facts.device),
                max_queue=entry.spec.max_queue,
                on_step=self._observe_steps(str(entry.ref)),
                on_broken=on_broken,
                now_ns=self._clock.monotonic_ns,
                guesser=_guesser(entry, runner, drafter),
                step_timeout_s=entry.spec.step_timeout_s,
            )
            engine.start()
        except BaseException:
            runner.close()
            raise
        return engine

    async def _probe(self, entry: ModelEntry, engine: EngineLoop, tokenizer: Tokenizer) -> None:
        """One token, or vector, for a validation prompt: a model that can't do that is not put into service."""
        task = (await self.predict(entry)).task
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
                arrival_ns=self._clock.monotonic_ns(),
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


def _on_host(holder: str) -> str:
    return f"{holder} (KV on the host)"


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


def _measured(facts: RunnerFacts, grown_bytes: int) -> int:
    return max(grown_bytes, 0) if facts.measured_bytes is None else facts.measured_bytes
