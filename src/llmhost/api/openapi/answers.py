"""OpenAI's answers as structs: what `api/frames.py`, `report.py`, `calls.py` and `pooling.py` write by hand.

Nothing is made of them; a test holds them against what a server says.
"""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

Dollars = str
"""A decimal."""


class Refusal(msgspec.Struct, kw_only=True):
    """What was wrong. `code` is for programs, `param` is the field that is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, kw_only=True):
    """A refusal or a failure."""

    error: Refusal


class CostPools(msgspec.Struct, kw_only=True):
    gpu_compute: Dollars
    infrastructure: Dollars
    model_loading: Dollars
    safety_moderation: Dollars


class CostFacts(msgspec.Struct, kw_only=True):
    """What an answer cost the operator, in dollars."""

    total_cost_usd: Dollars
    breakdown: CostPools
    cost_per_input_token: Dollars
    cost_per_output_token: Dollars
    model_loading_is_provisional: bool


class PromptDetails(msgspec.Struct, kw_only=True):
    cached_tokens: int


class OutputDetails(msgspec.Struct, kw_only=True):
    reasoning_tokens: int
    accepted_prediction_tokens: int | UnsetType = UNSET
    rejected_prediction_tokens: int | UnsetType = UNSET


class TokenUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: OutputDetails
    cost: CostFacts | UnsetType = UNSET


class LikelyToken(msgspec.Struct, kw_only=True):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(LikelyToken, kw_only=True):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(msgspec.Struct, kw_only=True):
    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(msgspec.Struct, kw_only=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class RankedToken(msgspec.Struct, kw_only=True):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, RankedToken] | None]


class CalledFunction(msgspec.Struct, kw_only=True):
    """`arguments` is JSON as text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(msgspec.Struct, kw_only=True):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: list[Any]
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


EndReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: EndReason | None
    token_ids: list[int] | UnsetType = UNSET


class TextChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: EndReason | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class _Answer(msgspec.Struct, kw_only=True):
    id: str
    created: int
    model: str
    service_tier: Literal["default", "flex"]
    system_fingerprint: None
    usage: TokenUsage


class ChatCompletion(_Answer, kw_only=True):
    """A whole answer of a chat."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class TextCompletion(_Answer, kw_only=True):
    """A whole completion."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class PromptUsage(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    total_tokens: int
    cost: CostFacts | UnsetType = UNSET


class EmbeddingRow(msgspec.Struct, kw_only=True):
    """A vector, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingList(msgspec.Struct, kw_only=True):
    object: Literal["list"]
    data: list[EmbeddingRow]
    model: str
    usage: PromptUsage


class RankedText(msgspec.Struct, kw_only=True):
    text: str


class RankedDocument(msgspec.Struct, kw_only=True):
    index: int
    relevance_score: float
    document: RankedText | UnsetType = UNSET


class Ranking(msgspec.Struct, kw_only=True):
    """The likeliest document first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: PromptUsage


class _Listed(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["list"]
    created: int
    model: str
    usage: PromptUsage


class ScoredPair(msgspec.Struct, kw_only=True):
    index: int
    object: Literal["score"]
    score: float


class Scores(_Listed, kw_only=True):
    data: list[ScoredPair]


class ClassifiedText(msgspec.Struct, kw_only=True):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classes(_Listed, kw_only=True):
    data: list[ClassifiedText]


class JudgedUsage(msgspec.Struct, kw_only=True):
    """What judging took, for those who asked for its cost."""

    prompt_tokens: int
    total_tokens: int
    cost: CostFacts


class JudgedText(msgspec.Struct, kw_only=True):
    """What was found in one text, by category; categories that the model doesn't know have no input types."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[Literal["text"]]]


class Moderations(msgspec.Struct, kw_only=True):
    """One result for each text."""

    id: str
    model: str
    results: list[JudgedText]
    usage: JudgedUsage | UnsetType = UNSET


class DecidedPredicate(msgspec.Struct, kw_only=True, tag_field="type", tag="predicate"):
    name: str | None
    probability: float


class ChoiceShare(msgspec.Struct, kw_only=True):
    value: str | bool
    probability: float


class DecidedChoice(msgspec.Struct, kw_only=True, tag_field="type", tag="choice"):
    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceShare]


class LevelShare(msgspec.Struct, kw_only=True):
    label: str
    value: int
    probability: float


class DecidedScore(msgspec.Struct, kw_only=True, tag_field="type", tag="score"):
    """The mean of the levels, which count from 0, weighted by how likely they are."""

    name: str | None
    score: float
    confidence: float
    probabilities: list[LevelShare]


class DecidedInput(msgspec.Struct, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int


class DecisionUsage(msgspec.Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: DecidedInput
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int
    cost: CostFacts | UnsetType = UNSET


class DecisionAnswer(msgspec.Struct, kw_only=True):
    """Answers in the order of the questions."""

    model: str
    answers: list[DecidedPredicate | DecidedChoice | DecidedScore]
    usage: DecisionUsage


class TokenPiece(msgspec.Struct, kw_only=True):
    id: int
    piece: str | list[int]


class Tokens(msgspec.Struct, kw_only=True):
    """llama.cpp's answers have `tokens` alone."""

    tokens: list[int | TokenPiece]
    count: int | UnsetType = UNSET
    max_model_len: int | UnsetType = UNSET
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(msgspec.Struct, kw_only=True):
    prompt: str
    content: str


class Rendered(msgspec.Struct, kw_only=True):
    prompt: str


class EstimateAnswer(msgspec.Struct, kw_only=True):
    """What a request would take and may cost."""

    object: Literal["estimate"]
    model: str
    endpoint: str
    prompt_tokens: int
    choices: int
    max_output_tokens: int
    price_version: str | None
    currency: Literal["USD"]
    min_cost_usd: Dollars
    prompt_cost_usd: Dollars
    max_cost_usd: Dollars
    fits_budget: bool | None
    budget_remaining_usd: Dollars | None


class ModelObject(msgspec.Struct, kw_only=True):
    """A model or adapter, with the names that OpenAI's, vLLM's and Anthropic's clients read."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    version: int | str
    parent: str | None
    type: Literal["model"]
    display_name: str
    created_at: str
    lifecycle: str
    max_model_len: int | None
    max_input_tokens: int | None


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"]
    data: list[ModelObject]
    has_more: bool
    first_id: str | UnsetType = UNSET
    last_id: str | UnsetType = UNSET


class Status(msgspec.Struct, kw_only=True):
    status: Literal["ok", "ready"]
