"""The rows of docs/parameters.md, and for each a value that asks for something else than what happens without it.

A new route adds a `Route` here and a table there; every test of parameters then covers it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llmhost.api.batches.wire import NewBatch
from llmhost.api.bodies import ChatBody, CompletionBody
from llmhost.api.decision_wire import DecisionBody, parse_decision
from llmhost.api.message_batches.wire import NewMessageBatch
from llmhost.api.messages_bodies import MessagesBody
from llmhost.api.messages_wire import parse_messages
from llmhost.api.moderation_wire import MODERATIONS_PATH, ModerationBody, parse_moderation
from llmhost.api.ollama.bodies import (
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    OllamaPull,
    OllamaShow,
)
from llmhost.api.ollama.routes import PARSERS
from llmhost.api.openai import parse_chat, parse_completion
from llmhost.api.openapi.queries import NewFile
from llmhost.api.pooling import POOLING
from llmhost.api.pooling_wire import ClassifyBody, EmbeddingBody, RerankBody, ScoreBody
from llmhost.api.responses.bodies import ResponseBody
from llmhost.api.responses.wire import parse_response
from llmhost.api.tokenize import DetokenizeBody, TokenizeBody, parse_detokenize, parse_tokenize

PAGE = (Path(__file__).parents[1] / "docs" / "parameters.md").read_text()
STATES = ("honoured", "ignored", "refused")
WRONG = [[{}]]
"""A value that no parameter may have."""
TOOL = {"type": "function", "function": {"name": "f"}}
SAID = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object"}

Body = dict[str, Any]


def _rows(section: str) -> Iterator[tuple[str, str | None, str]]:
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    row = r"^\| `([\w.]+)` \|(?: ([a-z, ]+) \|)? (\w+) \|"
    for name, named, state in re.findall(row, text, re.MULTILINE):
        yield name, named or None, state


@dataclass(frozen=True)
class Route:
    """One route that takes parameters."""

    section: str
    """The heading of its tables in docs/parameters.md."""
    name: str
    """What their second column calls it; where there is no such column, anything."""
    path: str
    shape: type[msgspec.Struct]
    parse: Callable[[bytes, str, str | None], Any]
    least: Body
    """The least body that is fine, for a model of the tests' open node."""
    own: Body = field(default_factory=dict)
    """Values where they differ from those of `WANTED`."""

    def rows(self) -> dict[str, str]:
        """Each parameter's state."""
        everyone = ("both", "all", self.name)
        return {
            name: state
            for name, named, state in _rows(self.section)
            if named is None or not {*named.split(", ")}.isdisjoint(everyone)
        }

    together: tuple[tuple[str, ...], ...] = ()
    """Groups of parameters of which each means something only with the others."""
    needs: Mapping[str, Body] = field(default_factory=dict)
    """What the body must have beside some of them, or must not, which is null."""

    def value(self, name: str) -> Any:
        return self.own.get(name, WANTED.get(name, {"any": ["thing"]}))

    codes: Mapping[str, str] = field(default_factory=dict)
    """What refuses some of them by another code than the others'."""

    def beside(self, name: str) -> Body:
        """What a parameter can't be sent without."""
        others = [other for group in self.together if name in group for other in group]
        beside = {other: self.value(other) for other in others} or BESIDE.get(name, {})
        return {**beside, **self.needs.get(name, {})}

    def asked(self, name: str) -> Body:
        """What sends this parameter."""
        return {**self.beside(name), name: self.value(name)}


BESIDE: dict[str, Body] = {
    "echo": {"messages": [{"role": "assistant", "content": "so"}]},
    "parallel_tool_calls": {"tools": [TOOL], "tool_choice": "required"},
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
}

WANTED: Body = {
    "model": "parrot",
    "add_generation_prompt": False,
    "add_special_tokens": False,
    "allowed_token_ids": [7],
    "audio": {"voice": "any"},
    "bad_words": ["x"],
    "best_of": 3,
    "cache_salt": "mine",
    "chat_template_kwargs": {"enable_thinking": False},
    "continue_final_message": True,
    "data_1": "c",
    "data_2": "d",
    "dimensions": 3,
    "documents": ["e"],
    "echo": True,
    "encoding_format": "base64",
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "f"}],
    "guided_choice": ["a"],
    "guided_grammar": 'start: "a"',
    "guided_json": SCHEMA,
    "guided_regex": "a+",
    "guided_whitespace_pattern": " ",
    "ignore_eos": True,
    "include_cost": True,
    "include_reasoning": False,
    "include_stop_str_in_output": True,
    "input": "ho",
    "length_penalty": 0.5,
    "logit_bias": {"5": 1.0},
    "logprobs": 1,
    "max_chunks_per_doc": 2,
    "max_completion_tokens": 7,
    "max_tokens": 7,
    "max_tokens_per_doc": 8,
    "messages": [{"role": "user", "content": "ho"}],
    "metadata": {"user_id": "somebody"},
    "min_p": 0.1,
    "min_tokens": 3,
    "modalities": ["audio"],
    "n": 2,
    "normalize": False,
    "output_config": {"effort": "high"},
    "output_format": {"type": "json_schema", "schema": SCHEMA},
    "parallel_tool_calls": False,
    "presence_penalty": 0.5,
    "priority": 1,
    "prompt": "ho",
    "prompt_logprobs": 2,
    "queries": "e",
    "query": "ho",
    "rank_fields": ["title"],
    "reasoning_effort": "high",
    "repetition_penalty": 1.1,
    "response_format": {"type": "json_object"},
    "return_documents": False,
    "return_token_ids": True,
    "seed": 5,
    "service_tier": "flex",
    "skip_special_tokens": False,
    "stop": ["x"],
    "store": True,
    "stop_sequences": ["x"],
    "stop_token_ids": [7],
    "stream": True,
    "stream_options": {"include_usage": True},
    "structured_outputs": {"regex": "a+"},
    "suffix": "end",
    "system": "Be short.",
    "temperature": 0.5,
    "text_1": "c",
    "text_2": "d",
    "thinking": {"type": "disabled"},
    "timeout_ms": 60_000,
    "tool_choice": "required",
    "tools": [TOOL],
    "top_k": 5,
    "top_logprobs": 2,
    "top_n": 1,
    "top_p": 0.5,
    "truncate_prompt_tokens": 5,
    "truncation_side": "right",
    "use_activation": False,
    "user": "somebody",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "as it was"},
}
"""A value of each parameter that asks for something else than what happens without it."""


def _pooling(name: str, shape: type[msgspec.Struct], least: Body, **own: Any) -> Route:
    pairs = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))
    path = f"/v1/{name}"
    (found,) = [route for route in POOLING if path in route.paths]
    mine = {"truncation_side": "left", "messages": SAID, **own}
    together = pairs if shape is ScoreBody else ()
    return Route("Vectors and scores", name, path, shape, found.parse, least, mine, together)


PREDICATE = {"type": "predicate", "instructions": "it is so"}
SHORT: Body = {"options": {"num_predict": 4}}
OLLAMAS: Body = {
    "context": [5],
    "format": "json",
    "height": 5,
    "images": ["aa"],
    "keep_alive": "5m",
    "logprobs": True,
    "options": {"temperature": 0.5, "num_predict": 4},
    "raw": True,
    "shift": True,
    "steps": 5,
    "stream": False,
    "template": "x",
    "think": True,
    "truncate": False,
    "width": 5,
}
OLDER_LEAST: Body = {"model": "embedder", "prompt": "hi"}
OLDER = (("older embeddings", "/api/embeddings", OllamaEmbeddings, OLDER_LEAST),)
ANTHROPIC_TOOL = {"name": "f", "input_schema": SCHEMA}
ROUTES = (
    Route(
        *("Chat and completions", "chat", "/v1/chat/completions", ChatBody, parse_chat),
        least={"model": "echo", "max_tokens": 4, "messages": SAID},
        own={
            "logprobs": True,
            "add_special_tokens": True,
            "documents": [{"text": "known"}],
            "metadata": {"project": "atlas"},
        },
        together=(("tools", "tool_choice"), ("store", "metadata")),
    ),
    Route(
        *("Chat and completions", "completions", "/v1/completions", CompletionBody),
        parse_completion,
        least={"model": "echo", "max_tokens": 4, "prompt": "hi"},
    ),
    _pooling("embeddings", EmbeddingBody, {"model": "embedder", "input": "hi"}),
    _pooling(
        *("rerank", RerankBody, {"model": "embedder", "query": "q", "documents": ["d"]}),
        documents=["d", "e"],
    ),
    _pooling("score", ScoreBody, {"model": "embedder", "text_1": "a", "text_2": "b"}),
    _pooling("classify", ClassifyBody, {"model": "judge", "input": "hi"}),
    Route(
        *("Moderations", "moderations", MODERATIONS_PATH, ModerationBody, parse_moderation),
        least={"model": "judge", "input": "hi"},
    ),
    Route(
        *("Tokens", "tokenize", "/tokenize", TokenizeBody, parse_tokenize),
        least={"model": "echo", "prompt": "hi"},
        own={
            "add_special": True,
            "chat_template": "{{ messages }}",
            "content": "ho",
            "parse_special": False,
            "return_token_strs": True,
            "with_pieces": True,
        },
        together=(("content",), ("messages",)),
        needs={"content": {"prompt": None}, "messages": {"prompt": None}},
    ),
    Route(
        *("Tokens", "detokenize", "/detokenize", DetokenizeBody, parse_detokenize),
        least={"model": "echo", "tokens": [1]},
        own={"tokens": [2]},
    ),
    Route(
        *("Decisions", "decisions", "/v1/decisions", DecisionBody, parse_decision),
        least={"model": "echo", "input": "hi", "questions": [PREDICATE]},
        own={
            "questions": [PREDICATE, PREDICATE],
            "prompt_cache_key": "mine",
            "safety_identifier": "somebody",
        },
    ),
    Route(
        *("Anthropic's messages", "messages", "/v1/messages", MessagesBody, parse_messages),
        least={"model": "echo", "max_tokens": 4, "messages": SAID},
        own={
            "service_tier": "standard_only",
            "tools": [ANTHROPIC_TOOL],
            "tool_choice": {"type": "any"},
        },
        together=(("tools", "tool_choice"),),
        codes={"thread": "thread_unsupported_request"},
    ),
    Route(
        *("Responses", "responses", "/v1/responses", ResponseBody, parse_response),
        least={"model": "echo", "max_output_tokens": 4, "input": "hi"},
        own={
            "add_special_tokens": True,
            "background": True,
            "background_options": {"completion_window": "2h"},
            "conversation": "conv_1",
            "include": ["reasoning.encrypted_content"],
            "instructions": "Be short.",
            "max_output_tokens": 5,
            "max_tool_calls": 3,
            "metadata": {"project": "atlas"},
            "personality": "friendly",
            "previous_response_id": "resp_1",
            "prompt_cache_key": "mine",
            "reasoning": {"effort": "high"},
            "safety_identifier": "somebody",
            "store": False,
            "text": {"verbosity": "low"},
            "tools": [{"type": "function", "name": "f"}],
            "truncation": "auto",
        },
        together=(("tools", "tool_choice", "parallel_tool_calls"),),
    ),
    *(
        Route(f"Ollama's {name}", path, path, shape, PARSERS[path][1], least, OLLAMAS)
        for name, path, shape, least in (
            ("chat", "/api/chat", OllamaChat, {"model": "echo", "messages": SAID, **SHORT}),
            (
                "generate",
                "/api/generate",
                OllamaGenerate,
                {"model": "echo", "prompt": "hi", **SHORT},
            ),
            ("embed", "/api/embed", OllamaEmbed, {"model": "embedder", "input": "hi"}),
            *OLDER,
        )
    ),
)
FORMS: dict[str, set[str]] = {
    "Files": {*NewFile.__struct_fields__},
    "Batches": {*NewBatch.__struct_fields__},
    "Batches of messages": {*NewMessageBatch.__struct_fields__},
    "Ollama's show": {*OllamaShow.__struct_fields__},
    "Ollama's pull": {*OllamaPull.__struct_fields__},
}
"""Of the routes that ask no model, and need more than a body: their own tests send each parameter."""
EACH = [(route, name, state) for route in ROUTES for name, state in route.rows().items()]
"""Every row of every table."""


def states(section: str) -> dict[str, str]:
    """Each parameter's state in a section for one route."""
    return {name: state for name, _, state in _rows(section)}


def of_row(row: tuple[Route, str, str]) -> str:
    """Names a row in a test's id."""
    return f"{row[0].name}-{row[1]}"
