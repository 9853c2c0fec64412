"""`llmhost batches` and `llmhost files` on a node that is stopped."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.unit.pipeline.batch_node import begin, ended, line, upload

from llmhost.testing import make_host


def test_what_callers_left_is_listed_cancelled_and_deleted_while_the_node_is_stopped(
    llmhost: Any, tmp_path: Path
) -> None:
    def run(*words: str) -> Any:
        return llmhost(*words, "--data-dir", str(tmp_path))

    async def leave() -> tuple[str, str]:
        async with make_host(data_dir=tmp_path) as host:
            batch = await begin(host, [line(n) for n in range(3)])
            await ended(host, batch)
            return batch["id"], (await upload(host, b"text", purpose="user_data"))["id"]

    batch, file = asyncio.run(leave())

    [row] = json.loads(run("batches", "list", "--json").stdout)
    assert (row["id"], row["org"], row["request_counts"]["completed"]) == (batch, "local", 3)
    assert json.loads(run("batches", "list", "--org", "nobody", "--json").stdout) == []
    shown = run("batches", "show", batch).stdout
    assert "is completed: 3 of 3 lines answered, 0 failed" in shown
    refused = run("batches", "cancel", batch)
    assert refused.exit_code == 1
    assert "is completed" in refused.stderr
    assert len(json.loads(run("files", "list", "--json").stdout)) == 3
    assert "deleted" in run("files", "delete", file).stdout
    assert run("files", "delete", file).exit_code == 1
    assert len(json.loads(run("files", "list", "--json").stdout)) == 2
