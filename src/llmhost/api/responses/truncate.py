"""`truncation: auto`: turns are left out from the beginning until the rest fits the model.

A turn is a user's message and all that follows before the next one, so a call is never left without its result.
Instructions at the beginning stay, and so does the last turn.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from llmhost.api.responses.turns import INSTRUCTING
from llmhost.core.request import GenerationRequest

Message = dict[str, Any]
Measure = Callable[[GenerationRequest], Awaitable[tuple[int, int]]]
"""A request -> the tokens of its prompt, and those that the model takes in all."""

ROOM_TOKENS = 256
"""What an answer is left that does not say how long it may be, or half of the model where that is less."""


async def shortened(request: GenerationRequest, measure: Measure) -> GenerationRequest:
    """The request itself where it fits, or where its last turn alone does not."""
    first, turns = turns_of(request.messages)
    least, most = 0, len(turns) - 1  # turns that are left out
    if await _fits(request, measure):
        return request
    while least < most:
        middle = (least + most) // 2
        if await _fits(_without(request, first, turns[middle:]), measure):
            most = middle
        else:
            least = middle + 1
    return _without(request, first, turns[least:])


async def _fits(request: GenerationRequest, measure: Measure) -> bool:
    prompt_tokens, longest_tokens = await measure(request)
    wanted = min(request.max_tokens or ROOM_TOKENS, longest_tokens // 2)
    return prompt_tokens + wanted <= longest_tokens


def _without(
    request: GenerationRequest, first: Sequence[Message], turns: Sequence[Sequence[Message]]
) -> GenerationRequest:
    messages = (*first, *(message for turn in turns for message in turn))
    return replace(request, messages=messages)


def turns_of(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Instructions before the first turn, and all turns, of which there is at least one."""
    first: list[Message] = []
    turns: list[list[Message]] = []
    for message in messages:
        if not turns and message["role"] in INSTRUCTING:
            first.append(message)
        elif not turns or message["role"] == "user":
            turns.append([message])
        else:
            turns[-1].append(message)
    return first, turns or [[]]
