"""The acts behind a deployment: fetch, check that it fits, load, probe, unload. Each measures what it took; how a
model sleeps is told in `sleepers`.

Order matters: the footprint is read from headers and the memory leased before a single weight is read, so a model
that can't fit is refused at once with the numbers and takes nothing else down.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from llmhost.core.errors import (
    LlmhostError,
    ModelUnavailable,
)
from llmhost.core.ports import Clock, Drafter, Runner, RunnerFacts, Tokenizer
from llmhost.core.step import StepResult
from llmhost.cost.attribution import TrueCosts
from llmhost.cost.rates import NodeRates
from llmhost.deploy.adapters import AdapterShelf
from llmhost.deploy.catalogue import ModelEntry, Served
from llmhost.deploy.drafts import check_same_words, draft_entry, draft_holder
from llmhost.deploy.memory_plan import MemoryPlan, plan_memory
from llmhost.deploy.model_files import ModelFiles
from llmhost.deploy.replica import Replica
from llmhost.deploy.sleepers import HOST, Sleepers
from llmhost.deploy.sources import find_files
from llmhost.deploy.start import probe, start_engine
from llmhost.engines.kinds import EngineKind
from llmhost.gpu.devices import Devices
from llmhost.observe.logs import log_event
from llmhost.schedule.draft_model import ModelDrafter
from llmhost.schedule.drafting import PromptLookup
from llmhost.schedule.engine_loop import EngineLoop
from llmhost.schedule.predicted import WithPredictions

log = logging.getLogger("llmhost.deploy")

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
        self.files = ModelFiles(kinds, models_dir)
        self._devices = devices
        self._models_dir = models_dir
        self._clock = clock
        self._observe_steps = observe_steps
        self._costs = costs or TrueCosts(NodeRates(), clock)
        self._reading = asyncio.Lock()  # weights are read for one model at a time
        self._sleepers = Sleepers(devices, self._costs)

    async def load(self, entry: ModelEntry, on_broken: Callable[[LlmhostError], None]) -> Replica:
        started_ns = self._clock.monotonic_ns()
        async with self._reading:
            self.files.forget_marks(entry)
            began = self._costs.moment()
            tokenizer = await self.files.tokenizer(entry)
            facts = await self.files.predict(entry)
            mark = await self.files.mark(
                Served(entry)
            )  # the files are here by now, and not read yet
            await self._know_device(entry, facts.device)
            begun = self._costs.begin_load(facts.device, began)
            drafter: Drafter | None = None
            runner: Runner | None = None
            try:
                drafter = await self._drafter(entry, tokenizer)
                kept = await self._adapter_bytes(entry)
                plan = self._lease(entry, facts, kept)
                before = psutil.Process().memory_info().rss
                runner = await self._read_weights(entry, facts, plan)
                grown = psutil.Process().memory_info().rss - before
                mark = await self.files.mark_of_read(entry, mark)
                engine = start_engine(
                    entry,
                    runner,
                    plan,
                    tokenizer=tokenizer,
                    drafter=drafter,
                    lane=self._devices.lane(runner.facts.device),
                    clock=self._clock,
                    on_step=self._observe_steps(str(entry.ref)),
                    on_broken=on_broken,
                )
            except BaseException:
                if drafter is not None:
                    drafter.close()
                if runner is not None:
                    runner.close()
                self._costs.bear_load(begun)
                self._give_back(str(entry.ref), facts.device)
                raise
        self._costs.engine_started(facts.device, engine.load)
        try:
            await probe(entry, engine, tokenizer, task=facts.task, clock=self._clock)
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

    async def unload(self, replica: Replica, *, drain_s: float) -> None:
        await replica.engine.stop(drain_s=drain_s)
        if replica.adapters is not None:
            replica.adapters.close()
        self._costs.engine_ended(replica.facts.device, replica.engine.load)
        await self._costs.unload(replica.load_id)
        self.files.forget_marks_of(replica.lease_holder)
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

    async def _know_device(self, entry: ModelEntry, device: str) -> None:
        if self._devices.memory(device) is None:
            total_bytes = await self.files.read(
                entry, lambda _: self.files.kind(entry).device_bytes(device)
            )
            if total_bytes is not None:
                self._devices.add_gpu(device, total_bytes)

    async def _adapter_bytes(self, entry: ModelEntry) -> int:
        """What the declared adapters will take, as many as may be loaded at once, the largest first. Fetches them."""
        size_bytes: Any = getattr(self.files.kind(entry), "adapter_bytes", None)
        if size_bytes is None:
            return 0
        sizes = []
        for name, source in entry.spec.adapters.items():

            def look(model: Path | None, source: str = source) -> int:
                return int(size_bytes(entry.spec, model, find_files(source, self._models_dir)))

            try:
                sizes.append(await self.files.read(entry, look))
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
            off_thread=self.files.off_loop.run,
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
            self.files.forget(model)

    async def _drafter(self, entry: ModelEntry, tokenizer: Tokenizer) -> Drafter | None:
        """What guesses for the model: nothing, its own text, or a smaller model, which is loaded first."""
        method = entry.spec.speculation.method
        if method == "ngram" or (method == "auto" and entry.spec.engine == "torch"):
            return PromptLookup()
        draft = draft_entry(entry)
        if draft is None:
            return None
        words = await self.files.tokenizer(draft)
        await self.files.off_loop.run(partial(check_same_words, entry.spec, tokenizer, words))
        facts = await self.files.predict(draft)
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
        kind = self.files.kind(entry)

        def read(folder: Path | None) -> Runner:
            runner = kind.load(entry.spec, folder, facts)
            try:
                runner.set_kv_blocks(plan.kv_blocks)
                runner.set_host_blocks(plan.host_kv_blocks)
            except BaseException:
                runner.close()  # the error's traceback would keep its weights
                raise
            return runner

        return await self.files.read(entry, read)


def _on_host(holder: str) -> str:
    return f"{holder} (KV on the host)"


def _measured(facts: RunnerFacts, grown_bytes: int) -> int:
    return max(grown_bytes, 0) if facts.measured_bytes is None else facts.measured_bytes
