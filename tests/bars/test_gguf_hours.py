"""Hours of random traffic to a GGUF model over HTTP, compressed into five minutes with too little of everything."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI
from server_process import Node
from tests.unit.engines.adapters import save_adapter

from llmhost.deploy.sources import BUILT_IN_MODELS

pytestmark = pytest.mark.bars
pytest.importorskip("llama_cpp")

TRAFFIC_S, SETTLED_S = 300, 120
CALLERS, QUESTIONS, PATIENCE_S = 20, 40, 90
GROWTH = 1.03
SETTINGS = """
[models.quant]
source = "builtin:tiny-gguf"
max_batch_size = 12
max_tokens_per_batch = 128
max_sequence_length = 1024
kv_memory = "{kv_memory}"
kv_host_memory = "4MiB"
[models.quant.options]
threads = 1
kv_dtype = "f32"
[models.quant.adapters]
pirate = "pirate"
"""


@dataclass(frozen=True)
class Question:
    model: str
    prompt: tuple[int, ...]
    most: int


@dataclass
class Traffic:
    """What has been asked, and what came of it."""

    client: AsyncOpenAI
    questions: list[Question]
    seed: int
    answers: dict[Question, str] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[Question] = field(default_factory=list)

    async def ask(self, question: Question, leave_after: int | None = None) -> str | None:
        """The answer; None when it was left amid it."""
        stream: Any = await self.client.completions.create(
            model=question.model,
            prompt=list(question.prompt),
            max_tokens=question.most,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        said, seen = "", 0
        async with stream:
            async for event in stream:
                said += event.choices[0].text if event.choices else ""
                seen += 1
                if leave_after is not None and seen >= leave_after:
                    return None
        return said

    async def live(self, caller: int, until: float) -> None:
        source = random.Random(1000 * self.seed + caller)
        while time.monotonic() < until:
            question = source.choice(self.questions)
            leaves = source.random() < 0.2
            wish = self.ask(question, source.randint(1, 8) if leaves else None)
            said = await asyncio.wait_for(wish, PATIENCE_S)
            self.done["left" if said is None else "answered"] += 1
            if said is not None and said != self.answers[question]:
                self.wrong.append(question)
            if source.random() < 0.05:
                await asyncio.sleep(source.random())


def some_questions(seed: int) -> list[Question]:
    """Most go on from one of a few beginnings; one in eight is long."""
    source = random.Random(seed)
    beginnings = [tuple(source.choices(range(300, 2000), k=k)) for k in (50, 130, 260)]
    found = []
    for _ in range(QUESTIONS):
        before = source.choice((*beginnings, ()))
        more = source.randint(500, 700) if source.random() < 0.125 else source.randint(1, 60)
        prompt = (*before, *source.choices(range(300, 2000), k=more))
        model = "quant:pirate" if source.random() < 0.2 else "quant"
        found.append(Question(model, prompt, source.randint(1, 24)))
    return found


async def live_through(node: Node, process: psutil.Process, seed: int) -> tuple[Traffic, float]:
    """The traffic, and how many times as much memory the server had in the end as when it had settled."""
    client = AsyncOpenAI(
        base_url=f"{node.url}/v1", api_key="any", max_retries=0, timeout=PATIENCE_S
    )
    async with client:
        traffic = Traffic(client, some_questions(seed), seed)
        for question in traffic.questions:
            traffic.answers[question] = await traffic.ask(question) or ""
        until = time.monotonic() + TRAFFIC_S
        callers = [asyncio.create_task(traffic.live(n, until)) for n in range(CALLERS)]
        await asyncio.sleep(SETTLED_S)
        settled = process.memory_info().rss
        await asyncio.gather(*callers)
        return traffic, process.memory_info().rss / settled


@pytest.mark.parametrize(("kv_memory", "seed"), [("12MiB", 1)])
async def test_random_traffic_over_http_neither_leaks_nor_hangs_nor_errs(
    kv_memory: str, seed: int, new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(SETTINGS.format(kv_memory=kv_memory))
    shape: dict[str, Any] = {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "up_proj"]}
    save_adapter(node.folder / "pirate", BUILT_IN_MODELS / "tiny", seed=1, **shape)
    node.start()
    assert node.process is not None

    traffic, grown = await live_through(node, psutil.Process(node.process.pid), seed)

    answered = traffic.done["answered"]
    bar(
        f"{TRAFFIC_S} s of random traffic to a GGUF model with {kv_memory} of KV: {answered:,} answers,"
        f" {traffic.done['left']:,} left amid them, {len(traffic.wrong)} differ from those in quiet; memory"
        f" {grown - 1:+.1%} after the first {SETTLED_S} s"
    )
    assert answered > 100
    assert len(traffic.wrong) <= answered // 200, "near-ties alone are rarer"
    assert grown < GROWTH
    assert "Traceback" not in node.log()
    assert node.stop() == 0
