"""Structured answers of a model that knows nothing of JSON: what ends is valid, and nearly everything ends."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend
from schemas import Schemas, Table

from llmhost.config.schema.models import ModelSpec
from llmhost.testing import TestHost, make_host

pytestmark = pytest.mark.bars

COUNT, AT_ONCE, MOST_TOKENS = 512, 64, 512
EVERY = """
    type properties required additionalProperties patternProperties minProperties maxProperties items prefixItems
    minItems maxItems enum const anyOf oneOf allOf $ref $defs $schema pattern minLength maxLength minimum maximum
    exclusiveMinimum exclusiveMaximum multipleOf default examples title description
    """.split()  # noqa: SIM905 - a list of them would be half a page long
UNSUPPORTED: dict[str, Table] = {
    '"not"': {"not": {"type": "string"}},
    '"uniqueItems"': {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    '"contains"': {"type": "array", "contains": {"type": "integer"}},
    '"if"': {"if": {"type": "string"}, "then": {"maxLength": 3}},
    '"dependentRequired"': {"type": "object", "dependentRequired": {"a": ["b"]}},
    '"propertyNames"': {"type": "object", "propertyNames": {"pattern": "^a"}},
    '"unevaluatedProperties"': {"type": "object", "unevaluatedProperties": False},
    "colour": {"type": "string", "format": "colour"},
    "oneOf": {"oneOf": [{"type": "string"}, {"minLength": 3}]},
    "look-around": {"type": "string", "pattern": "(?=a)b"},
    "http://": {"$ref": "http://localhost/schema"},
    "min/maxProperties": {"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1},
}


def _is_multiple(validator: Any, of: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """As written: 0.07 is 7 times 0.01, which floats deny."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and Fraction(str(value)) % Fraction(str(of)):
        yield ValidationError(f"{value} is not a multiple of {of}")


Validator = extend(Draft202012Validator, {"multipleOf": _is_multiple})


def fault(schema: Table, text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    checks = Validator(schema, format_checker=Validator.FORMAT_CHECKER)
    return next((error.message for error in checks.iter_errors(value)), None)


async def answer(host: TestHost, schema: Table, seed: int) -> dict[str, Any]:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"Fill in form {seed}, please."}],
        "temperature": 1.0,
        "seed": seed,
        "max_tokens": MOST_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "form", "schema": schema, "strict": True},
        },
    }
    sent = await host.client.post("/v1/chat/completions", json=body, timeout=600)
    told: dict[str, Any] = sent.json()
    return told


async def test_whatever_ends_is_valid_and_nearly_everything_ends(
    bar: Callable[[str], None],
) -> None:
    maker = Schemas(seed=20)
    schemas = [maker.make() for _ in range(COUNT)]
    assert not [keyword for keyword in EVERY if not maker.used[keyword]]
    began = time.perf_counter()
    spec = ModelSpec(engine="torch", source="builtin:tiny", max_batch_size=AT_ONCE)
    async with make_host(models={"tiny": spec}) as host:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(place: int) -> dict[str, Any]:
            async with gate:
                return await answer(host, schemas[place], place)

        told = await asyncio.gather(*map(one, range(COUNT)))
        named = {
            what: (await answer(host, schema, 0))["error"] for what, schema in UNSUPPORTED.items()
        }

    refused = [schema for schema, one in zip(schemas, told, strict=True) if "error" in one]
    reasons: Counter[str] = Counter(one["choices"][0]["finish_reason"] for one in told)
    wrong = [
        (found, schema)
        for schema, one in zip(schemas, told, strict=True)
        if one["choices"][0]["finish_reason"] == "stop"
        and (found := fault(schema, one["choices"][0]["message"]["content"]))
    ]
    tokens = sum(one["usage"]["completion_tokens"] for one in told)
    bar(
        f"{COUNT} JSON schemas at temperature 1: {len(wrong)} of {reasons['stop']} ended answers invalid,"
        f" {reasons['stop'] / COUNT:.1%} ended within {MOST_TOKENS} tokens, {len(refused)} refused;"
        f" {tokens} tokens in {time.perf_counter() - began:.0f} s, {AT_ONCE} at once"
    )
    assert (refused, wrong) == ([], [])
    assert set(reasons) <= {"stop", "length"}
    assert reasons["stop"] >= 0.9 * COUNT
    for what, error in named.items():
        assert error["code"] == "invalid_json_schema"
        assert error["param"] == "response_format"
        assert what in error["message"]
