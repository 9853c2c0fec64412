"""Ten thousand random events in the life of a scheduler, its KV books audited after each."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from msgspec import structs
from tests.unit.schedule.kit import VOCAB, Workbench, a_spec, some_limits

from llmhost.core.sequence import SequenceSpec

EVENTS = 10_000
WEIGHTS = {
    "add": 12,
    "fork": 4,
    "step": 60,
    "cancel": 6,
    "preempt": 5,
    "fail": 2,
    "resize": 3,
    "forget": 1,
}


class Life:
    """Acts on a workbench, which audits every one of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.bench = Workbench(
            some_limits(
                kv_blocks=24,
                max_batch_size=6,
                max_tokens_per_batch=18,
                max_sequence_length=64,
                host_kv_blocks=10 * (seed % 2),
                prefix_cache=seed < 3,
            )
        )
        self.counts: Counter[str] = Counter()

    def spec(self) -> SequenceSpec:
        numbers = self.random
        alphabet = numbers.choice([1, 2, VOCAB])
        prompt = [numbers.randrange(alphabet) for _ in range(numbers.randint(1, 40))]
        return a_spec(
            prompt,
            request_id=f"req_{numbers.randrange(10**9)}",
            max_new_tokens=numbers.randint(1, 20),
            priority=numbers.randint(0, 2),
            tenant=numbers.choice("ab"),
            cache_scope=numbers.choice("xy"),
            stop_token_ids=frozenset([3]) if numbers.random() < 0.3 else frozenset(),
        )

    def act(self) -> None:
        name = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        live = [i for i, heard in self.bench.callers.items() if heard.last is None]
        if name in ("add", "fork") and len(live) > 30:
            name = "step"
        acts: dict[str, Callable[[list[int]], None]] = {
            "add": lambda _: self.add(1),
            "fork": lambda _: self.add(self.random.randint(2, 4)),
            "step": lambda _: self.step(),
            "cancel": lambda live: self.bench.cancel(self.random.choice(live)),
            "preempt": self.preempt,
            "fail": lambda live: self.bench.fail([self.random.choice(live)]),
            "resize": lambda _: self.bench.resize(self.random.randint(6, 28)),
            "forget": lambda _: self.bench.scheduler.forget_texts(),
        }
        if live or name in ("add", "fork", "step", "resize", "forget"):
            acts[name](live)
            self.counts[name] += 1
        self.bench.audit()

    def add(self, choices: int) -> None:
        spec = self.spec()
        for index in range(choices):
            self.bench.add(structs.replace(spec, index=index))

    def step(self) -> None:
        if self.random.random() < 0.3:
            self.bench.guess([self.random.random() < 0.7 for _ in range(4)])
        self.bench.step(self.random.randint(0, 10**7))

    def preempt(self, live: list[int]) -> None:
        self.bench.scheduler.preempt(self.random.sample(live, min(len(live), 2)))


@pytest.mark.bars
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_books_balance_after_every_event(seed: int, bar: Callable[[str], None]) -> None:
    life = Life(seed)
    while life.counts.total() < EVENTS:
        life.act()
    life.bench.run_to_the_end()

    load = life.bench.scheduler.load()
    assert load.preemptions > 0 and load.prefix_hit_tokens > 0
    assert seed % 2 == 0 or load.host_hit_tokens > 0
    bar(
        f"KV books: {life.counts.total()} events ({dict(life.counts)}), balanced after each;"
        f" {load.steps} steps, {load.preemptions} preemptions, {load.prefix_hit_tokens} of"
        f" {load.prefix_query_tokens} prompt tokens found, {load.host_hit_tokens} of them on the host,"
        f" {load.prefix_evicted_blocks} blocks evicted"
    )
