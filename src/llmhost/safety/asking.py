"""How a guard is asked: in its time, and what it means when it has no answer.

A policy that fails open lets a text pass that could not be judged; one that fails closed refuses it.
"""

import asyncio
import logging

from llmhost.core.errors import LlmhostError, ModelUnavailable, SafetyUnavailable
from llmhost.safety.verdict import Case, Finding, Guard, GuardUse, Opinion, Tier

log = logging.getLogger("llmhost.safety")

UNAVAILABLE = "unavailable"
"""The category of what is found when a guard has no answer."""


class NoGuard:
    """Where there is no guard, and a policy wants one. Implements Guard."""

    async def judge(self, case: Case, use: GuardUse) -> Opinion:
        raise ModelUnavailable("This node has no guard.")


async def ask_guard(guard: Guard, case: Case, use: GuardUse) -> Opinion | None:
    """What the guard found; None when it has no answer, which is for the policy to judge."""
    try:
        async with asyncio.timeout(use.timeout_ms / 1000):
            return await guard.judge(case, use)
    except TimeoutError:
        why = f"no answer within {use.timeout_ms} ms"
    except LlmhostError as error:
        why = error.message
    except Exception as error:  # boundary: a guard may raise anything
        log.error("guard.failed model=%s", use.model, exc_info=error)
        why = type(error).__name__
    log.warning(
        "guard.unavailable model=%s where=%s request=%s passes=%s why=%s",
        use.model,
        case.direction,
        case.request.request_id,
        use.fails_open,
        why,
    )
    return None


def unavailable(use: GuardUse) -> Finding:
    """What is written down of a guard that failed."""
    return Finding(UNAVAILABLE, f"guard:{use.model}", Tier.GUARD)


def no_answer(use: GuardUse) -> SafetyUnavailable:
    """What the caller of a text hears that does not pass unjudged."""
    return SafetyUnavailable(
        f"The text could not be judged by the model {use.model!r}, so it does not pass. Try again.",
        retry_after_s=1.0,
    )
