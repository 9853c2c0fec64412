"""Where a route's parameters come from, as the framework's own names say it.

Its own look through all that may be said of a parameter whenever a type is made with them, for a hash. All routes
together ask for five hundred.
"""

from typing import Annotated, TypeAlias, TypeVar

from litestar import params

T = TypeVar("T")


class QueryParameter(params.QueryParameter):
    """A parameter of the query; `name` where it has another one there."""

    def __hash__(self) -> int:
        return hash(type(self))


class _PathParameter(params.PathParameter):
    def __hash__(self) -> int:
        return hash(type(self))


class _Body(params.BodyKwarg):
    def __hash__(self) -> int:
        return hash(type(self))


FromQuery: TypeAlias = Annotated[T, QueryParameter()]
FromPath: TypeAlias = Annotated[T, _PathParameter()]
JSONBody: TypeAlias = Annotated[T, _Body()]
