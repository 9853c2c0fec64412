"""Stage 1: who asks."""

from collections.abc import Mapping

from llmhost.core.errors import Unauthenticated
from llmhost.core.request import LOCAL_CALLER, Caller
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins
from llmhost.hooks.spec import Refusal
from llmhost.pipeline.context import RequestContext
from llmhost.tenants.keys import KeyStore


class Authenticate:
    """A plugin's opinion first, then the key table. Without any key, a loopback server serves the local tenant."""

    def __init__(self, keys: KeyStore, plugins: Plugins, *, is_loopback: bool) -> None:
        self._keys = keys
        self._plugins = plugins
        self._is_loopback = is_loopback

    async def __call__(self, context: RequestContext) -> None:
        context.caller = await self.identify(context.bearer, context.headers)

    async def identify(self, bearer: str | None, headers: Mapping[str, str]) -> Caller:
        """Who holds this bearer. Raises Unauthenticated."""
        answer = await ask(self._plugins, "identify_caller", api_key=bearer, headers=headers)
        if answer is not None:
            if isinstance(answer.opinion, Refusal):
                raise answer.opinion.as_error(Unauthenticated)
            caller: Caller = answer.opinion
            return caller
        if self._keys.has_keys:
            return self._keys.find(bearer)
        if self._is_loopback:
            return LOCAL_CALLER
        raise Unauthenticated(
            "This server needs an API key, and none exists yet. Make one with: llmhost keys create --org NAME"
        )
