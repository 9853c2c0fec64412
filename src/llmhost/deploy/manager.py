"""The table of deployments: who is loaded, and the doors through which that changes."""

import asyncio
import logging
from collections.abc import Callable

from llmhost.core.errors import LlmhostError
from llmhost.core.events import DeploymentChanged
from llmhost.core.ports import Clock, EngineLoad, RunnerFacts, Tokenizer
from llmhost.core.world import World
from llmhost.deploy.adapters import AdapterRow
from llmhost.deploy.catalogue import Catalogue, ModelEntry, Served
from llmhost.deploy.deployment import Deployment
from llmhost.deploy.effects import LoadEffects
from llmhost.deploy.replica import together

log = logging.getLogger("llmhost.deploy")


class Deployments:
    """All deployments of this node, one for each declared model."""

    def __init__(
        self,
        catalogue: Catalogue,
        effects: LoadEffects,
        clock: Clock,
        on_change: Callable[[DeploymentChanged], None],
        world: World | None = None,
    ) -> None:
        """`world` is told of every change, before `on_change` is."""
        self._world = world = world or World()

        def changed(event: DeploymentChanged) -> None:
            world.changed()
            on_change(event)

        self.catalogue = catalogue
        self._effects = effects
        self._all = {
            entry.name: Deployment(entry, effects, clock, changed) for entry in catalogue.entries()
        }
        self._still_to_start = {
            entry.name for entry in catalogue.entries() if entry.spec.load == "start"
        }

    def all(self) -> tuple[Deployment, ...]:
        return tuple(self._all.values())

    def find(self, name: str) -> Deployment:
        """By name or alias. Raises UnknownModel."""
        return self._all[self.catalogue.find(name).name]

    async def tokenizer(self, deployment: Deployment) -> Tokenizer:
        return await self._effects.files.tokenizer(deployment.entry)

    async def mark(self, deployment: Deployment, adapter: Served | None) -> str:
        """What the files held that a model, and the adapter that is asked for, were read from, or what they hold where
        it is not loaded: other files have another mark."""
        held = deployment.held
        mark = (
            await self._effects.files.mark(Served(deployment.entry)) if held is None else held.mark
        )
        if adapter is None:
            return mark
        key = None
        if held is not None and held.adapters is not None and adapter.adapter is not None:
            key = held.adapters.key(adapter.adapter)
        return together(mark, key or await self._effects.files.mark(adapter))

    def files(self, deployment: Deployment) -> str | None:
        """Whether the model's files are here: present, partial or absent; None where it needs none. Blocks a little."""
        return self._effects.files.presence_of(deployment.entry)

    async def facts(self, deployment: Deployment) -> RunnerFacts:
        """What the model is and does, as far as is known without loading the weights."""
        if (held := deployment.held) is not None:
            return held.facts
        return await self._effects.files.predict(deployment.entry)

    def presence(self, source: str) -> str:
        """Whether the files of a source are here: present, partial or absent. Blocks a little."""
        return self._effects.files.presence(source)

    def loaded_adapters(self, entry: ModelEntry) -> list[AdapterRow]:
        """Of all of a model's replicas."""
        replicas = self._all[entry.name].replicas
        return [row for replica in replicas if replica.adapters for row in replica.adapters.rows()]

    async def load_adapter(self, served: Served) -> None:
        """Have an adapter in memory, and its model. One that is new can be named from then on."""
        deployment = self._all[served.entry.name]
        self._effects.files.forget_marks(served.entry)
        self._world.changed()
        await deployment.ensure_ready("operator")
        for replica in deployment.replicas:
            (await replica.hold_adapter(served)).let_go()
        self.catalogue.add_adapter(served)
        self._world.changed()

    async def unload_adapter(self, served: Served, *, drain_s: float) -> None:
        """Have an adapter out of memory once nobody uses it. One that is not declared can't be named any more."""
        if not served.is_declared:
            self.catalogue.remove_adapter(served)
        self._world.changed()
        for replica in self._all[served.entry.name].replicas:
            if replica.adapters is not None and served.adapter is not None:
                await replica.adapters.unload(served.adapter, drain_s=drain_s)

    async def longest_tokens(self, deployment: Deployment) -> int:
        """Most tokens of prompt and answer together, as far as is known without loading the weights."""
        if (held := deployment.held) is not None:
            return held.plan.max_sequence_length
        spec, facts = deployment.entry.spec, await self._effects.files.predict(deployment.entry)
        return min(facts.max_sequence_length, spec.max_sequence_length or facts.max_sequence_length)

    async def load_at_start(self) -> None:
        """Load every model that is declared so. One that fails says why and takes nothing else down."""
        for deployment in self._all.values():
            if deployment.entry.spec.load == "start":
                try:
                    await deployment.ensure_ready("start")
                except LlmhostError:
                    log.debug("model.skipped model=%s", deployment.entry.ref)  # its state says why
                finally:
                    self._still_to_start.discard(deployment.entry.name)

    @property
    def is_reading(self) -> bool:
        """A thread still reads or fetches a model's files."""
        return self._effects.files.is_reading

    def stop_loading(self) -> None:
        """Give up the loads that are under way, and refuse who waits for them: no node waits for them at its end."""
        for deployment in self._all.values():
            deployment.stop_loading()
        self._effects.files.stop_reading()

    async def unload_all(self, *, drain_s: float) -> None:
        await asyncio.gather(
            *(d.unload(drain_s=drain_s, reason="shutdown") for d in self._all.values())
        )

    @property
    def is_settled(self) -> bool:
        """Each model that loads at start has loaded or failed once, whatever operators did with it since."""
        return not self._still_to_start

    def loads(self) -> list[tuple[str, EngineLoad]]:
        return [
            (str(d.entry.ref), replica.engine.load())
            for d in self._all.values()
            for replica in d.replicas
        ]
