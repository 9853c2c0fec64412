"""The framework's request, which says of a body what `loose.read_body` says of one on a hot route."""

from typing import Any

from litestar import Request

from llmhost.core.errors import BadRequest


class JsonRequest(Request[Any, Any, Any]):
    """Raises BadRequest, where the framework would fail, for a body that its decoder can't get through."""

    async def json(self) -> Any:
        try:
            return await super().json()
        except UnicodeDecodeError as error:
            raise BadRequest(f"The body is not valid JSON: {error}") from None
        except RecursionError:
            raise BadRequest("The body is nested too deeply.") from None
