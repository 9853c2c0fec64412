"""Hostile input to the surface where money is managed, as bytes on the wire.

Most of it is made from the OpenAPI schema, so that a route that is new is attacked from its first day on.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import msgspec
from hostile_ground import FOREIGN, MODEL, ROLES, Attack, Ground, Operation
from hostile_values import (
    ANY_END,
    BODIES,
    DEEP_FRAGMENTS,
    FRAGMENTS,
    HUGE,
    LONG,
    METHODS,
    NUMBERS,
    PATH_PARTS,
    SQL,
    TEXTS,
    TYPES,
)

from llmhost.api.bodies import ChatBody, CompletionBody
from llmhost.api.messages_bodies import MessagesBody
from llmhost.api.pooling_wire import EmbeddingBody, RerankBody, ScoreBody
from llmhost.api.responses.bodies import ResponseBody

FINE: dict[str, str] = {
    "model": f'"{MODEL}"',
    "adapter": '"echo:none"',
    "lora_name": '"echo:none"',
    "lora_path": '"/nowhere"',
}
"""What a field may well hold, so that only another one is wrong."""
MORE: dict[tuple[str, str], dict[str, str]] = {
    ("POST", "/admin/v1/budgets"): {"org": "ORG", "team": "TEAM", "usd": '"1.00"'},
    ("POST", "/admin/v1/prices"): {"org": "ORG", "input": '"1.00"', "output": '"2.00"'},
    ("POST", "/admin/v1/ledger/rerate"): {
        **{"org": "ORG", "since": '"2020-01-01"', "input": '"1.00"', "output": '"3.00"'},
    },
}
"""What a body should have beside what the schema says that it must."""
HARMFUL = ("/admin/v1/models/{target}", "/admin/v1/ledger/export")
"""Not to be called in passing: one unloads the model that is asked, one is long."""


def org_of(who: str) -> str:
    """Whose things are aimed at: the operator has an organisation for experiments, others their own."""
    return "pit" if who == "operator" else "own"


def place_of(ground: Ground, operation: Operation, who: str) -> dict[str, str]:
    return ground.place_in(operation, org_of(who))


def skeleton(operation: Operation, counter: Iterator[int], who: str) -> dict[str, str]:
    """A body of raw JSON values that is as right as can be guessed from the schema."""
    org, team = ('"pit"', '"sand"') if who == "operator" else ('"own"', '"red"')
    fine = {**FINE, "name": f'"zz-{next(counter)}"', "org": org, "team": team, "usd": '"1.00"'}
    more = MORE.get((operation.method, operation.path), {})
    given = {name: {"ORG": org, "TEAM": team}.get(value, value) for name, value in more.items()}
    needed = {
        n: given.get(n) or fine.get(n) or _any_of(operation.fields[n]) for n in operation.required
    }
    return {**given, **needed}


def _any_of(schema: dict[str, Any]) -> str:
    options = schema.get("oneOf") or schema.get("anyOf") or [schema]
    kind = options[0].get("type", "string")
    return {"integer": "1", "number": "1", "boolean": "true", "array": "[]", "object": "{}"}.get(
        kind, '"x"'
    )


def written(values: dict[str, str]) -> bytes:
    inner = ",".join(f"{json.dumps(name)}:{value}" for name, value in values.items())
    return ("{" + inner + "}").encode("utf-8", "surrogatepass")


# ------------------------------------------------------------ the attacks


def twisted_fields(ground: Ground, who: str) -> Iterator[Attack]:
    """Each field of each body with each value that it should not have."""
    counter = iter(range(10**6))
    for operation in ground.operations:
        url = operation.path.format(**place_of(ground, operation, who))
        for name in operation.fields:
            for value in (*FRAGMENTS, json.dumps(LONG)):
                body = {**skeleton(operation, counter, who), name: value}
                yield Attack(f"field {name}", operation.method, url, who, written(body))


def twisted_paths(ground: Ground, who: str) -> Iterator[Attack]:
    for operation in ground.operations:
        place = place_of(ground, operation, who)
        body = written(skeleton(operation, iter(range(9)), who)) if operation.takes_body else None
        for name in operation.params:
            for part in PATH_PARTS:
                url = operation.path.format(**{**place, name: part})
                yield Attack(f"path {name}", operation.method, url, who, body)


def twisted_queries(ground: Ground, who: str) -> Iterator[Attack]:
    texts = [*TEXTS, *NUMBERS, "2026-13-45", "0001-01-01T00:00:00+23:59", "9999-12-31", "1" * 5000]
    for operation in ground.operations:
        url = operation.path.format(**place_of(ground, operation, who))
        for name in operation.queries:
            for text in texts:
                query = f"{name}={quote(text, safe='')}"
                yield Attack(f"query {name}", operation.method, f"{url}?{query}", who)
            for query in (f"{name}=%ff", f"{name}=%00", f"{name}=a&{name}=b", f"{name}[]=1", name):
                yield Attack(f"query {name}", operation.method, f"{url}?{query}", who)


def wrong_bodies(ground: Ground, who: str) -> Iterator[Attack]:
    for operation in ground.operations:
        if not operation.takes_body:
            continue
        url = operation.path.format(**place_of(ground, operation, who))
        for name, body in BODIES.items():
            yield Attack(f"body: {name}", operation.method, url, who, body)
        fine = written(skeleton(operation, iter(range(9)), who))
        for kind in TYPES:
            headers = (("content-type", kind),)
            yield Attack(f"type {kind!r}", operation.method, url, who, fine, headers)
        for header, value in (
            *(("content-length", "-1"), ("content-length", "9" * 30), ("content-length", "5, 6")),
            *(("transfer-encoding", "chunked"), ("transfer-encoding", "gzip, chunked")),
            *(("expect", "100-continue"), ("content-encoding", "gzip")),
        ):
            name, sent = f"header {header} {value[:9]}", ((header, value),)
            yield Attack(name, operation.method, url, who, fine, sent, ANY_END)


def huge_bodies(ground: Ground, who: str) -> Iterator[Attack]:
    for operation in ground.operations:
        if operation.takes_body:
            url = operation.path.format(**place_of(ground, operation, who))
            yield Attack("ten megabytes", operation.method, url, who, HUGE)


def wrong_methods(ground: Ground, who: str) -> Iterator[Attack]:
    known = {(operation.method, operation.path) for operation in ground.operations}
    for path in dict.fromkeys(operation.path for operation in ground.operations):
        for method in METHODS:
            if (method, path) in known or path in HARMFUL:
                continue
            url = re.sub(r"\{\w+\}", "zz-nobody", path)
            refused = frozenset({400, 401, 403, 404, 405} | ({200} if method == "HEAD" else set()))
            only = refused if method != "OPTIONS" else refused | {200, 204}
            yield Attack("method", method, url, who, None, (), only)


BEARERS = [
    *SQL,
    *("", " ", "null", "undefined", "lh-sk-", "lh-sk-" + "A" * 12 + "-" + "B" * 49, "\xff\xfe"),
    *("x" * 4000, "../pepper", "a\tb", "Bearer x", "lh-sk-%00", "${env:PEPPER}"),
]


def strange_bearers(ground: Ground) -> Iterator[Attack]:
    """Whoever has no key of the node's gets 401 everywhere, whatever he makes of the header."""
    admin, key = ground.node.admin_token, ground.target["key"]
    stolen = [
        admin[:-1],
        admin + "x",
        admin.swapcase(),
        key[:-1],
        key[:-1] + "~",
        key + "A",
        key[6:],
    ]
    values = [f"Bearer {bearer}" for bearer in (*BEARERS, *stolen)]
    values += [f"Basic {admin}", f"Token {key[:-2]}", "Bearer", "BearerX " + admin]
    closed = frozenset({400, 401})
    for at, operation in enumerate(ground.operations):
        if not operation.is_admin:
            continue
        url = operation.path.format(**place_of(ground, operation, "operator"))
        body = written(skeleton(operation, iter(range(9)), "operator"))
        body = body if operation.takes_body else None
        yield Attack("no bearer", operation.method, url, "nobody", body, (), closed)
        for value in values[at % 3 :: 3]:
            yield Attack("bearer", operation.method, url, value, body, (), closed)
    for value in values:
        body = b'{"model":"echo","prompt":"x"}'
        yield Attack("bearer", "POST", "/v1/completions", value, body, (), closed)
        yield Attack("bearer", "GET", "/v1/models", value, None, (), closed)


OPERATOR_ONLY = [
    *(("POST", "/admin/v1/orgs"), ("PATCH", "/admin/v1/orgs/{org}")),
    *(("GET", "/admin/v1/models"), ("GET", "/admin/v1/ps"), ("POST", "/admin/v1/models/{target}")),
    *(("GET", "/admin/v1/adapters"), ("POST", "/admin/v1/adapters/load")),
    *(("POST", "/admin/v1/adapters/unload"), ("GET", "/admin/v1/ledger/verify")),
    *(("GET", "/admin/v1/plugins"), ("POST", "/v1/load_lora_adapter")),
    *(("POST", "/v1/unload_lora_adapter"), ("POST", "/admin/v1/prices")),
    *(("POST", "/admin/v1/orgs/{org}/credits"), ("POST", "/admin/v1/ledger/rerate")),
    *(("POST", "/admin/v1/ledger/rebuild"), ("GET", "/admin/v1/ledger/check")),
    ("GET", "/admin/v1/costs"),
]


def climbing_roles(ground: Ground) -> Iterator[Attack]:
    """What a role is not for is refused, and who may only read changes nothing anywhere."""
    for operation in ground.operations:
        for who in ROLES:
            is_wide = operation.is_admin or "lora" in operation.path
            is_barred = (operation.method, operation.path) in OPERATOR_ONLY or (
                operation.is_admin and who != "admin" and operation.method != "GET"
            )
            if not is_wide or not (is_barred or (who == "inference" and operation.is_admin)):
                continue
            if who == "reviewer" and "/reviews" in operation.path:
                continue
            url = operation.path.format(**place_of(ground, operation, "admin"))
            body = written(skeleton(operation, iter(range(9)), "admin"))
            body = body if operation.takes_body else None
            yield Attack("role", operation.method, url, who, body, (), frozenset({403}))


def reaching_over(ground: Ground, who: str) -> Iterator[Attack]:
    """Another organisation's names wherever a name can stand."""
    foreign = ground.places[FOREIGN]
    cursors = [*foreign.values(), f"{FOREIGN}/{FOREIGN}-team", foreign["key_id"][:6]]
    for operation in ground.operations:
        if operation.path in HARMFUL:
            continue
        place = ground.place_in(operation, FOREIGN)
        url, own = (operation.path.format(**p) for p in (place, place_of(ground, operation, who)))
        body = {**skeleton(operation, iter(range(9)), who)} if operation.takes_body else None
        if operation.params:
            raw = None if body is None else written(body)
            yield Attack("another's path", operation.method, url, who, raw)
        for name in operation.queries:
            for text in cursors:
                query = f"{name}={quote(text, safe='')}"
                yield Attack("another's query", operation.method, f"{own}?{query}", who)
        for name in operation.fields if body is not None else ():
            for text in foreign.values():
                raw = written({**(body or {}), name: json.dumps(text)})
                yield Attack("another's field", operation.method, own, who, raw)


def strange_headers(ground: Ground) -> Iterator[Attack]:
    """Headers that mean something to us, or to others."""
    body = b'{"model":"echo","prompt":"x","max_tokens":1}'
    names = ["x-llmhost-run", "x-request-id", "idempotency-key", "x-forwarded-for", "x-api-key"]
    names += ["x-http-method-override", "x-original-url", "forwarded", "x-llmhost-cost", "origin"]
    for name in names:
        for text in (*TEXTS, "9" * 3000, ground.foreign["id"], FOREIGN):
            value = re.sub(r"[\r\n\0]", " ", text).encode("utf-8").decode("latin-1")
            sent = ((name, value),)
            yield Attack(f"header {name}", "POST", "/v1/completions", "member", body, sent)
            yield Attack(f"header {name}", "GET", "/admin/v1/orgs", "member", None, sent)


ASKED: dict[str, dict[str, str]] = {
    "/v1/chat/completions": {"messages": '[{"role":"user","content":"x"}]', "max_tokens": "1"},
    "/v1/messages": {"messages": '[{"role":"user","content":"x"}]', "max_tokens": "1"},
    "/v1/responses": {"input": '"x"', "max_output_tokens": "1"},
    "/v1/completions": {"prompt": '"x"', "max_tokens": "1"},
    "/v1/embeddings": {"input": '"x"'},
    "/v1/score": {"text_1": '"x"', "text_2": '"y"'},
    "/v1/rerank": {"query": '"x"', "documents": '["y"]'},
}
SHAPES = {
    "/v1/chat/completions": ChatBody,
    "/v1/messages": MessagesBody,
    "/v1/responses": ResponseBody,
    "/v1/completions": CompletionBody,
    "/v1/embeddings": EmbeddingBody,
    "/v1/score": ScoreBody,
    "/v1/rerank": RerankBody,
}


def estimates(ground: Ground) -> Iterator[Attack]:
    """What might be asked, with each field of each body wrong; nothing of it is run."""
    path, tried = "/v1/estimate", set[tuple[str, str]]()
    for endpoint, right in ASKED.items():
        whole = {"model": f'"{MODEL}"', "endpoint": json.dumps(endpoint), **right}
        fields = msgspec.structs.fields(SHAPES[endpoint])
        names = {(field.name, repr(field.type)) for field in fields} | {("endpoint", "")}
        for name, _ in names - tried:
            for value in (*FRAGMENTS, *DEEP_FRAGMENTS):
                yield Attack(
                    f"estimate {name}", "POST", path, "member", written({**whole, name: value})
                )
        tried |= names
    for name, body in BODIES.items():
        yield Attack(f"estimate: {name}", "POST", path, "member", body)
    for who in ("billing", "nobody"):
        closed = frozenset({401, 403})
        yield Attack("estimate", "POST", path, who, written(ASKED["/v1/completions"]), (), closed)


def repeated(ground: Ground) -> Iterator[Attack]:
    """Idempotency keys that another organisation has used, and what can't be one."""
    path, body = "/v1/completions", b'{"model":"echo","prompt":"kept","max_tokens":2}'
    other, others = f"Bearer {ground.neighbour}", b'{"model":"echo","prompt":"x"}'
    for at, text in enumerate(("zq-1", *TEXTS, "k" * 250, "k" * 300)):
        value = f"{at}-" + re.sub(r"[\r\n\0]", "_", text).encode("utf-8").decode("latin-1")
        sent, is_met = (("idempotency-key", value),), frozenset({200, 400})
        yield Attack("idempotency", "POST", path, other, others, sent, is_met)
        yield Attack("idempotency", "POST", path, "member", body, sent, is_met)
        yield Attack("idempotency", "POST", path, "member", b"{", sent)
    twice = (("idempotency-key", "a"), ("idempotency-key", "b"))
    yield Attack("idempotency", "POST", path, "member", body, twice, frozenset({400}))


def odd_routes(ground: Ground) -> Iterator[Attack]:
    """Ways around a route's guard."""
    paths = [
        *(
            "/admin/v1//keys",
            "/admin//v1/keys",
            "//admin/v1/keys",
            "/admin/v1/keys/",
            "/admin/v1/./keys",
        ),
        *("/admin/v1/orgs/../keys", "/admin/v1/keys%2f", "/ADMIN/v1/keys", "/admin/v1/keys;x=1"),
        *("/admin/v1/keys#x", "/admin/v1/keys%00", "/v1/../admin/v1/keys", "/admin%2fv1%2fkeys"),
        *(
            "http://127.0.0.1/admin/v1/keys",
            "/health/../admin/v1/keys",
            "/metrics/../admin/v1/keys",
        ),
        *("/admin/v1/keys?x=/health", "/admin/openapi/../v1/keys", "/admin/v1", "/admin", "*"),
        *(
            "/.env",
            "/server.json",
            "/data/pepper",
            "/admin/v1/ledger/export%3f",
            "/plugins/../admin/v1/keys",
        ),
    ]
    closed = frozenset({400, 401, 403, 404, 405})
    for path in paths:
        yield Attack("odd route", "GET", path, "nobody", None, (), closed)
        yield Attack("odd route", "GET", path, "inference", None, (), closed)


KINDS: dict[str, Callable[[Ground], Iterator[Attack]]] = {
    "fields": lambda ground: twisted_fields(ground, "operator"),
    "an admin's fields": lambda ground: twisted_fields(ground, "admin"),
    "paths": lambda ground: twisted_paths(ground, "operator"),
    "an admin's paths": lambda ground: twisted_paths(ground, "admin"),
    "queries": lambda ground: twisted_queries(ground, "operator"),
    "an admin's queries": lambda ground: twisted_queries(ground, "admin"),
    "bodies": lambda ground: wrong_bodies(ground, "operator"),
    "huge bodies": lambda ground: huge_bodies(ground, "operator"),
    "methods": lambda ground: wrong_methods(ground, "operator"),
    "bearers": strange_bearers,
    "roles": climbing_roles,
    "reaching over": lambda ground: reaching_over(ground, "admin"),
    "a member reaching over": lambda ground: reaching_over(ground, "member"),
    "a biller reaching over": lambda ground: reaching_over(ground, "billing"),
    "headers": strange_headers,
    "estimates": estimates,
    "idempotency keys": repeated,
    "odd routes": odd_routes,
}


def some_of(attacks: list[Attack], most: int) -> list[Attack]:
    """So many of them, the same each time, from all over."""
    if len(attacks) <= most:
        return attacks
    seed = int(hashlib.sha256(attacks[0].name.encode()).hexdigest(), 16)
    return random.Random(seed).sample(attacks, most)
