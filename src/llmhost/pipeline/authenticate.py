"""Stage 1: who asks."""

import re
from collections.abc import Mapping
from contextvars import ContextVar

from llmhost.core.caller import LOCAL_CALLER, Caller
from llmhost.core.errors import InvalidValue, Unauthenticated
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.hooks.spec import Refusal
from llmhost.pipeline.context import RequestContext
from llmhost.tenants.keys import KeyStore
from llmhost.tenants.roles import Right, check_right

RUN_HEADER = "x-llmhost-run"
_RUN = re.compile(r"[\x21-\x7e]{1,128}")

is_local: ContextVar[bool] = ContextVar("llmhost_is_local", default=True)
"""Whether the call comes from a program of this machine: the HTTP edge says so before anything else looks at it."""


def run_of(headers: Mapping[str, str]) -> str | None:
    """The run that a request says it is part of; None too for one that can't be, see `check_run`."""
    sent = headers.get(RUN_HEADER)
    return sent if sent is not None and _RUN.fullmatch(sent) else None


def check_run(headers: Mapping[str, str]) -> None:
    """Raises InvalidValue for a run that can't be one: it would be counted with others, or not at all."""
    if headers.get(RUN_HEADER) is not None and run_of(headers) is None:
        raise InvalidValue(
            f"The header {RUN_HEADER} may hold 1 to 128 printable ASCII characters without spaces.",
            param=RUN_HEADER,
        )


class Authenticate:
    """A plugin's opinion first, then the key table. Without any key, a loopback server serves the local tenant."""

    def __init__(self, keys: KeyStore, plugins: Plugins, *, is_loopback: bool) -> None:
        self._keys = keys
        self._plugins = plugins
        self._is_loopback = is_loopback

    async def __call__(self, context: RequestContext) -> None:
        context.caller = await self.identify(context.bearer, context.headers)

    async def identify(self, bearer: str | None, headers: Mapping[str, str]) -> Caller:
        """Who holds this bearer, to ask models. Raises Unauthenticated, or Forbidden for a role that may not."""
        caller = await self._find(bearer, headers)
        check_right(caller, Right.INFER)
        return caller

    def check_still(self, context: RequestContext) -> None:
        """Raises Unauthenticated for a key that ended while its request was on the way, or waited for something."""
        self._keys.check_still(context.known_caller, context.bearer)

    def ends_ns(self, bearer: str | None) -> int | None:
        """When a valid key ends by itself; None for never."""
        return self._keys.ends_ns(bearer)

    async def _find(self, bearer: str | None, headers: Mapping[str, str]) -> Caller:
        if self._plugins.has("identify_caller"):
            answer = await ask(self._plugins, "identify_caller", api_key=bearer, headers=headers)
            if answer is not None:
                if isinstance(answer.opinion, Refusal):
                    raise answer.opinion.as_error(Unauthenticated)
                caller: Caller = answer.opinion
                return caller
        if self._keys.has_keys:
            return self._keys.find(bearer)
        if self._is_loopback and is_local.get():
            return LOCAL_CALLER
        why = "what comes by a proxy needs" if self._is_loopback else "this server needs"
        raise Unauthenticated(
            f"No API key exists yet, and {why} one. Make it with: llmhost keys create --org NAME"
        )
