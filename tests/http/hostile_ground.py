"""A server with two organisations that must not hear of each other, and what may never come back from it."""

import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from hostile_values import ANY_END, LONGEST_REFUSAL_BYTES
from server_process import Node

from llmhost.api.openapi.operations import ALL
from llmhost.core.caller import Role

ROLES = [role.value for role in Role]
FOREIGN = "zq-foreign"
"""Begins all names of the organisation that nobody else may hear of."""
FOREIGN_USD = "7654.321"
"""Of its budget; nobody else's has that."""
SECRET_FILES = ("pepper", "statement_key")
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
    neighbour: str = ""
    """A key of yet another organisation, which nobody changes."""
    secrets: set[str] = field(default_factory=set)
    """What no answer, log line, metric or file may hold."""
    places: dict[str, dict[str, str]] = field(default_factory=dict)
    """By organisation, what stands in the paths of what is its own."""
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
        self.neighbour = node.create_key("neighbour")["key"]
        self.places = {
            row["org"]: self._place(row) for row in (self.target, self.foreign, self.pit)
        }
        asked = [self.ask(self.foreign["key"]) for _ in range(3)]
        self.ask(self.keys["member"])
        theirs = self.places[FOREIGN]
        self.marks = {FOREIGN, theirs["key_id"], theirs["budget"], theirs["version"], FOREIGN_USD}
        self.marks |= {answer.headers["x-request-id"] for answer in asked}
        self.secrets = {*self.keys.values(), self.neighbour, node.admin_token}
        self.secrets |= {row["key"] for row in (self.target, self.foreign, self.pit)}
        self.secrets |= self._stored_secrets()
        schema = node.get("/admin/openapi/openapi.json").json()
        asking = {path for operation in ALL for path in operation.paths}
        self.operations = [o for o in operations_of(schema) if o.path not in asking]
        return self

    def _place(self, row: dict[str, Any]) -> dict[str, str]:
        """What stands in paths that lead to what is an organisation's. Its key gets a budget, and itself a price."""
        usd = FOREIGN_USD if row["org"] == FOREIGN else "1000"
        budget = {"key": row["id"], "period": "total", "usd": usd}
        price = {"model": MODEL, "org": row["org"], "input": "1.00", "output": "2.00"}
        policy = {"policy": {}, "activate": False}
        things = ("/budgets", budget), ("/prices", price), (f"/orgs/{row['org']}/policies", policy)
        made = [self.node.admin("POST", *what) for what in things]
        assert [answer.status_code for answer in made] == [201] * 3, [a.text for a in made]
        return {
            **{"org": row["org"], "team": row["team"], "key_id": row["id"]},
            **{"budget": made[0].json()["id"], "version": made[1].json()["version"]},
        }

    def place_in(self, operation: Operation, org: str) -> dict[str, str]:
        """What stands in an operation's path that leads to what is the organisation's."""
        place = {name: self.places[org].get(name, "zz-nobody") for name in operation.params}
        if "/policies/" in operation.path and "version" in place:
            place["version"] = "1"  # each organisation has one; prices' versions have other names
        return place

    def ask(self, key: str, **more: Any) -> Any:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 1, **more}
        headers = {"authorization": f"Bearer {key}"}
        return self.node.post("/v1/completions", body, headers=headers)

    def _stored_secrets(self) -> set[str]:
        """The pepper, the key of statements and the digests, as anybody might print them."""
        folder = self.node.data_dir
        self.node.get(
            "/v1/billing/public-key"
        ).raise_for_status()  # it is made when it is asked for
        kept = {(folder / name).read_text().strip() for name in SECRET_FILES}
        with closing(sqlite3.connect(f"file:{folder / 'money.db'}?mode=ro", uri=True)) as money:
            digests = [bytes(row[0]) for row in money.execute("SELECT digest FROM secrets")]
        return {*kept, *(d.hex() for d in digests), *(repr(d)[2:-1] for d in digests)}

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
            sent = unquote(self.bytes_of(attack).decode("latin-1"))
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
            self.node.admin("GET", "/budgets", org=org, limit="1000").json(),
            self.node.admin("GET", f"/orgs/{org}/credits", limit="1000").json(),
            self.node.admin("GET", "/prices", org=org, limit="1000").json(),
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
            if path.is_file() and path.name not in ("server.json", *SECRET_FILES):
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
