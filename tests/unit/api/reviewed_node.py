"""A node whose policy leaves everything that its rules find to reviewers."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmhost.config.schema import Settings
from llmhost.config.schema.limits import LimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import ReviewSettings, SafetySettings
from llmhost.core.caller import Role
from llmhost.safety.defaults import NodePolicy, SamePolicy
from llmhost.safety.verdict import Action, Decision, Direction, Finding, ReviewMode
from llmhost.testing import TestHost, make_host

WORD = "forbidden"


class Reviewed(NodePolicy):
    """Implements Policy."""

    def __init__(self, mode: ReviewMode, direction: Direction = Direction.INPUT) -> None:
        super().__init__()
        self.review_mode = mode
        self._direction = direction

    def decide(self, findings: Sequence[Finding], direction: Direction) -> Decision:
        if not findings or direction is not self._direction:
            return Decision(Action.ALLOW, self.name)
        return Decision(Action.REVIEW, self.name, findings[0])


@dataclass
class ReviewedNode:
    host: TestHost
    sender: str
    reviewer: str

    async def chat(self, text: str = f"say {WORD} things", **body: Any) -> Any:
        headers = {"authorization": f"Bearer {body.pop('key', self.sender)}"}
        asked = {"model": "fake", "max_tokens": 4, **body}
        asked.setdefault("messages", [{"role": "user", "content": text}])
        return await self.host.client.post("/v1/chat/completions", json=asked, headers=headers)

    async def poll(self, review_id: str, key: str | None = None) -> Any:
        headers = {"authorization": f"Bearer {key or self.sender}"}
        return await self.host.client.get(f"/v1/reviews/{review_id}", headers=headers)

    async def admin(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **query: str
    ) -> Any:
        """As the reviewer, unless another key is given."""
        return await self.host.client.request(
            method,
            f"/admin/v1/reviews{path}",
            json=body,
            params=query or None,
            headers={"authorization": f"Bearer {key or self.reviewer}"},
        )

    async def decide(self, review_id: str, decision: str = "approve") -> Any:
        return await self.admin("POST", f"/{review_id}/decide", {"decision": decision})

    async def pending(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.admin("GET", "")).json()["data"]
        return found

    async def settled(self) -> None:
        """Until what was approved has been answered."""
        for task in list(self.host.host.holds._live.values()):
            await task


@asynccontextmanager
async def reviewed_node(
    mode: ReviewMode,
    direction: Direction = Direction.INPUT,
    *,
    words: tuple[str, ...] = (WORD,),
    data_dir: Path | None = None,
    keys: tuple[str, str] | None = None,
    models: Mapping[str, ModelSpec] | None = None,
    clock: Any = None,
    **reviews: Any,
) -> AsyncIterator[ReviewedNode]:
    settings = Settings(
        safety=SafetySettings(blocked_words=words, review=("words",)),
        reviews=ReviewSettings(**{"sample_share": 1.0, **reviews}),
        limits=LimitSettings(failed_auth_per_minute=0),
    )
    async with make_host(settings=settings, data_dir=data_dir, models=models, clock=clock) as host:
        screen = host.host.processor._stages.screen._screen
        screen._policies = SamePolicy(Reviewed(mode, direction))
        if keys is None:
            keys = await host.make_key(), await host.make_key(role=Role.REVIEWER)
        yield ReviewedNode(host, *keys)
