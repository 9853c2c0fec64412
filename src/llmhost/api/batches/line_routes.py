"""Which routes the lines of a batch may name, and how each reads a body and writes an answer."""

from collections.abc import Mapping

from llmhost.api.openai import parse_chat, parse_completion, whole_body
from llmhost.api.pooling import POOLING, pooled_body
from llmhost.core.request import Kind
from llmhost.pipeline.batches.attempt import LineRoute

_EMBEDDINGS = next(route for route in POOLING if route.kind is Kind.EMBEDDING)

LINE_ROUTES: Mapping[str, LineRoute] = {
    "/v1/chat/completions": LineRoute(Kind.CHAT, parse_chat, whole_body),
    "/v1/completions": LineRoute(Kind.COMPLETION, parse_completion, whole_body),
    "/v1/embeddings": LineRoute(Kind.EMBEDDING, _EMBEDDINGS.parse, pooled_body),
}
"""By endpoint. A route that is to run in batches adds itself here."""
