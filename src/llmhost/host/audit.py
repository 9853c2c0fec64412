"""The audit log of a host, running or stopped: opening it, keeping it, and writing down what commands change."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import wraps
from typing import Any, TypeVar

import msgspec

from llmhost.api.audited import shown
from llmhost.config.schema.safety import AuditSettings
from llmhost.core.errors import LlmhostError
from llmhost.core.ports import Clock
from llmhost.safety import policy_store
from llmhost.safety.audit import AuditLog
from llmhost.safety.kept_prompts import KeptPrompts
from llmhost.storage.audit import AuditRow, AuditTrail
from llmhost.storage.node import DataDir
from llmhost.tenants.roles import OPERATOR

log = logging.getLogger("llmhost.audit")

DAY_S = 86_400
Class = TypeVar("Class", bound=type)


def open_audit(
    data_dir: DataDir, settings: AuditSettings, clock: Clock, closing: AsyncExitStack
) -> AuditLog:
    """Open the file; `closing` closes it. Blocks."""
    trail = AuditTrail(
        data_dir.audit_db,
        data_dir.audit_head,
        key=data_dir.audit_key,
        node_id=data_dir.node_id,
        clock=clock,
        more=(policy_store.SCHEMA,),
    )
    audit = AuditLog(trail, settings, clock, KeptPrompts(lambda: data_dir.audit_text_secret))
    closing.callback(audit.close)
    return audit


async def keep_pruning(audit: AuditLog, days: Callable[[], Mapping[str, int]]) -> None:
    """Once a day: delete what is old enough. `days` says which organisations have a time of their own."""
    while True:
        try:
            await audit.prune(days())
        except LlmhostError as error:
            log.error("audit.not_pruned error=%s", error)
        await asyncio.sleep(DAY_S)


def written_down(reads: frozenset[str]) -> Callable[[Class], Class]:
    """Of a class with an `audit` and methods for operators, all but `reads` leave a row, failed or not.

    A method that nobody has thought about here is written down: only what reads must be named.
    """

    def mark(cls: Class) -> Class:
        for name, method in list(vars(cls).items()):
            if not name.startswith("_") and callable(method) and name not in reads:
                setattr(cls, name, _written_down(name, method))
        return cls

    return mark


def _written_down(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def act(self: Any, *args: Any, **facts: Any) -> Any:
        audit: AuditLog = self.audit
        audit.check_writable()
        failure: str | None = None
        result: Any = None
        try:
            result = method(self, *args, **facts)
        except (LlmhostError, msgspec.ValidationError) as error:
            failure = str(error)[:200]
            raise
        finally:
            told = result if isinstance(result, dict) else {}
            detail = {
                "offline": True,
                "args": [arg for arg in args if isinstance(arg, str)],
                "body": shown(facts),
                "id": told.get("id"),
                "failed": failure,
            }
            audit.trail.add(
                AuditRow(
                    at_ns=audit.utc_ns(),
                    kind="admin",
                    org=facts.get("org") or told.get("org"),
                    actor=OPERATOR.who,
                    action=name,
                    target=str(args[0]) if args else "",
                    detail={key: value for key, value in detail.items() if value},
                )
            ).result()
        return result

    return act
