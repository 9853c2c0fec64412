"""Routes registered without reading the same functions again: each of hundreds of nodes has all of them.

Two thirds of a registration are the framework's reading of each function's signature. What it finds follows from the
code, the annotations and the defaults: functions that are alike in these share what was read once.
"""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from litestar._signature.model import SignatureModel
from litestar.utils.signature import ParsedSignature


def share_signatures() -> Callable[[], None]:
    """From now on; returns what ends it."""
    plain_read, plain_model = ParsedSignature.from_fn, SignatureModel.create
    read: dict[CodeType, tuple[Any, ParsedSignature]] = {}
    models: dict[int, tuple[Any, type[SignatureModel]]] = {}

    def from_fn(fn: Any, signature_namespace: dict[str, Any]) -> ParsedSignature:
        if not isinstance(fn, FunctionType) or hasattr(fn, "__wrapped__"):
            return plain_read(fn, signature_namespace)
        facts = (fn.__annotations__, fn.__defaults__, fn.__kwdefaults__, signature_namespace)
        known = read.get(fn.__code__)
        if known is None or known[0] != facts:
            known = read[fn.__code__] = facts, plain_read(fn, signature_namespace)
        return known[1]

    def create(*, parsed_signature: ParsedSignature, **more: Any) -> type[SignatureModel]:
        names = [getattr(more["fn"], name, None) for name in ("__name__", "__module__")]
        facts = (parsed_signature, names, {**more, "fn": None})
        known = models.get(id(parsed_signature))
        if known is None or known[0] != facts:
            model = plain_model(parsed_signature=parsed_signature, **more)
            known = models[id(parsed_signature)] = facts, model
        return known[1]

    def end() -> None:
        ParsedSignature.from_fn = plain_read  # type: ignore[method-assign]
        SignatureModel.create = plain_model  # type: ignore[method-assign]

    ParsedSignature.from_fn = from_fn  # type: ignore[method-assign, assignment]
    SignatureModel.create = create  # type: ignore[method-assign, assignment]
    return end
