import pytest

import route_by_length
from llmhost.config.schema.models import ModelSpec
from llmhost.testing import TestHost, make_host

MODELS = {"small": ModelSpec(engine="fake"), "large": ModelSpec(engine="fake")}


async def answered_by(host: TestHost, model: str, text: str) -> str:
    await host.say(text, model=model, max_tokens=1)
    name: str = host.entries()[-1]["model"]
    return name


@pytest.mark.parametrize(("length", "model"), [(10, "small@1"), (3_000, "large@1")])
async def test_long_prompts_go_to_the_large_model(length: int, model: str) -> None:
    async with make_host(plugins=[route_by_length], models=MODELS) as host:
        assert await answered_by(host, "auto", "x" * length) == model


async def test_a_model_asked_for_by_name_is_the_one_that_answers() -> None:
    async with make_host(plugins=[route_by_length], models=MODELS) as host:
        assert await answered_by(host, "large", "short") == "large@1"


async def test_a_key_is_not_routed_to_a_model_it_may_not_use() -> None:
    async with make_host(plugins=[route_by_length], models=MODELS) as host:
        key = await host.make_key(models=["large"])
        host.client.headers["authorization"] = f"Bearer {key}"

        assert (await host.chat("short", model="auto")).status_code == 404
