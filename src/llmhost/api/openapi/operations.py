"""The routes that are plain ASGI, and so unknown to litestar.

Each family of routes has its tuple here, or says its own in its package and is named in `ALL`.
"""

from collections.abc import Mapping
from typing import Any

from llmhost.api.batches.wire import NewBatch
from llmhost.api.bodies import ChatBody, CompletionBody
from llmhost.api.decision_wire import DECISIONS_PATH, DecisionBody
from llmhost.api.message_batches.wire import PATH as BATCHES_PATH
from llmhost.api.message_batches.wire import NewMessageBatch
from llmhost.api.messages_bodies import MessagesBody
from llmhost.api.moderation_wire import MODERATIONS_PATH, ModerationBody
from llmhost.api.openapi.answers import (
    ChatCompletion,
    Classes,
    DecisionAnswer,
    Detokenized,
    EmbeddingList,
    EstimateAnswer,
    ModelList,
    ModelObject,
    Moderations,
    Ranking,
    Rendered,
    Scores,
    Status,
    TextCompletion,
    Tokens,
)
from llmhost.api.openapi.kept_answers import (
    ConversationObject,
    DeletedConversation,
    DeletedResponse,
    ItemPage,
)
from llmhost.api.openapi.message_answers import CountedTokens, MessageAnswer
from llmhost.api.openapi.ollama_operations import OLLAMA, OLLAMA_TOLD
from llmhost.api.openapi.operation import IDEMPOTENCY, Operation
from llmhost.api.openapi.queries import NewFile
from llmhost.api.openapi.response_answers import CompactionAnswer, InputTokens, ResponseAnswer
from llmhost.api.pooling_wire import ClassifyBody, EmbeddingBody, RerankBody, ScoreBody
from llmhost.api.responses.bodies import ResponseBody
from llmhost.api.responses.state_routes import NewConversation, NewItems
from llmhost.api.tokenize import DetokenizeBody, TokenizeBody

GENERATION = (
    Operation(
        paths=("/v1/chat/completions",),
        summary="Answer a chat",
        about="OpenAI's chat completions.",
        tag="chat",
        body=ChatBody,
        required=("model", "messages"),
        answer=ChatCompletion,
        streams=True,
        may_wait=True,
        parameters=(IDEMPOTENCY,),
    ),
    Operation(
        paths=("/v1/completions",),
        summary="Go on with a text",
        about="OpenAI's completions.",
        tag="completions",
        body=CompletionBody,
        required=("model", "prompt"),
        answer=TextCompletion,
        streams=True,
        may_wait=True,
        parameters=(IDEMPOTENCY,),
    ),
    Operation(
        paths=("/v1/messages",),
        summary="Answer a chat, in Anthropic's words",
        tag="messages",
        body=MessagesBody,
        required=("model", "max_tokens", "messages"),
        may_wait=True,
        answer=MessageAnswer,
        streams=True,
        parameters=(IDEMPOTENCY,),
        is_anthropic=True,
    ),
    Operation(
        paths=("/v1/messages/count_tokens",),
        summary="Count the tokens of a chat, in Anthropic's words",
        tag="messages",
        body=MessagesBody,
        body_name="CountedBody",
        required=("model", "messages"),
        answer=CountedTokens,
        is_anthropic=True,
    ),
)

RESPONSES = (
    Operation(
        paths=("/v1/responses",),
        summary="Answer with a response",
        about="OpenAI's responses: answers made of items, which the server keeps.",
        tag="responses",
        body=ResponseBody,
        required=("model", "input"),
        answer=ResponseAnswer,
        streams=True,
        may_wait=True,
        parameters=(IDEMPOTENCY,),
    ),
    Operation(
        paths=("/v1/responses/compact",),
        summary="Summarise a conversation as one item",
        tag="responses",
        body=ResponseBody,
        required=("model", "input"),
        answer=CompactionAnswer,
        parameters=(IDEMPOTENCY,),
    ),
    Operation(
        paths=("/v1/responses/input_tokens",),
        summary="Count the tokens of a response's input",
        tag="responses",
        body=ResponseBody,
        required=("model", "input"),
        answer=InputTokens,
    ),
)

PAIRS = {
    "anyOf": [
        {
            "required": [one, other],
            "properties": {
                one: {"type": ["string", "array"]},
                other: {"type": ["string", "array"]},
            },
        }
        for one, other in (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))
    ]
}

POOLING = (
    Operation(
        paths=("/v1/embeddings",),
        summary="Vectors of texts",
        tag="embeddings",
        body=EmbeddingBody,
        required=("model", "input"),
        answer=EmbeddingList,
        may_wait=True,
        parameters=(IDEMPOTENCY,),
    ),
    Operation(
        paths=("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking"),
        summary="Documents by their relevance for a query",
        tag="ranking",
        body=RerankBody,
        required=("model", "query", "documents"),
        answer=Ranking,
        parameters=(IDEMPOTENCY,),
    ),
    Operation(
        paths=("/v1/score", "/score"),
        summary="How well texts go together",
        tag="ranking",
        body=ScoreBody,
        required=("model",),
        more_of_body=PAIRS,
        answer=Scores,
        parameters=(IDEMPOTENCY,),
    ),
    Operation(
        paths=("/v1/classify", "/classify"),
        summary="Labels of texts",
        tag="ranking",
        body=ClassifyBody,
        required=("model", "input"),
        answer=Classes,
        parameters=(IDEMPOTENCY,),
    ),
)

DECISIONS = (
    Operation(
        paths=(DECISIONS_PATH,),
        summary="How likely the answers to questions about an input are",
        tag="decisions",
        body=DecisionBody,
        required=("model", "input", "questions"),
        answer=DecisionAnswer,
        parameters=(IDEMPOTENCY,),
    ),
)

MODERATIONS = (
    Operation(
        paths=(MODERATIONS_PATH,),
        summary="What is harmful in texts",
        about="OpenAI's moderations, answered by a classifier or a guard model.",
        tag="moderations",
        body=ModerationBody,
        required=("input",),
        answer=Moderations,
        parameters=(IDEMPOTENCY,),
    ),
)

GIVEN = ("prompt", "content", "messages")

TOKENS = (
    Operation(
        paths=("/v1/tokenize", "/tokenize"),
        summary="A text or a chat in a model's tokens",
        about="One of `prompt`, `content` and `messages` says of what; with `messages` go the other fields of a chat.",
        tag="tokens",
        body=TokenizeBody,
        required=("model",),
        more_of_body={
            "oneOf": [
                {
                    "required": [name],
                    "properties": {name: {"type": ["string", "array"]}},
                }
                for name in GIVEN
            ]
        },
        answer=Tokens,
    ),
    Operation(
        paths=("/v1/detokenize", "/detokenize"),
        summary="The text of tokens",
        tag="tokens",
        body=DetokenizeBody,
        required=("model", "tokens"),
        answer=Detokenized,
    ),
    Operation(
        paths=("/v1/apply-template", "/apply-template"),
        summary="A chat as its model's template writes it",
        tag="tokens",
        body=ChatBody,
        required=("model", "messages"),
        answer=Rendered,
    ),
)

ESTIMATED = ("ChatBody", "CompletionBody", "EmbeddingBody", "RerankBody")

ESTIMATES = (
    Operation(
        paths=("/v1/estimate",),
        summary="What a request would take and may cost, without running it",
        about="It takes the body of any route that asks a model, with its `endpoint` beside where it can't be told.",
        tag="estimates",
        more_of_body={"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ESTIMATED]},
        answer=EstimateAnswer,
    ),
)

ALL: tuple[Operation, ...] = (
    *(*GENERATION, *RESPONSES, *POOLING, *DECISIONS, *MODERATIONS),
    *(*TOKENS, *OLLAMA, *ESTIMATES),
)

_RESPONSE = "/v1/responses/{response_id}"
_CONVERSATION = "/v1/conversations/{conversation_id}"

TOLD: Mapping[str, Any] = {
    "/v1/models": ModelList,
    "/v1/models/{model}": ModelObject,
    "/health": Status,
    "/ready": Status,
    f"get {_RESPONSE}": ResponseAnswer,
    f"delete {_RESPONSE}": DeletedResponse,
    f"post {_RESPONSE}/cancel": ResponseAnswer,
    f"get {_RESPONSE}/input_items": ItemPage,
    "post /v1/conversations": ConversationObject,
    f"get {_CONVERSATION}": ConversationObject,
    f"post {_CONVERSATION}": ConversationObject,
    f"delete {_CONVERSATION}": DeletedConversation,
    f"get {_CONVERSATION}/items": ItemPage,
    f"post {_CONVERSATION}/items": ItemPage,
    f"get {_CONVERSATION}/items/{{item_id}}": dict[str, Any],
    f"delete {_CONVERSATION}/items/{{item_id}}": ConversationObject,
    **OLLAMA_TOLD,
}
"""What litestar's routes answer whose handlers make plain objects, by path where that has one method."""

TAKEN: Mapping[str, tuple[str, Any]] = {
    "post /v1/batches": ("application/json", NewBatch),
    f"post {BATCHES_PATH}": ("application/json", NewMessageBatch),
    "post /v1/conversations": ("application/json", NewConversation),
    f"post {_CONVERSATION}/items": ("application/json", NewItems),
    "post /v1/files": ("multipart/form-data", NewFile),
}
"""Bodies that handlers read themselves: type and struct."""

KEYED = frozenset(
    {
        "post /v1/batches",
        f"post {BATCHES_PATH}",
        "post /v1/files",
        "post /v1/conversations",
        f"post {_CONVERSATION}/items",
    }
)
"""Those of litestar's routes that take an idempotency key."""

BARE = frozenset({"post /v1/conversations"})
"""Of these, those that do without."""
