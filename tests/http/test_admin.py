"""What an operator does to a running server, and who may do it."""

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from server_process import Node, chat_body, events, eventually, http_bytes
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from llmhost.tenants.tokens import new_token

ClientOf = Callable[[Node, str], OpenAI]
NewNode = Callable[..., Node]

ROUTES = [
    ("GET", "/orgs"),
    ("POST", "/orgs"),
    ("GET", "/keys"),
    ("POST", "/keys"),
    ("GET", "/keys/abc"),
    ("PATCH", "/keys/abc"),
    ("POST", "/keys/abc/rotate"),
    ("DELETE", "/keys/abc"),
    ("GET", "/orgs/abc"),
    ("PATCH", "/orgs/abc"),
    ("GET", "/teams"),
    ("POST", "/teams"),
    ("GET", "/teams/a/b"),
    ("PATCH", "/teams/a/b"),
    ("DELETE", "/teams/a/b"),
    ("GET", "/models"),
    ("GET", "/ps"),
    ("POST", "/models/echo/load"),
    ("POST", "/models/echo/unload"),
    ("GET", "/usage"),
    ("GET", "/ledger/verify"),
    ("GET", "/ledger/export"),
    ("GET", "/plugins"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_admin_route_wants_the_token(keyed_node: Node, method: str, path: str) -> None:
    unknown = new_token()[1]

    for sent in (None, "Bearer", "Bearer wrong", f"Bearer {unknown}", "Basic eDp5", "Bearer \xe9"):
        headers = {} if sent is None else {"authorization": sent.encode("latin-1")}
        response = keyed_node.http.request(
            method, f"{keyed_node.url}/admin/v1{path}", headers=headers
        )
        assert response.status_code == 401
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "invalid_api_key"


def test_a_key_works_from_the_moment_it_is_made_to_the_moment_it_is_revoked(
    keyed_node: Node, client_of: ClientOf
) -> None:
    made = keyed_node.create_key("brief", name="ci", team="red")
    client = client_of(keyed_node, made["key"])
    assert client.completions.create(model="echo", prompt="x").choices

    revoked = keyed_node.admin("DELETE", f"/keys/{made['id']}")

    assert revoked.json()["state"] == "revoked"
    with pytest.raises(openai.AuthenticationError):
        client.completions.create(model="echo", prompt="x")
    listed = keyed_node.admin("GET", "/keys", org="brief").json()["data"]
    assert [(row["id"], row["state"], row["team"]) for row in listed] == [
        (made["id"], "revoked", "red")
    ]
    assert "key" not in listed[0]
    assert made["key"] not in json.dumps(keyed_node.admin("GET", "/keys").json())


def test_a_stream_outlives_the_revocation_of_its_key(new_node: NewNode) -> None:
    node = new_node(
        "[models.echo]\nengine = 'fake'\n[models.echo.options]\ntoken_delay_ms = 10\n"
    ).start()
    made = node.create_key("acme")
    headers = {"authorization": f"Bearer {made['key']}"}
    body = {"model": "echo", "prompt": "x", "max_tokens": 40, "stream": True}

    with node.http.stream(
        "POST", f"{node.url}/v1/completions", json=body, headers=headers
    ) as response:
        pieces = events(response)
        next(pieces)
        with httpx.Client(timeout=60, verify=False) as operator:
            operator.delete(
                f"{node.url}/admin/v1/keys/{made['id']}",
                headers={"authorization": f"Bearer {node.admin_token}"},
            ).raise_for_status()
        rest = list(pieces)

    assert rest[-1] == "[DONE]"


def test_a_key_that_has_expired_is_refused(keyed_node: Node, client_of: ClientOf) -> None:
    made = keyed_node.create_key("late", expires_at=int(time.time()) + 2)
    client = client_of(keyed_node, made["key"])

    assert eventually(lambda: _is_refused(client), "an expired key works")


def _is_refused(client: OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return True
    return False


BAD_KEYS: list[dict[str, Any]] = [
    {},
    {"org": None},
    {"org": 5},
    {"org": "nobody-knows-it"},
    {"org": "first", "requests_per_minute": 0},
    {"org": "first", "requests_per_minute": -1},
    {"org": "first", "requests_per_minute": 10**30},
    {"org": "first", "models": ["nothing-like-it"]},
    {"org": "first", "models": "echo"},
    {"org": "first", "expires_at": 10**30},
    {"org": "first", "expires_at": "tomorrow"},
    {"org": "first", "name": "\x00" * 5},
    {"org": "first", "rpm": 5},
    {"org": "first", "name": "x" * 100_000},
]


@pytest.mark.parametrize("body", BAD_KEYS, ids=lambda body: str(body)[:50])
def test_a_key_that_makes_no_sense_is_refused_as_the_operators_mistake(
    keyed_node: Node, body: dict[str, Any]
) -> None:
    response = keyed_node.admin("POST", "/keys", body)

    assert 400 <= response.status_code < 500, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["", " ", "a/b", "x" * 1000, "\x00", "-", "new\nline", None, 5])
def test_an_organisation_needs_a_name_that_can_be_told_apart(keyed_node: Node, name: Any) -> None:
    response = keyed_node.admin("POST", "/orgs", {"name": name})

    assert response.status_code == 400, response.text


def test_an_organisation_is_made_once(keyed_node: Node) -> None:
    assert keyed_node.admin("POST", "/orgs", {"name": "once"}).status_code == 201
    assert keyed_node.admin("POST", "/orgs", {"name": "once"}).status_code == 409


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"by": "mood"}, "by"),
        ({"since": "yesterday"}, "since"),
        ({"until": "99999-01-01"}, "until"),
        ({"until": "9999-12-31T23:59:59"}, "until"),
        ({"since": "0001-01-01"}, "since"),
    ],
)
def test_a_report_that_cannot_be_made_says_which_part_is_wrong(
    open_node: Node, query: dict[str, str], param: str
) -> None:
    response = open_node.admin("GET", "/usage", **query)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("when", ["1970-01-01", "2026-01-31", "2026-01-31T00:00+09:00"])
def test_any_date_will_do(open_node: Node, when: str) -> None:
    assert open_node.admin("GET", "/usage", by="day", since=when).status_code == 200


def test_the_ledger_verifies_while_it_is_written(open_node: Node) -> None:
    open_node.chat(max_tokens=1)

    report = open_node.verified()

    assert report["ok"] is True
    assert report["entries"] >= 1
    assert report["problem"] is None


def test_models_and_ps_say_what_runs(open_node: Node) -> None:
    models = {m["name"]: m for m in open_node.admin("GET", "/models").json()["data"]}

    assert models["echo"]["state"] == "ready"
    assert models["echo"]["aliases"] == ["parrot"]
    assert models["echo"]["price"]["output"] == "2.00"
    row = open_node.loaded("narrow")
    assert row["max_sequence_length"] == 64
    assert row["kv_blocks_total"] > 0


# ------------------------------------------------------------ loading and unloading


SLOW = """
[models.heavy]
engine = "fake"
load = "request"
[models.heavy.options]
prefill_delay_ms = 300
[models.echo]
engine = "fake"
[models.slow]
engine = "fake"
[models.slow.options]
token_delay_ms = 20
[models.later]
engine = "fake"
load = "request"
"""


@pytest.fixture(scope="module")
def own_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("own"), SLOW)
    try:
        yield node.start()
        assert node.stop() == 0
        assert "Traceback" not in node.log()
    finally:
        node.close()


def test_a_model_that_loads_on_request_does_so(own_node: Node) -> None:
    assert own_node.state("later") == "absent"

    response = own_node.chat(model="later", max_tokens=3)

    assert response.status_code == 200
    assert own_node.state("later") == "ready"
    unloaded = own_node.admin("POST", "/models/later/unload").json()
    assert (unloaded["state"], unloaded["reason"]) == ("absent", "operator")
    loaded = own_node.admin("POST", "/models/later/load").json()
    assert loaded["state"] == "ready"
    assert own_node.admin("POST", "/models/later/load").status_code == 200
    own_node.admin("POST", "/models/later/unload")
    assert own_node.admin("POST", "/models/later/unload").json()["state"] == "absent"


def test_a_model_sleeps_until_somebody_asks_for_it(own_node: Node) -> None:
    own_node.chat(model="later", max_tokens=3)
    before = own_node.chat(model="later", max_tokens=3).json()["choices"]

    asleep = own_node.admin("POST", "/models/later/sleep").json()
    [row] = [
        row for row in own_node.admin("GET", "/ps").json()["data"] if row["model"] == "later@1"
    ]
    states = own_node.http.get(f"{own_node.url}/metrics").text

    assert (asleep["state"], asleep["reason"]) == ("asleep", "operator")
    assert (row["state"], row["device"], row["kv_bytes"]) == ("asleep", "cpu:0", 0)
    assert 'llmhost_model_state{model_name="later@1",state="asleep"} 1.0' in states
    assert own_node.chat(model="later", max_tokens=3).json()["choices"] == before
    assert own_node.state("later") == "ready"
    own_node.admin("POST", "/models/later/sleep")
    assert own_node.admin("POST", "/models/later/wake").json()["state"] == "ready"
    own_node.admin("POST", "/models/later/sleep")
    assert own_node.admin("POST", "/models/later/unload").json()["state"] == "absent"
    refused = own_node.admin("POST", "/models/later/sleep")
    assert refused.status_code == 409
    assert "only a loaded model can be put to sleep" in refused.json()["error"]["message"]


def test_an_unload_lets_a_stream_finish_and_a_request_meanwhile_gets_a_fresh_load(
    own_node: Node,
) -> None:
    body = {"model": "slow", "prompt": "x y", "max_tokens": 60, "stream": True}
    answers: list[httpx.Response] = []
    with own_node.http.stream("POST", f"{own_node.url}/v1/completions", json=body) as response:
        pieces = events(response)
        got = [next(pieces)]
        before = own_node_row(own_node)["since_ns"]
        operator = threading.Thread(target=lambda: answers.append(_unload(own_node)))
        operator.start()
        eventually(lambda: _state(own_node, "slow") == "draining", "it does not drain")
        late = threading.Thread(target=lambda: answers.append(_complete(own_node)))
        late.start()
        got += list(pieces)
        operator.join(30)
        late.join(30)

    assert got[-1] == "[DONE]"
    assert sum(len(e["choices"][0]["text"].split()) for e in got[:-1]) == 60
    assert [answer.status_code for answer in answers] == [200, 200]
    assert own_node_row(own_node)["since_ns"] > before


def own_node_row(node: Node) -> dict[str, Any]:
    with httpx.Client(timeout=60, verify=False) as another:
        rows = another.get(
            f"{node.url}/admin/v1/ps", headers={"authorization": f"Bearer {node.admin_token}"}
        ).json()["data"]
    return next(row for row in rows if row["model"] == "slow@1")


def _state(node: Node, model: str) -> str:
    with httpx.Client(timeout=60, verify=False) as another:
        rows = another.get(
            f"{node.url}/admin/v1/models", headers={"authorization": f"Bearer {node.admin_token}"}
        ).json()["data"]
    return str(next(row["state"] for row in rows if row["name"] == model))


def _unload(node: Node) -> httpx.Response:
    with httpx.Client(timeout=60, verify=False) as another:
        return another.post(
            f"{node.url}/admin/v1/models/slow/unload",
            headers={"authorization": f"Bearer {node.admin_token}"},
        )


def _complete(node: Node, model: str = "slow") -> httpx.Response:
    with httpx.Client(timeout=60, verify=False) as another:
        body = {"model": model, "prompt": "late", "max_tokens": 2}
        return another.post(f"{node.url}/v1/completions", json=body)


def test_an_unload_that_waits_for_a_load_does_not_take_it_from_who_asked_for_it(
    own_node: Node,
) -> None:
    answers: list[httpx.Response] = []
    caller = threading.Thread(target=lambda: answers.append(_complete(own_node, "heavy")))
    caller.start()
    eventually(lambda: own_node.state("heavy") == "loading", "it does not load")

    own_node.admin("POST", "/models/heavy/unload")
    caller.join(30)

    assert [answer.status_code for answer in answers] == [200]


def test_loads_and_unloads_amid_traffic_lose_no_request(own_node: Node) -> None:
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(timeout=60, verify=False) as client:
            for _ in range(15):
                answer = client.post(
                    f"{own_node.url}/v1/chat/completions",
                    json=chat_body(model="later", max_tokens=3),
                )
                statuses.append(answer.status_code)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    while any(caller.is_alive() for caller in callers):
        if own_node.state("later") == "ready":
            own_node.admin("POST", "/models/later/unload")
    for caller in callers:
        caller.join(30)

    assert statuses == [200] * 60
    assert own_node.verified()["ok"] is True


def test_the_command_line_loads_and_unloads(own_node: Node) -> None:
    assert own_node.cli("load", "later").returncode == 0
    assert own_node.state("later") == "ready"
    assert own_node.cli("unload", "later").returncode == 0
    assert own_node.state("later") == "absent"
    assert own_node.admin("POST", "/models/later/dance").status_code == 404


def test_a_model_with_slashes_in_its_name_is_one_model(new_node: NewNode) -> None:
    node = new_node("[models.'org/model']\nengine = 'fake'\nload = 'request'\n").start()

    assert node.cli("load", "org/model").returncode == 0
    assert node.chat(model="org/model", max_tokens=1).status_code == 200
    assert node.get("/v1/models/org/model").json()["id"] == "org/model"
    assert node.cli("unload", "org/model").returncode == 0


def test_an_unknown_model_cannot_be_loaded(own_node: Node) -> None:
    response = own_node.admin("POST", "/models/ecco/load")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


# ------------------------------------------------------------ models that cannot be loaded


def checkpoint(folder: Path, *, gib: int) -> Path:
    """A folder with a tokenizer, and weights of which only the header is real."""
    folder.mkdir(parents=True)
    words = {word: i for i, word in enumerate(["[UNK]", "Hello", "x"])}
    Tokenizer(WordLevel(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "vocab_size": 3,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    size = gib * 2**30
    header = json.dumps(
        {
            "model.embed_tokens.weight": {
                "dtype": "F32",
                "shape": [size // 4 // 64, 64],
                "data_offsets": [0, size],
            }
        }
    ).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)  # sparse: it takes no room on disk
    return folder


BAD_MODELS = """
[devices]
cpu_memory = "1GiB"

[models.echo]
engine = "fake"

[models.missing]
engine = "torch"
source = "{folder}/nowhere"
options = {{ device = "cpu" }}

[models.empty]
engine = "torch"
source = "{folder}/empty"
options = {{ device = "cpu" }}

[models.huge]
engine = "torch"
source = "{folder}/huge"
options = {{ device = "cpu" }}

[models.broken]
engine = "fake"
[models.broken.options]
fail_after_tokens = 0
"""


@pytest.fixture(scope="module")
def bad_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Serves one good model and several that can't be."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint(folder / "huge", gib=64)
    (folder / "empty").mkdir()
    node = Node(tmp_path_factory.mktemp("bad"), BAD_MODELS.format(folder=folder))
    try:
        yield node.start()
    finally:
        node.close()


BAD = {
    "missing": ("There is no folder", "model_unavailable"),
    "empty": ("has no tokenizer.json", "model_unavailable"),
    "huge": ("64.0 GiB", "model_does_not_fit"),
    "broken": ("first token", "model_unavailable"),
}


@pytest.mark.parametrize("model", BAD)
def test_a_model_that_cannot_be_loaded_says_why_and_the_others_serve(
    bad_node: Node, model: str
) -> None:
    why, code = BAD[model]

    loaded = bad_node.admin("POST", f"/models/{model}/load")
    asked = bad_node.post("/v1/completions", {"model": model, "prompt": "x", "max_tokens": 1})

    for response in (loaded, asked):
        assert response.status_code == 503, response.text
        assert why in response.json()["error"]["message"]
    assert loaded.json()["error"]["code"] == code
    assert bad_node.state(model) == "failed"
    assert bad_node.chat(max_tokens=1).status_code == 200


def test_a_model_that_cannot_fit_is_refused_with_the_numbers_before_its_weights_are_read(
    bad_node: Node,
) -> None:
    message = bad_node.admin("POST", "/models/huge/load").json()["error"]["message"]

    assert "64.0 GiB" in message
    assert "1.0 GiB" in message
    assert "cpu" in message
    assert _rss_bytes(bad_node.pid) < 2 * 2**30


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


def test_a_server_with_failed_models_is_ready_and_names_them(bad_node: Node) -> None:
    rows = {m["name"]: m for m in bad_node.admin("GET", "/models").json()["data"]}

    assert bad_node.get("/ready").status_code == 200
    assert {name: row["state"] for name, row in rows.items()} == {
        "echo": "ready",
        **dict.fromkeys(BAD, "failed"),
    }
    for name, (why, _) in BAD.items():
        assert why in rows[name]["reason"]
        assert f"{name}@1" in bad_node.log()
    assert "Traceback" not in bad_node.log()


def test_requests_for_a_bad_model_are_metered_as_refused_or_failed(bad_node: Node) -> None:
    response = bad_node.post("/v1/completions", {"model": "huge", "prompt": "x"})

    entry = bad_node.entry(response.headers["x-request-id"])
    assert entry["outcome"] in ("refused", "failed")
    assert entry["code"] in ("model_does_not_fit", "model_unavailable")


def test_what_admin_does_is_not_confused_by_half_a_request(open_node: Node) -> None:
    with open_node.raw() as connection:
        headers = {"authorization": f"Bearer {open_node.admin_token}", "content-length": "999"}
        connection.sendall(http_bytes("/admin/v1/orgs", b'{"name"', headers=headers))

    assert open_node.get("/health").status_code == 200
