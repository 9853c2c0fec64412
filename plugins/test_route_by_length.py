import pytest

import route_by_length
from llmhost.core.request import GenerationRequest, Kind
from llmhost.hooks.call import ask
from llmhost.hooks.registry import Plugins


async def chosen(
    model: str, text: str, candidates: tuple[str, ...] = ("small", "large")
) -> str | None:
    request = GenerationRequest(request_id="r", kind=Kind.COMPLETION, model=model, prompts=(text,))
    plugins = Plugins.of(route_by_length)
    answer = await ask(plugins, "route_request", request=request, candidates=candidates)
    return None if answer is None else answer.opinion


@pytest.mark.parametrize(("chars", "model"), [(2_000, "small"), (2_001, "large")])
async def test_the_length_of_a_prompt_chooses_the_model(chars: int, model: str) -> None:
    assert await chosen("auto", "x" * chars) == model


async def test_a_model_that_was_asked_for_by_name_stays() -> None:
    assert await chosen("large", "short") is None


async def test_a_model_that_this_caller_may_not_use_is_not_chosen() -> None:
    assert await chosen("auto", "short", candidates=("large",)) is None
