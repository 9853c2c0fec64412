"""Requests for decisions: questions about one conversation, each with fixed answers, and how likely each answer is.

Each answer is a sequence of which nothing is drawn: the conversation, the question, the answer. The conversation is the
beginning of all of them, token by token, so that the prefix cache has it computed once, and a question once for all its
answers. An answer's log probability is the sum of its tokens'; a question's probabilities are those sums' shares.
"""

import math
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from llmhost.core.errors import BadRequest, ContextTooLong, InvalidValue
from llmhost.core.output import Delta
from llmhost.core.ports import Tokenizer
from llmhost.core.request import GenerationRequest, Question
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import SequenceSpec
from llmhost.pipeline.context import RequestContext
from llmhost.pipeline.pacing import PacedEngine
from llmhost.pipeline.terms import Terms

BATCHES_AHEAD = 2
"""Full batches of one request that are with the engine at once."""
MAX_TOKENS = 8_000_000
"""Of all sequences of a request together, shared ones counted in each: some 64 MB."""
WITHOUT_THOUGHTS: dict[str, Any] = {"enable_thinking": False, "thinking": False}
BETWEEN = "\n\n"

Ids = tuple[int, ...]
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around every question, in the model's own form."""

    head: Ids
    tail: str
    end: int | None
    """The token that ends an answer; None where the model has none."""


def decision_terms(request: GenerationRequest, tokenizer: Tokenizer, longest_tokens: int) -> Terms:
    """Render and tokenise. Raises BadRequest that names the question."""
    frame = _frame(request.messages, tokenizer)
    prompts: list[Ids] = []
    shared: list[int] = []
    answers: list[int] = []
    for place, question in enumerate(request.questions):
        at = f"questions[{place}]"
        asked = (*frame.head, *_encode(question.text + frame.tail, tokenizer))
        for number, ids in enumerate(_answers(question, frame, tokenizer, at)):
            prompts.append((*asked, *ids))
            shared.append(len(asked) if number else len(frame.head) if place else 0)
            answers.append(len(ids))
        _check(prompts, len(frame.head), longest_tokens, at)
    return Terms(
        tuple(prompts), Sampling(), frozenset(), shared=tuple(shared), answers=tuple(answers)
    )


def _frame(messages: Sequence[Message], tokenizer: Tokenizer) -> Frame:
    """A question belongs to the last message where that is a user's: many templates take none but turns that
    alternate."""
    mark = f"question{secrets.token_hex(12)}"
    *before, last = messages
    if last["role"] == "user":
        asking = [*before, {**last, "content": f"{last['content']}{BETWEEN}{mark}"}]
    else:
        asking = [*messages, {"role": "user", "content": mark}]
    text = tokenizer.render_chat(asking, **WITHOUT_THOUGHTS)
    head, found, tail = text.partition(mark)
    if not found or mark in tail:
        raise BadRequest(
            "This model's chat template does not repeat a question as it is, so it can't be asked for decisions.",
            param="model",
        )
    if (thoughts := tokenizer.marks.thoughts) is not None and tokenizer.begins_with_thoughts(
        _encode(text, tokenizer)
    ):
        tail += f"{BETWEEN}{thoughts[1]}{BETWEEN}"  # a question has an answer, and no room to think of it
    return Frame(_encode(head, tokenizer), tail, _end(asking, tokenizer))


def _end(messages: Sequence[Message], tokenizer: Tokenizer) -> int | None:
    """The token that the model's template ends an answer with, or any that does."""
    mark = f"answer{secrets.token_hex(12)}"
    try:
        text = tokenizer.render_chat(
            [*messages, {"role": "assistant", "content": mark}],
            add_generation_prompt=False,
            **WITHOUT_THOUGHTS,
        )
    except BadRequest:
        text = ""
    behind = _encode(text.partition(mark)[2], tokenizer)
    ends = [token for token in behind if token in tokenizer.eos_ids]
    return next(iter([*ends, *sorted(tokenizer.eos_ids)]), None)


def _answers(question: Question, frame: Frame, tokenizer: Tokenizer, at: str) -> list[Ids]:
    """Where one answer begins another, all of them are told apart by their ends."""
    found = [_encode(answer, tokenizer) for answer in question.answers]
    if not all(found):
        raise InvalidValue("An answer is empty: it has no tokens.", param=at)
    ordered = sorted(found)
    begins = any(b[: len(a)] == a for a, b in pairwise(ordered))
    if not begins or frame.end is None:
        return found
    return [(*ids, frame.end) for ids in found]


def _check(prompts: Sequence[Ids], head: int, longest_tokens: int, at: str) -> None:
    longest = max(map(len, prompts))
    if longest > longest_tokens:
        raise ContextTooLong(
            prompt_tokens=longest,
            max_tokens=None,
            limit_tokens=longest_tokens,
            param="input" if head >= longest_tokens else at,
        )
    if (total := sum(map(len, prompts))) > MAX_TOKENS:
        raise InvalidValue(
            f"All answers with the input before them are more than {MAX_TOKENS} tokens ({total} up to {at}). Ask fewer"
            " questions at a time.",
            param="questions",
        )


def _encode(text: str, tokenizer: Tokenizer) -> Ids:
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def decided_specs(context: RequestContext, cache_scope: str) -> Iterator[SequenceSpec]:
    """The sequences as their engine takes them, which from now on is given them some at a time."""
    request, entry, replica = context.request, context.known_deployment.entry, context.replica
    assert replica is not None
    paced = PacedEngine(replica.engine, BATCHES_AHEAD * entry.spec.max_batch_size)
    context.replica = replace(replica, engine=paced)
    terms = context.known_terms
    for index, (prompt, answer) in enumerate(zip(terms.prompts, terms.answers, strict=True)):
        scored = replace(
            terms.sampling, prompt_logprobs=0, prompt_logprobs_from=len(prompt) - answer
        )
        yield SequenceSpec(
            request_id=request.request_id,
            index=index,
            model=entry.ref,
            prompt=prompt,
            sampling=scored,
            seed=0,
            max_new_tokens=0,
            priority=request.priority,
            arrival_ns=context.arrived_ns,
            deadline_ns=context.deadline_ns,
            tenant=context.known_caller.org,
            cache_scope=cache_scope,
            adapter=context.adapter_hold.key if context.adapter_hold is not None else None,
        )


def probabilities(deltas: Iterable[Delta], context: RequestContext) -> list[list[float]]:
    """Of each question, how likely each of its answers is; together they are 1."""
    told: dict[int, list[float]] = {}
    for delta in deltas:
        if delta.prompt_logprobs:
            told.setdefault(delta.index, []).extend(one.logprob for one in delta.prompt_logprobs)
    sums = [
        math.fsum(told[index][-count:]) for index, count in enumerate(context.known_terms.answers)
    ]
    first = 0
    found: list[list[float]] = []
    for question in context.request.questions:
        last = first + len(question.answers)
        found.append(shares(sums[first:last]))
        first = last
    return found


def shares(logprobs: Sequence[float]) -> list[float]:
    """Probabilities in proportion; what can't be said at all has none, and where that is all of it each has as much."""
    most = max(logprobs)
    if most == -math.inf:
        return [1 / len(logprobs)] * len(logprobs)
    weights = [math.exp(one - most) for one in logprobs]
    whole = math.fsum(weights)
    return [weight / whole for weight in weights]
