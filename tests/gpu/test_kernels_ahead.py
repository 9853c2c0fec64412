"""Kernels compiled before there is a GPU: found by the Triton of another machine, and none missed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MISSED = """
import json
from tests.gpu.ahead_walk import RandomShape, missed
shape = RandomShape(layers=1, hidden=256, ffn=512, heads=4, kv_heads=2, vocab=512, positions=4096)
print(json.dumps(missed(shape)))
"""
TAKEN_OVER = """
import json, sys
from pathlib import Path
import torch, triton
from tests.gpu import ahead
from llmhost.engines.torch.kernels import feed

def walk():
    for count in (1, 2):
        feed.feed_tokens(*(torch.zeros(count, dtype=torch.int32) for _ in range(4)))

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    recorded = ahead.record(folder / "ahead", walk)
    (folder / "ahead" / "1.source").write_text("of a kernel that has changed since")
    triton.knobs.cache.dir = str(folder / "there")
    filled = ahead._fill_some(folder / "ahead", range(recorded), launchers=False)
    heard = []
    triton.knobs.compilation.listener = lambda **said: heard.append(said["cache_hit"])
    feed._feed.device_caches.clear()
    with ahead.compiled_only():
        walk()
    print(json.dumps([recorded, filled, heard]))
"""


def said(program: str, *words: str) -> Any:
    """By a process in which kernels are compiled and not interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_a_model_launches_is_compiled_while_it_is_read() -> None:
    assert said(MISSED) == []


def test_what_was_compiled_elsewhere_is_found_as_if_it_had_been_compiled_here(
    tmp_path: Path,
) -> None:
    assert said(TAKEN_OVER, str(tmp_path)) == [
        2,
        ["taken over", "compiled"],
        [True, True],
    ]
