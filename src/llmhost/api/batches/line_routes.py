"""Which routes the lines of a batch may name, and how each reads a body and writes an answer."""

from collections.abc import Mapping
from functools import partial

from llmhost.api.dialect import ANTHROPIC_PATH
from llmhost.api.messages import MESSAGES
from llmhost.api.moderation_wire import MODERATIONS_PATH, parse_moderation
from llmhost.api.moderations import moderation_body, with_guard
from llmhost.api.openai import parse_chat, parse_completion, whole_body
from llmhost.api.pooling import POOLING, pooled_body
from llmhost.api.responses.desk import Desk
from llmhost.api.responses.lines import line_body, parse_line
from llmhost.api.responses.prepare import prepare
from llmhost.core.request import Kind
from llmhost.deploy.catalogue import Catalogue
from llmhost.pipeline.batches.attempt import LineRoute
from llmhost.pipeline.processor import Processor

_EMBEDDINGS = next(route for route in POOLING if route.kind is Kind.EMBEDDING)


def line_routes(
    processor: Processor, responses: Desk, catalogue: Catalogue
) -> Mapping[str, LineRoute]:
    """By endpoint. A route that is to run in batches is named here."""
    return {
        "/v1/chat/completions": LineRoute(Kind.CHAT, parse_chat, whole_body),
        "/v1/completions": LineRoute(Kind.COMPLETION, parse_completion, whole_body),
        "/v1/embeddings": LineRoute(Kind.EMBEDDING, _EMBEDDINGS.parse, pooled_body),
        MODERATIONS_PATH: LineRoute(
            Kind.MODERATION, parse_moderation, moderation_body, partial(with_guard, catalogue)
        ),
        "/v1/responses": LineRoute(
            Kind.RESPONSE, parse_line, line_body, partial(prepare, processor, responses)
        ),
        ANTHROPIC_PATH: MESSAGES,
    }
