"""Asks a server for what its own OpenAPI document describes, and holds what it answers against that document.

Bodies, queries and paths are made from the document: half of them as it allows them, half of them as it does not.
"""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from server_process import Node

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""No 5xx; and the status, the type, the headers and the body of each answer are described."""

MODELS = """
[limits]
failed_auth_per_minute = 0

[models.echo]
engine = "fake"
max_sequence_length = 64
[models.echo.price]
input = "1.00"
output = "2.00"

[models.embedder]
engine = "fake"
max_sequence_length = 64
[models.embedder.options]
task = "embed"

[models.judge]
engine = "fake"
max_sequence_length = 64
[models.judge.options]
task = "classify"
"""
MODEL_OF = {
    "EmbeddingBody": "embedder",
    "RerankBody": "judge",
    "ScoreBody": "judge",
    "ClassifyBody": "judge",
    "OllamaEmbed": "embedder",
    "OllamaEmbeddings": "embedder",
}
"""Bodies that another model than `echo` answers."""
OLLAMA = {
    "OllamaChat",
    "OllamaGenerate",
    "OllamaEmbed",
    "OllamaEmbeddings",
    "OllamaShow",
    "OllamaPull",
}
"""Bodies whose names say it otherwise."""
NOT_SENT = {"timeout_ms"}
"""A deadline that passes is a 504 by right."""
OPERATORS = ("/admin/", "/v1/load_lora", "/v1/unload_lora")
MANAGERS = ("/v1/organization", "/v1/usage")


class Truth:
    """One server's document, and what became of the requests that were made from it."""

    def __init__(self, node: Node, *, at: int = 0) -> None:
        self.node = node
        self.dice = random.Random(at)
        self.at = at
        member = node.create_key("truth", name="asks")
        manager = node.create_key("truth", role="billing", name="counts")
        changed = node.create_key("town", team="red", name="is changed")
        self.tokens = {OPERATORS: node.admin_token, MANAGERS: manager["key"], ("/",): member["key"]}
        budget = node.admin("POST", "/budgets", {"org": "town", "usd": "1000"}).json()
        self.places = {
            "org": ["town"],
            "team": ["red"],
            "key_id": [changed["id"]],
            "budget": [budget["id"]],
            "model": ["echo", "judge"],
            "target": ["embedder/load"],
            "month": ["2026-01"],
            "version": ["echo/1"],
            "kind": ["completions", "embeddings"],
        }
        """What stands in paths and leads to something."""
        self.places |= self._kept(member["key"])
        self.document: dict[str, Any] = node.get("/schema").json()
        self.failures: list[str] = []
        self.asked: dict[str, Counter[int]] = defaultdict(Counter)
        """Statuses by route."""

    def _kept(self, key: str) -> dict[str, list[str]]:
        """Things that a server keeps for a caller."""
        headers = {"authorization": f"Bearer {key}"}

        def made(path: str, body: Any = None, **more: Any) -> Any:
            answer = self.node.post(path, body, headers=headers, **more)
            assert answer.status_code == 200, answer.text
            return answer.json()

        said = [{"role": "user", "content": "hello"}]
        ask = {"model": "echo", "messages": said, "max_tokens": 2, "store": True}
        line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": ask}
        form = {"data": {"purpose": "batch"}, "files": {"file": ("a.jsonl", json.dumps(line))}}
        file = made("/v1/files", **form)["id"]
        new = {"input_file_id": file, "endpoint": line["url"], "completion_window": "24h"}
        talk = made("/v1/conversations", {"items": said})["id"]
        (item,) = self.node.get(f"/v1/conversations/{talk}/items", headers=headers).json()["data"]
        answer = {"model": "echo", "input": "hello", "max_output_tokens": 2}
        return {
            "chat": [made("/v1/chat/completions", ask)["id"]],
            "response_id": [made("/v1/responses", answer)["id"]],
            "conversation_id": [talk],
            "item_id": [item["id"]],
            "file_id": [file],
            "batch_id": [made("/v1/batches", new)["id"]],
        }

    def operations(self) -> Iterator[Any]:
        """All operations of the document, their bodies made for the models that are served here."""
        made = json.loads(json.dumps(self.document))
        for name, shape in made["components"]["schemas"].items():
            fields = shape.get("properties", {})
            if name.endswith("Body") or name in OLLAMA:
                fields |= {"model": {"enum": [MODEL_OF.get(name, "echo")]}}
                shape["properties"] = {k: v for k, v in fields.items() if k not in NOT_SENT}
        found = [r.ok() for r in schemathesis.openapi.from_dict(made).get_all_operations()]
        yield from sorted(found, key=lambda operation: operation.method == "delete")

    def asked_all(self) -> Counter[int]:
        """Statuses of all routes."""
        return sum(self.asked.values(), Counter[int]())

    def ask(self, operation: Any, count: int) -> None:
        """Send so many examples."""
        fewer = count // 2
        self._ask(operation, GenerationMode.POSITIVE, count - fewer)
        if fewer:
            self._ask(operation, GenerationMode.NEGATIVE, fewer)

    def _ask(self, operation: Any, mode: GenerationMode, count: int) -> None:
        @seed(self.at)
        @settings(
            max_examples=count,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            self._send(case)

        try:
            send()
        except Unsatisfiable:  # nothing can be wrong with a request that takes nothing
            assert mode is GenerationMode.NEGATIVE

    def _send(self, case: Any) -> None:
        for name in case.path_parameters or {}:
            if (known := self.places.get(name)) and self.dice.random() < 0.5:
                case.path_parameters[name] = self.dice.choice(known)
        path = case.operation.path
        token = next(token for heads, token in self.tokens.items() if path.startswith(heads))
        headers = {"authorization": f"Bearer {token}"}
        response = case.call(base_url=self.node.url, headers=headers, timeout=60)
        route = f"{case.operation.method.upper()} {path}"
        self.asked[route][response.status_code] += 1
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            for each in group.exceptions:
                self._note(route, response, each, case)
        except Failure as failure:
            self._note(route, response, failure, case)

    def _note(self, route: str, response: Any, failure: BaseException, case: Any) -> None:
        text = " ".join(str(failure).split())[:600]
        self.failures.append(
            f"{route} -> {response.status_code}: {text}\n  {case.as_curl_command()}"
        )
