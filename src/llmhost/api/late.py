"""Routes that a framework registers, which takes it a third of a second for all of ours."""

from collections.abc import Callable
from functools import cached_property

from litestar.types import ASGIApp, Receive, Scope, Send


class LateRoutes:
    """Registered by the first request that needs one, or before: whoever serves does not let a request wait."""

    def __init__(self, make: Callable[[], ASGIApp]) -> None:
        self._make = make

    @cached_property
    def _app(self) -> ASGIApp:
        return self._make()

    def register(self) -> None:
        """All of them, now."""
        _ = self._app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
