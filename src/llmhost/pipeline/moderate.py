"""Requests for moderation: texts, and how sure a model is of each category of harm in each of them."""

from collections.abc import Sequence

from llmhost.config.schema.models import ModelSpec
from llmhost.core.output import Delta
from llmhost.core.ports import RunnerFacts, Tokenizer
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.guarding import Asking, Scores
from llmhost.pipeline.terms import Terms
from llmhost.safety.guards.conversation import alone


def moderation_terms(
    request: GenerationRequest,
    spec: ModelSpec,
    facts: RunnerFacts,
    tokenizer: Tokenizer,
    longest_tokens: int,
) -> Terms:
    """Raises InvalidValue for a model that is no guard, and ContextTooLong for what it can't read."""
    params = [param_of(request, place) for place in range(len(request.prompts))]
    texts = [alone(text) for text in request.prompts if isinstance(text, str)]
    asking = Asking(request.model, spec, facts, tokenizer, longest_tokens, params)
    sitting = asking.sitting(texts)
    return Terms(
        sitting.prompts, sitting.sampling, frozenset(), poolings=sitting.poolings, sitting=sitting
    )


def param_of(request: GenerationRequest, place: int) -> str:
    """The name of a text's parameter: `input[3]`."""
    return "input" if len(request.prompts) == 1 else f"input[{place}]"


def scores(context: RequestContext, deltas: Sequence[Delta]) -> list[Scores]:
    """Of each text, by category. Raises SafetyUnavailable where a guard's answer can't be read."""
    sitting = context.known_terms.sitting
    assert sitting is not None
    told: dict[int, list[Delta]] = {}
    for delta in deltas:
        told.setdefault(delta.index, []).append(delta)
    return sitting.scores(told)


def categories(context: RequestContext) -> frozenset[str]:
    """All that the model may find."""
    sitting = context.known_terms.sitting
    assert sitting is not None
    return sitting.categories
