"""Hostile input to the surface where money is managed, as bytes on the wire, and what may never come back.

Most of it is made from the OpenAPI schema, so that a route that is new is attacked from its first day on.
"""

import hashlib
import json
import random
import re
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from server_process import Node

from llmhost.core.request import Role

ROLES = [role.value for role in Role]
FOREIGN = "zq-foreign"
"""Begins all names of the organisation that nobody else may hear of."""
MODEL = "echo"

SETTINGS = """
[limits]
failed_auth_per_minute = 0
[models.echo]
engine = "fake"
[models.echo.price]
input = "1.00"
output = "2.00"
[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 20
[models.slow.price]
input = "1.00"
output = "2.00"
"""

# ------------------------------------------------------------ values

SQL = [
    "'; DROP TABLE keys; --",
    "' OR '1'='1",
    "x') UNION SELECT digest FROM secrets --",
    "\"; ATTACH DATABASE '/tmp/zq' AS z; --",
    "1; PRAGMA writable_schema=1",
    "%' ESCAPE '\\",
]
MONEY = [
    *("-1", "-0.01", "0", "NaN", "Infinity", "1e9", "1e-9", "0.0000000001", "9" * 40, "4611686019"),
    *("1,50", "$1", "1.", ".5", "+1", " 1", "1_000", "\u0661", "0.1.2", "--1"),
]
"""Dollars as text, or what looks like them."""
TIMES = ["Mars/Olympus", "../../etc/localtime", "UTC\0", "Europe/Zurich", "day", "balance", "PT1H"]
TEXTS = [
    *SQL,
    *MONEY,
    *TIMES,
    *("", " ", ".", "..", "../../etc/passwd", "a/b", "%2e%2e%2f", "{{7*7}}", "${jndi:ldap://x}"),
    *("\0", "a\0b", "\u202eevil", "\ufb01", "caf\u00e9", "cafe\u0301", "\U0001f600" * 64),
    *("x" * 65, "\r\nx-evil: 1", "__proto__", "-", "*", "\u0661\u0662", "\ufeff", "0x10", "1e5"),
]
"""Twins under normalisation, text that runs backwards, ends of strings and paths, and other people's languages."""
LONGEST_REFUSAL_BYTES = 20_000
LONG = "y" * 1_000_000
NUMBERS = [
    *("-1", "0", "-0", "0.5", "-0.0", "1e308", "1e309", "-1e400", "NaN", "Infinity", "5e-324"),
    *(str(2**31), str(2**53 + 1), str(2**63 - 1), str(2**63), str(-(2**63) - 1), str(2**64)),
    *("9" * 400, "1e2", "1.0", "0x10", "01", "+1"),
]
OTHERS = ["true", "false", "null", "[]", "{}", "[1]", '[["a"]]', '{"a":{"b":[]}}', "[null]", '"5"']
RAW_TEXTS = ['"\\ud800"', '"\\ud800\\u0041"', '"\\u0000"', '"\xff"', '"\\x41"']
"""Surrogates without a partner, and what is no JSON at all."""
FRAGMENTS = [*map(json.dumps, TEXTS), *NUMBERS, *OTHERS, *RAW_TEXTS]
"""JSON, or nearly, to stand where a value should."""
PATH_PARTS = [
    *(quote(text, safe="") for text in TEXTS if text not in ("", "-")),
    *("%2F", "%00", "..%2f..%2f", "%ff%fe", ";a=b", "%", "%zz", "a%20b", "\xe9", "z" * 8000),
]

DEEP = 60_000
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "a text": b'"x"',
    "a number": b"1",
    "half": b'{"name": "x',
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"name":' * DEEP + b"1" + b"}" * DEEP,
    "deep in a field": b'{"org":"pit","name":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "twice the same": b'{"name":"zz-a","name":"zz-b","org":"zz-nobody","org":"pit"}',
    "utf-16": '{"name":"x"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"name":"x"}',
    "not utf-8": b'{"name":"\xff\xfe"}',
    "nul after the end": b'{"name":"zz-c"}\0',
    "two values": b'{"name":"zz-d"}{"name":"zz-e"}',
    "a comment": b'{"name":"zz-f"/**/}',
    "many unknown keys": json.dumps({f"k{i}": i for i in range(5000)}).encode(),
    "an unknown key": b'{"name":"zz-g","org":"pit","is_operator":true}',
    "a key of the prototype": b'{"__proto__":{"role":"admin"},"__class__":"x"}',
    "gzip": b"\x1f\x8b\x08\x00" + b"\0" * 30,
}
HUGE = b'{"name":"' + b"h" * 10_000_000 + b'"}'
"""Ten megabytes; a server need not take that much, but has to say so."""
TYPES = [
    *("text/plain", "application/xml", "multipart/form-data; boundary=x", "application/json; x"),
    *(
        "application/x-www-form-urlencoded",
        "application/msgpack",
        "",
        "application/json\x00",
        "*/*",
    ),
]
ANY_END = frozenset({0, *range(200, 500)})
"""Of what is no request: hanging up is an answer."""
METHODS = ["PUT", "TRACE", "OPTIONS", "HEAD", "PATCH", "DELETE", "FOO", "get", "POST", "GET"]


# ------------------------------------------------------------ one attack


@dataclass(frozen=True, slots=True)
class Attack:
    """A request to send, by whom, and what it is about."""

    name: str
    method: str
    path: str
    who: str = "operator"
    """`operator`, a role, `nobody`, or a whole value of the header `authorization`."""
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    only: frozenset[int] | None = None
    """Statuses that may come back; None: any that is not our fault."""

    def __str__(self) -> str:
        return f"{self.name}: {self.who[:40]} {self.method} {self.path[:120]} {(self.body or b'')[:120]!r}"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int | None
    """None when the server hung up without one."""
    raw: bytes

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]


def exchange(port: int, request: bytes, patience_s: float = 30.0) -> Answer:
    """Send bytes, and hear all that comes back until the server closes."""
    raw = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as connection:
        with suppress(OSError):  # it may have heard enough; what it said can still be read
            connection.sendall(request)
        try:
            while piece := connection.recv(1 << 20):
                raw += piece
        except OSError:
            pass
    raw = re.sub(rb"^HTTP/1\.1 100 [^\r]*\r\n\r\n", b"", raw)  # go on, it says
    status = int(raw[9:12]) if re.match(rb"HTTP/1\.1 \d{3} ", raw) else None
    return Answer(status, raw)


# ------------------------------------------------------------ the ground


@dataclass
class Ground:
    """A server with two organisations that must not hear of each other, and one for the operator's experiments."""

    node: Node
    keys: dict[str, str] = field(default_factory=dict)
    """By role, of the organisation `own`."""
    target: dict[str, Any] = field(default_factory=dict)
    foreign: dict[str, Any] = field(default_factory=dict)
    pit: dict[str, Any] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    """What no answer, log line, metric or file may hold."""
    marks: set[str] = field(default_factory=set)
    """What only the other organisation and the operator may read."""
    operations: list["Operation"] = field(default_factory=list)
    sent: int = 0
    failures: list[str] = field(default_factory=list)
    read_chars: int = 0
    """Of the log, in checks before."""

    def prepare(self) -> "Ground":
        node = self.node
        for role in ROLES:
            self.keys[role] = node.create_key("own", role=role)["key"]
        self.target = node.create_key("own", team="red", name="target")
        self.foreign = node.create_key(FOREIGN, team=f"{FOREIGN}-team", name=f"{FOREIGN}-name")
        self.pit = node.create_key("pit", team="sand", name="pit-key")
        asked = [self.ask(self.foreign["key"]) for _ in range(3)]
        self.ask(self.keys["member"])
        self.marks = {FOREIGN, self.foreign["id"]}
        self.marks |= {answer.headers["x-request-id"] for answer in asked}
        self.secrets = {*self.keys.values(), node.admin_token}
        self.secrets |= {row["key"] for row in (self.target, self.foreign, self.pit)}
        self.secrets |= self._stored_secrets()
        schema = node.get("/admin/openapi/openapi.json").json()
        self.operations = list(operations_of(schema))
        return self

    def ask(self, key: str, **more: Any) -> Any:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 1, **more}
        headers = {"authorization": f"Bearer {key}"}
        return self.node.post("/v1/completions", body, headers=headers)

    def _stored_secrets(self) -> set[str]:
        """The pepper and the digests, as anybody might print them."""
        folder = self.node.data_dir
        pepper = (folder / "pepper").read_text().strip()
        with closing(sqlite3.connect(f"file:{folder / 'money.db'}?mode=ro", uri=True)) as money:
            digests = [bytes(row[0]) for row in money.execute("SELECT digest FROM secrets")]
        return {pepper, *(d.hex() for d in digests), *(repr(d)[2:-1] for d in digests)}

    # -------------------------------------------------------- attacking

    def bytes_of(self, attack: Attack) -> bytes:
        lines = [("host", "127.0.0.1"), ("connection", "close")]
        if attack.who == "operator":
            lines.append(("authorization", f"Bearer {self.node.admin_token}"))
        elif attack.who in self.keys:
            lines.append(("authorization", f"Bearer {self.keys[attack.who]}"))
        elif attack.who != "nobody":
            lines.append(("authorization", attack.who))
        given = {name for name, _ in attack.headers}
        if attack.body is not None and "content-type" not in given:
            lines.append(("content-type", "application/json"))
        if attack.body is not None and not given & {"content-length", "transfer-encoding"}:
            lines.append(("content-length", str(len(attack.body))))
        lines += attack.headers
        head = "".join(f"{name}: {value}\r\n" for name, value in lines)
        start = f"{attack.method} {attack.path} HTTP/1.1\r\n"
        return (start + head + "\r\n").encode("latin-1", "replace") + (attack.body or b"")

    def fire(self, attack: Attack) -> Answer:
        """Send it, and note what should not have come back."""
        answer = exchange(self.node.port, self.bytes_of(attack))
        self.sent += 1
        if (why := self._why_not(attack, answer)) is not None:
            self.failures.append(f"{why} | {attack} -> {answer.raw[:400]!r}")
        return answer

    def _why_not(self, attack: Attack, answer: Answer) -> str | None:
        if answer.status is None:
            return None if attack.only is not None and 0 in attack.only else "no answer"
        if answer.status >= 500 and b'"code":"model_unavailable"' not in answer.body:
            return "a fault of ours"
        if attack.only not in (None, ANY_END) and answer.status not in attack.only:
            return f"not one of {sorted(attack.only or ())}"
        if answer.status >= 400 and len(answer.raw) > LONGEST_REFUSAL_BYTES:
            return "an echo of what was sent"
        text = answer.raw.decode("latin-1")
        made = _made_key(answer)
        if leaked := [s for s in self.secrets if s in text]:
            return f"a secret: {leaked[0][:20]}..."
        if made is not None:
            self.secrets.add(made)
        if attack.who != "operator":
            sent = self.bytes_of(attack).decode("latin-1")
            if leaked := [mark for mark in self.marks if mark in text and mark not in sent]:
                return f"another's: {leaked[0]}"
        return None

    def foreign_rows(self) -> list[Any]:
        """All that the operator sees of the other organisation."""
        return self._rows(FOREIGN)

    def own_rows(self) -> list[Any]:
        return self._rows("own")

    def _rows(self, org: str) -> list[Any]:
        return [
            self.node.admin("GET", f"/orgs/{org}").json(),
            self.node.admin("GET", "/teams", org=org).json(),
            self.node.admin("GET", "/keys", org=org, limit="1000").json(),
        ]

    # -------------------------------------------------------- afterwards

    def check(self) -> None:
        """Nothing came back that should not have, nothing secret lies about, and the server serves on."""
        assert not self.failures, f"{len(self.failures)} of {self.sent}:\n" + "\n".join(
            self.failures[:12]
        )
        assert self.node.alive
        log = self.node.log()
        fresh, self.read_chars = log[self.read_chars :], len(log)
        assert "Traceback" not in fresh, fresh[fresh.index("Traceback") - 600 :][:3000]
        places = {"the log": log, "the metrics": self.node.get("/metrics").text}
        for path in sorted(self.node.data_dir.rglob("*")):
            if path.is_file() and path.name not in ("server.json", "pepper"):
                places[path.name] = path.read_bytes().decode("latin-1")
        for where, text in places.items():
            leaked = [secret[:16] for secret in self.secrets if secret in text]
            assert not leaked, f"{where} holds {leaked}"
        assert self.ask(self.foreign["key"]).status_code == 200
        assert self.node.get("/health").status_code == 200
        report = self.node.verified()
        assert report["ok"], report


def _made_key(answer: Answer) -> str | None:
    found = re.search(rb'"key":\s*"(lh-sk-[^"]+)"', answer.body)
    return found[1].decode() if found else None


# ------------------------------------------------------------ what there is to attack


@dataclass(frozen=True, slots=True)
class Operation:
    """A route with a verb, as the schema tells of it."""

    method: str
    path: str
    queries: tuple[str, ...]
    fields: dict[str, Any]
    """Of its body."""
    required: tuple[str, ...]
    takes_body: bool

    @property
    def is_admin(self) -> bool:
        return self.path.startswith("/admin/")

    @property
    def params(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)


def operations_of(schema: dict[str, Any]) -> Iterator[Operation]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            body = _body_schema(schema, operation)
            named = operation.get("parameters", [])
            yield Operation(
                method=method.upper(),
                path=path,
                queries=tuple(p["name"] for p in named if p["in"] == "query"),
                fields=body.get("properties", {}),
                required=tuple(body.get("required", [])),
                takes_body="requestBody" in operation,
            )


def _body_schema(schema: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {})
    found = next(iter(content.values()), {}).get("schema", {})
    return _resolved(schema, found)


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for several in ("oneOf", "anyOf"):
        if several in node:
            node = node[several][0]
    if "$ref" in node:
        found: dict[str, Any] = schema["components"]["schemas"][node["$ref"].rpartition("/")[2]]
        return _resolved(schema, found)
    return node


FINE: dict[str, str] = {
    "org": '"pit"',
    "team": '"sand"',
    "model": f'"{MODEL}"',
    "adapter": '"echo:none"',
    "lora_name": '"echo:none"',
    "lora_path": '"/nowhere"',
}
"""What a field may well hold, so that only another one is wrong."""
PLACES = {
    "operator": {"org": "pit", "team": "sand"},
    "admin": {"org": "own", "team": "red"},
}
HARMFUL = ("/admin/v1/models/{target}", "/admin/v1/ledger/export")
"""Not to be called in passing: one unloads the model that is asked, one is long."""


def place_of(ground: Ground, operation: Operation, who: str) -> dict[str, str]:
    place = dict(PLACES.get(who, PLACES["admin"]))
    place["key_id"] = (ground.pit if who == "operator" else ground.target)["id"]
    return {name: place.get(name, "zz-nobody") for name in operation.params}


def skeleton(operation: Operation, counter: Iterator[int], who: str) -> dict[str, str]:
    """A body of raw JSON values that is as right as can be guessed from the schema."""
    fine = {**FINE, "name": f'"zz-{next(counter)}"'}
    if who != "operator":
        fine |= {"org": '"own"', "team": '"red"'}
    return {name: fine.get(name) or _any_of(operation.fields[name]) for name in operation.required}


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
    ("POST", "/admin/v1/orgs/{org}/credits"),
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
            url = operation.path.format(**place_of(ground, operation, "admin"))
            body = written(skeleton(operation, iter(range(9)), "admin"))
            body = body if operation.takes_body else None
            yield Attack("role", operation.method, url, who, body, (), frozenset({403}))


def reaching_over(ground: Ground, who: str) -> Iterator[Attack]:
    """Another organisation's names wherever a name can stand."""
    foreign = {"org": FOREIGN, "team": f"{FOREIGN}-team", "key_id": ground.foreign["id"]}
    cursors = [FOREIGN, f"{FOREIGN}/{FOREIGN}-team", ground.foreign["id"], ground.foreign["id"][:6]]
    for operation in ground.operations:
        if operation.path in HARMFUL:
            continue
        place = {name: foreign.get(name, "zz-nobody") for name in operation.params}
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
            for text in (FOREIGN, f"{FOREIGN}-team", ground.foreign["id"]):
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
    "odd routes": odd_routes,
}


def some_of(attacks: list[Attack], most: int) -> list[Attack]:
    """So many of them, the same each time, from all over."""
    if len(attacks) <= most:
        return attacks
    seed = int(hashlib.sha256(attacks[0].name.encode()).hexdigest(), 16)
    return random.Random(seed).sample(attacks, most)
