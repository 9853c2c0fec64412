"""More adapters than may be in memory, asked for by a crowd: each answer is the one that it gets alone."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from crowd import crowd
from server_process import Node, eventually
from tests.unit.engines.adapters import save_adapter

from llmhost.deploy.sources import BUILT_IN_MODELS

pytestmark = pytest.mark.bars

ADAPTERS, IN_MEMORY, REQUESTS, TOKENS = 10, 3, 96, 12
SETTINGS = """
[models.tiny]
source = "builtin:tiny"
max_adapters = {in_memory}
[models.tiny.options]
device = "cpu"
threads = 1
[models.tiny.adapters]
"""


def test_a_crowd_with_ten_adapters_through_room_for_three(
    new_node: Callable[..., Node], bar: Callable[[str], None], tmp_path: Path
) -> None:
    names = [f"a{i}" for i in range(ADAPTERS)]
    for seed, name in enumerate(names):
        config = {"r": 4 + seed % 3, "lora_alpha": 48, "target_modules": ["q_proj", "down_proj"]}
        save_adapter(tmp_path / name, BUILT_IN_MODELS / "tiny", seed=seed, **config)
    lines = [f"{name} = {json.dumps(str(tmp_path / name))}" for name in names]
    node = new_node(SETTINGS.format(in_memory=IN_MEMORY) + "\n".join(lines)).start()
    numbers = random.Random(11)
    bodies = [
        {
            "model": numbers.choice(["tiny", *(f"tiny:{name}" for name in names)]),
            "prompt": numbers.sample(range(300, 2000), 5 + i % 20),
            "max_tokens": TOKENS,
            "temperature": 0,
        }
        for i in range(REQUESTS)
    ]
    began = time.perf_counter()

    together = crowd(node.port, "/v1/completions", bodies)

    took_s = time.perf_counter() - began
    alone = [crowd(node.port, "/v1/completions", [body])[0] for body in bodies]
    assert [one.status for one in together] == [200] * REQUESTS
    assert [one.text for one in together] == [one.text for one in alone]
    dropped = node.log().count("adapter.dropped")
    assert dropped > ADAPTERS - IN_MEMORY
    eventually(lambda: node.is_idle("tiny"), "sequences are left")
    rows = node.admin("GET", "/adapters").json()["data"]
    assert sum(row["requests"] for row in rows) == 0
    assert sum(row["state"] == "ready" for row in rows) == IN_MEMORY
    bar(
        f"adapters: {REQUESTS} requests at once with {ADAPTERS} adapters, {IN_MEMORY} in memory, say what each says"
        f" alone; {took_s:.1f} s, {dropped} made room"
    )
