"""Schemas that were made to hurt: nobody else waits for them, and each is enforced or refused, by name and soon."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hostile_schemas import FAMILIES, regex, schemas
from server_process import Node
from tests.bars.test_structured import Validator

pytestmark = pytest.mark.bars

COUNT, AT_MOST_S, OTHERS_WAIT_S = 300, 2.0, 0.25
PAUSE_S = 0.02
MODELS = """
[models.echo]
engine = "fake"

[models.tiny]
engine = "torch"
source = "builtin:tiny"
[models.tiny.options]
device = "cpu"
threads = 1
"""


class Others:
    """Somebody else, who asks a little all the time."""

    def __init__(self, node: Node, model: str) -> None:
        self._node, self._model = node, model
        self.waits_s: list[float] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Others":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._is_over.wait(PAUSE_S):
            began_s = time.perf_counter()
            answer = self._node.chat("hi", model=self._model, max_tokens=1)
            assert answer.status_code == 200
            self.waits_s.append(time.perf_counter() - began_s)


def asked(schema: dict[str, Any], *, strict: bool) -> dict[str, Any]:
    form = {"name": "form", "schema": schema, "strict": strict}
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Fill in the form."}],
        "max_tokens": 24,
        "temperature": 1,
        "seed": 5,
        "response_format": {"type": "json_schema", "json_schema": form},
    }


def verdict(schema: dict[str, Any], answer: Any, *, is_checked: bool) -> str:
    told = answer.json()
    if answer.status_code == 200:
        (choice,) = told["choices"]
        if is_checked and choice["finish_reason"] == "stop":
            value = json.loads(choice["message"]["content"])
            assert Validator(schema).is_valid(value), (schema, value)
        return "enforced"
    error = told["error"]
    assert answer.status_code == 400, told
    if error["code"] == "form_too_complex":
        return "given up"
    assert error["code"] in ("invalid_json_schema", "invalid_value"), error
    assert error["param"].startswith("response_format"), error
    return "refused"


def test_nobody_waits_for_a_schema_that_was_made_to_hurt(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    node = new_node(MODELS).start()
    with Others(node, "echo") as quiet:
        time.sleep(6)
    became: Counter[str] = Counter()
    slow: list[tuple[float, str]] = []
    with Others(node, "echo") as others:
        for number, schema in enumerate(schemas(COUNT)):
            strict = number // len(FAMILIES) % 2 == 0
            body = json.dumps(asked(schema, strict=strict)).encode()
            began_s = time.perf_counter()
            answer = node.http.post(f"{node.url}/v1/chat/completions", content=body)
            took_s = time.perf_counter() - began_s
            family = FAMILIES[number % len(FAMILIES)]
            is_checked = strict and family is not regex  # which take Python's own for ever
            became[verdict(schema, answer, is_checked=is_checked)] += 1
            slow.append((took_s, family.__name__))
    slowest, waits = max(slow), sorted(others.waits_s)
    bar(
        f"{COUNT} adversarial schemas: {became['enforced']} enforced, {became['refused']} refused,"
        f" {became['given up']} given up amid the answer, the slowest"
        f" ({slowest[1]}) after {slowest[0] * 1e3:.0f} ms with its answer; others waited {waits[-1] * 1e3:.0f} ms at"
        f" most in {len(waits)} requests (p99 {waits[len(waits) * 99 // 100] * 1e3:.0f} ms;"
        f" {max(quiet.waits_s) * 1e3:.0f} ms while there were none)"
    )
    assert sum(became.values()) == COUNT
    assert slowest[0] < AT_MOST_S
    assert waits[-1] < OTHERS_WAIT_S
    assert "Traceback" not in node.log()
