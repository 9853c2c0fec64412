"""LangChain's own standard tests, for pytest in an environment that has them: what `LLMHOST_URL` serves, by `ROUTE`."""

import os
from typing import Any

from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

URL = os.environ["LLMHOST_URL"] + "/v1"
KEY = os.environ.get("LLMHOST_KEY", "none")


class TestChat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "tiny",
            "base_url": URL,
            "api_key": KEY,
            "temperature": 0,
            "max_retries": 0,
            "stream_usage": True,
            "use_responses_api": os.environ["ROUTE"] == "responses",
        }

    @property
    def has_tool_choice(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "gpt-4o-mini"


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[OpenAIEmbeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "model": "tiny-embed",
            "base_url": URL,
            "api_key": KEY,
            "check_embedding_ctx_length": False,
        }
