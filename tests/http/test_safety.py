"""Rules as OpenAI's own client meets them, on a real server."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from server_process import Node

from llmhost.testing import fake_chat_words

ASK: list[Any] = [{"role": "user", "content": "say something"}]
WORDS = fake_chat_words(ASK, 40).split()
SETTINGS = f"""
[models.echo]
engine = "fake"
[safety]
window_chars = 16
blocked_words = ["{WORDS[20]}"]
redact = ["words"]
block = ["secret"]
warn = ["pii"]
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    node = Node(tmp_path_factory.mktemp("safety"), SETTINGS)
    node.start()
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client
    node.close()


def test_a_secret_in_a_prompt_is_refused(client: openai.OpenAI) -> None:
    secret = [{"role": "user", "content": "use ghp_" + "a1B2c3D4e5F6" * 3}]

    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="echo", messages=secret, max_tokens=4, stream=True)  # type: ignore[call-overload]

    assert refused.value.code == "content_policy_violation"
    assert "secret.github_token" in refused.value.message


def test_a_streamed_answer_has_a_mark_in_the_place_of_a_word(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo", messages=ASK, max_tokens=40, stream=True, logprobs=True
    )
    choices = [chunk.choices[0] for chunk in stream if chunk.choices]
    said = "".join(choice.delta.content or "" for choice in choices)
    tokens = [each.token for c in choices if c.logprobs for each in c.logprobs.content or ()]

    assert said == " ".join(["[words]" if word == WORDS[20] else word for word in WORDS])
    assert WORDS[20] not in "".join(tokens)
    assert choices[-1].finish_reason == "length"


def test_a_warning_is_in_a_header(client: openai.OpenAI) -> None:
    mail = [{"role": "user", "content": "write to me@example.org"}]

    answer = client.chat.completions.with_raw_response.create(
        model="echo",
        messages=mail,  # type: ignore[arg-type]
        max_tokens=4,
    )

    assert answer.headers["x-llmhost-safety"] == "warn; rule=pii.email"
