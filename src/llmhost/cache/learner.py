"""What kinds of requests there were, and the policies that were made of them. Used from the HTTP loop.

It remembers hashes and costs and no text; `cache/notebook.py` has it on disk for the next process.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from llmhost.cache.policy import Bounds, Policy, Use, decide
from llmhost.config.schema.cache import CacheSettings
from llmhost.observe.logs import log_event

log = logging.getLogger("llmhost.cache")

MOST_KINDS = 1_000
"""The kinds that were asked least recently are forgotten."""
MOST_USES = 512
"""Of each kind, the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What requests of one signature have in common."""

    signature: str
    model: str
    org: str
    form: str
    """Such as `chat`, with the hash of a system prompt where there is one."""


@dataclass(slots=True)
class _History:
    kind: Kind
    uses: deque[Use] = field(default_factory=lambda: deque(maxlen=MOST_USES))


@dataclass(frozen=True, slots=True)
class Learnt:
    """All that is known of one kind."""

    kind: Kind
    uses: tuple[Use, ...]
    policy: Policy | None


class Learner:
    form = "1"
    row_type = Learnt

    def __init__(self, settings: CacheSettings) -> None:
        self._is_on = settings.learn
        self._bounds = Bounds(
            max_ttl_s=settings.max_ttl_s, min_potential=settings.min_hit_potential
        )
        self._histories: OrderedDict[str, _History] = OrderedDict()
        self._policies: dict[str, Policy] = {}
        self.changed: set[str] = set()
        """Signatures of which more is known than is on disk."""
        self.created = 0
        self.retired = 0

    def policy(self, signature: str) -> Policy | None:
        return self._policies.get(signature)

    def policies(self) -> list[tuple[Kind, Policy]]:
        """Those in force, by signature."""
        return [(self._histories[name].kind, one) for name, one in sorted(self._policies.items())]

    def row(self, name: str) -> Learnt | None:
        history = self._histories.get(name)
        if history is None:
            return None
        return Learnt(history.kind, tuple(history.uses), self._policies.get(name))

    def restore(self, name: str, row: Learnt, now_ns: int) -> bool:
        """What another process knew, policy included: the next look at it decides whether that still pays."""
        if not self._is_on or len(self._histories) >= MOST_KINDS:
            return False
        self._histories[name] = _History(row.kind, deque(row.uses, maxlen=MOST_USES))
        if row.policy is not None:
            self._policies[name] = row.policy
        return True

    def forget(self, is_meant: Callable[[Kind], bool]) -> None:
        for name in [name for name, one in self._histories.items() if is_meant(one.kind)]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        del self._histories[name]
        self._policies.pop(name, None)
        self.changed.add(name)

    @property
    def kinds(self) -> int:
        """How many are remembered."""
        return len(self._histories)

    def note(self, kind: Kind, *, at_s: float, key: str, value: int, size_bytes: int) -> None:
        """A request of this kind was answered, from the cache or not."""
        if not self._is_on:
            return
        history = self._histories.get(kind.signature)
        if history is None:
            history = self._histories[kind.signature] = _History(kind)
            if len(self._histories) > MOST_KINDS:
                self._drop(next(iter(self._histories)))
        self._histories.move_to_end(kind.signature)
        self.changed.add(kind.signature)
        history.uses.append(Use(at_s, int(key[-16:], 16), value, size_bytes))

    def learn(self, now_s: float) -> None:
        """Make policies of what is known now; one log line for each that begins or ends."""
        if self._is_on:
            self._take(self._work(now_s)())

    async def learn_aside(self, now_s: float) -> None:
        """The same; what takes long of it, half a second where much is known, is done in a thread."""
        if self._is_on:
            self._take(await asyncio.to_thread(self._work(now_s)))

    def _work(self, now_s: float) -> Callable[[], dict[str, Policy]]:
        """What may be done in any thread: it works on a copy."""
        histories = {name: tuple(one.uses) for name, one in self._histories.items()}
        return partial(decide, histories, dict(self._policies), self._bounds, now_s)

    def _take(self, policies: dict[str, Policy]) -> None:
        """Have them in force, but for those of kinds that were forgotten meanwhile."""
        policies = {name: one for name, one in policies.items() if name in self._histories}
        for signature, policy in policies.items():
            if signature not in self._policies:
                self.created += 1
                kind = self._histories[signature].kind
                log_event(
                    log,
                    "cache.policy_created",
                    signature=signature,
                    model=kind.model,
                    org=kind.org,
                    ttl_s=policy.ttl_s,
                    potential=round(policy.potential, 2),
                )
        for signature in self._policies.keys() - policies.keys():
            self.retired += 1
            log_event(log, "cache.policy_retired", signature=signature, why="does_not_pay")
        self.changed.update(
            name
            for name in self._policies.keys() | policies.keys()
            if self._policies.get(name) != policies.get(name)
        )
        self._policies = policies
