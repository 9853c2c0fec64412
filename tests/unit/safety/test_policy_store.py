"""What is on disk of policies is what holds, whoever has left in between."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from llmhost.config.schema.safety import AuditSettings, SafetySettings
from llmhost.host.audit import open_audit
from llmhost.host.policies import open_policies
from llmhost.safety.policy import PolicyBody
from llmhost.storage.audit import AuditTrail
from llmhost.storage.node import DataDir
from llmhost.testing import at

CLOCK = at("2026-01-01")


async def test_who_leaves_while_a_policy_is_written_leaves_memory_and_disk_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data_dir = DataDir(tmp_path)
    async with AsyncExitStack() as closing:
        audit = open_audit(data_dir, AuditSettings(), CLOCK, closing)
        store = open_policies(data_dir, SafetySettings(), audit, CLOCK)
        together, written = AuditTrail.together, asyncio.Event()

        async def slow(self, act):
            result = await together(self, act)
            written.set()
            await asyncio.sleep(0)  # it is committed, and whoever asked leaves
            return result

        monkeypatch.setattr(AuditTrail, "together", slow)
        for number in (1, 2):
            written.clear()
            asking = asyncio.create_task(
                store.create("acme", PolicyBody(), who="operator", activate=True)
            )
            await written.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await store.activate("zenith", None, who="operator")  # those before it have ended
            assert store.in_force("acme") == number
        again = open_policies(data_dir, SafetySettings(), audit, CLOCK)
        assert again.in_force("acme") == 2
