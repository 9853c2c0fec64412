"""What a caller thinks that the answer is: it changes no answer, and usage says how often it was right."""

import json
from typing import Any

import msgspec
import pytest
from tests.unit.api.test_custom_tools import parsed

from llmhost.config.schema.models import ModelSpec, SpeculationSettings
from llmhost.core.errors import InvalidValue
from llmhost.testing import FAKE_MODEL, fake_chat_words, make_host

GUESSING = msgspec.structs.replace(FAKE_MODEL, speculation=SpeculationSettings(method="ngram"))
SAID = fake_chat_words([{"role": "user", "content": "hello"}], 40)


def details(usage: dict[str, Any]) -> tuple[int, int]:
    told = usage["completion_tokens_details"]
    return told["accepted_prediction_tokens"], told["rejected_prediction_tokens"]


@pytest.mark.parametrize("model", [GUESSING, FAKE_MODEL], ids=["guesses", "does not"])
@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_is_the_same_and_its_guesses_are_told(
    model: ModelSpec, is_stream: bool
) -> None:
    body: dict[str, Any] = {"max_tokens": 40, "prediction": {"type": "content", "content": SAID}}
    if is_stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    async with make_host(models={"fake": model}) as host:
        response = await host.chat("hello", **body)
        plain = await host.chat("hello", max_tokens=40)

    if is_stream:
        chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if "{" in line]
        text = "".join(c["delta"].get("content", "") for e in chunks for c in e["choices"])
        usage = chunks[-1]["usage"]
    else:
        text, usage = response.json()["choices"][0]["message"]["content"], response.json()["usage"]
    assert text == SAID
    right, wrong = details(usage)
    assert wrong == 0
    assert 0 <= right < usage["completion_tokens"] == 40
    assert (right > 0) is (model is GUESSING)
    assert "accepted_prediction_tokens" not in plain.json()["usage"]["completion_tokens_details"]


def test_a_prediction_is_a_text_or_its_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert parsed(prediction={"type": "content", "content": "ab"}).prediction == "ab"
    assert parsed(prediction={"type": "content", "content": parts}).prediction == "ab"
    with pytest.raises(InvalidValue) as refused:
        parsed(prediction={"type": "content", "content": [{"type": "image_url"}]})
    assert refused.value.param == "prediction.content[0]"
    with pytest.raises(InvalidValue) as refused:
        parsed(prediction={"type": "guess", "content": "a"})
    assert refused.value.param == "prediction.type"
