"""What a guard adds to the time to the first token where it shares the device with the model that it judges for.

    OMP_NUM_THREADS=1 python -m tests.bench.bench_guard [--rounds 15] [--words 120]

Three things in turns on one node, each time with a text of its own: the model without a guard, the model with one, and
the guard alone. The target and the guard are both `builtin:tiny`, the latter asked in ShieldGemma's form, which is
prefill and nothing else. Its weights have not learnt that, so its answers can't be read, which changes no time; the
policy lets such text pass. CPU time of the process counts,
since on one device nothing can be gained by waiting; the bar is 1.1 times the guard's own.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llmhost.config.schema import Settings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import SafetySettings
from llmhost.core.caller import Caller
from llmhost.core.errors import LlmhostError
from llmhost.core.request import GenerationRequest, Kind
from llmhost.safety.verdict import Case, Direction, GuardUse
from llmhost.testing import TestHost, make_host

BAR = 1.1
USE = GuardUse("guard", timeout_ms=60_000, fails_open=True)
WORDS = ("river", "stone", "paper", "garden", "window", "letter", "yellow", "number", "travel")


@dataclass
class Times:
    """Seconds of CPU and of wall time, one of each for a round."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    async def note(self, act: Awaitable[Any]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        await act
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


@dataclass(frozen=True)
class Found:
    """Medians in seconds, and by how many times the guard's own time the first token comes later."""

    without_s: float
    with_s: float
    guard_s: float

    @property
    def ratio(self) -> float:
        return (self.with_s - self.without_s) / self.guard_s


async def measure(rounds: int, words: int) -> dict[str, Found]:
    """By `cpu` and `wall`."""
    settings = Settings(
        safety=SafetySettings(
            guard=USE.model,
            guard_directions=("input",),
            guard_timeout_ms=USE.timeout_ms,
            guard_fails_open=USE.fails_open,
        )
    )
    options = {"device": "cpu", "threads": 1}
    models = {
        "tiny": ModelSpec(source="builtin:tiny", options=options),
        "guard": ModelSpec(source="builtin:tiny", options=options, guard="shieldgemma"),
    }
    async with make_host(models=models, settings=settings) as host:
        keys = [await host.make_key(org) for org in ("judged", "free")]
        headers = {"authorization": f"Bearer {host.host.admin_token}"}
        none = {"policy": {"guard": None}}
        made = await host.client.post("/admin/v1/orgs/free/policies", json=none, headers=headers)
        assert made.status_code == 201, made.text
        kinds = {name: Times() for name in ("with", "without", "guard")}
        rng = random.Random(1)
        for number in range(rounds + 2):
            texts = [_text(rng, words) for _ in range(3)]
            noted = kinds if number >= 2 else {name: Times() for name in kinds}  # two to warm up
            await noted["with"].note(_ask(host, keys[0], texts[0]))
            await noted["without"].note(_ask(host, keys[1], texts[1]))
            await noted["guard"].note(_judge(host, texts[2]))
    return {
        clock: Found(
            *(
                statistics.median(getattr(kinds[name], clock))
                for name in ("without", "with", "guard")
            )
        )
        for clock in ("cpu", "wall")
    }


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


async def _ask(host: TestHost, key: str, text: str) -> None:
    body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": text}]}
    headers = {"authorization": f"Bearer {key}"}
    answer = await host.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text


async def _judge(host: TestHost, text: str) -> None:
    messages = ({"role": "user", "content": text},)
    request = GenerationRequest(
        request_id="req_alone", kind=Kind.CHAT, model="tiny", messages=messages
    )
    case = Case(request=request, caller=Caller(None, "alone"), direction=Direction.INPUT)
    with suppress(LlmhostError):
        await host.host.screen._guard.judge(case, USE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--words", type=int, default=120)
    options = parser.parse_args()
    for clock, found in asyncio.run(measure(options.rounds, options.words)).items():
        sys.stdout.write(
            f"{clock:4}  without {found.without_s * 1e3:7.1f} ms  with {found.with_s * 1e3:7.1f} ms"
            f"  guard alone {found.guard_s * 1e3:7.1f} ms  the first token comes later by"
            f" {found.ratio:.2f} times that (at most {BAR})\n"
        )


if __name__ == "__main__":
    main()
