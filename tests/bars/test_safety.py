"""What safety may cost: rules by the kB, and a guard beside the prompt that it judges."""

import asyncio
import time
from collections.abc import Callable

import pytest
from tests.bench.bench_safety import BAR_US, PARAGRAPH, cost_us
from tests.unit.safety.test_judges import Policy

from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import SafetySettings
from llmhost.host.wiring import Host
from llmhost.safety.defaults import SamePolicy
from llmhost.safety.pack.pack import CATEGORIES, Pack
from llmhost.safety.rules import Rules
from llmhost.safety.screen import Screen
from llmhost.safety.verdict import Action, Case, Direction, GuardUse, Opinion
from llmhost.testing import TestHost, make_host

pytestmark = pytest.mark.bars

PREFILL_S, VERDICT_S = 0.4, 0.5
ROUNDS = 5


@pytest.mark.parametrize("direction", Direction)
def test_all_rules_together_take_less_than_50_us_for_a_kb_of_ordinary_text(
    direction: Direction, bar: Callable[[str], None]
) -> None:
    rules = Rules(SafetySettings(), (), Pack(CATEGORIES, direction))

    took_us = cost_us(rules, (PARAGRAPH * 8)[:4000])

    bar(f"rules on {direction}: {took_us:.1f} us per kB (at most {BAR_US:.0f})")
    assert took_us < BAR_US


class SlowGuard:
    async def judge(self, case: Case, use: GuardUse) -> Opinion:
        await asyncio.sleep(VERDICT_S)
        return Opinion()


async def quickest_s(host: TestHost) -> float:
    """To an answer's first and only token."""
    took = []
    for number in range(ROUNDS):
        started = time.perf_counter()
        answer = await host.client.post(
            "/v1/completions", json={"model": "fake", "prompt": f"hello {number}", "max_tokens": 1}
        )
        took.append(time.perf_counter() - started)
        assert answer.status_code == 200
    return min(took)


async def test_with_a_guard_the_first_token_comes_after_the_longer_of_the_two(
    monkeypatch: pytest.MonkeyPatch, bar: Callable[[str], None]
) -> None:
    def guarded(self: Host, *_: object) -> Screen:
        policies = SamePolicy(Policy(Action.BLOCK, use=GuardUse("wary")))
        return Screen(SafetySettings(), self.plugins, policies=policies, guard=_OfPrompts())

    slow = {"fake": ModelSpec(engine="fake", options={"prefill_delay_ms": PREFILL_S * 1000})}
    async with make_host(models=slow) as host:
        alone_s = await quickest_s(host)
    monkeypatch.setattr("llmhost.host.wiring.screen_of", guarded)
    async with make_host(models=slow) as host:
        both_s = await quickest_s(host)

    longer_s = max(alone_s, VERDICT_S)
    bar(f"TTFT with a guard: {both_s / longer_s:.3f} times the longer of the two (at most 1.05)")
    assert both_s <= 1.05 * longer_s


class _OfPrompts(SlowGuard):
    async def judge(self, case: Case, use: GuardUse) -> Opinion:
        return Opinion() if case.answer else await super().judge(case, use)
