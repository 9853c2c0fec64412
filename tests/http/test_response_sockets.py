"""/v1/responses over a WebSocket: with the real client, and with one that does what it should not."""

import json
from collections.abc import Callable
from socket import create_connection
from typing import Any

import pytest
from openai import OpenAI
from server_process import Node, eventually
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

BODY: dict[str, Any] = {"model": "echo", "max_output_tokens": 4, "input": "say something"}


def socket_at(node: Node, path: str = "/v1/responses", **options: Any) -> ClientConnection:
    url = node.url.replace("http", "ws", 1)
    return connect(f"{url}{path}", proxy=None, compression=None, **options)


def ask(socket: ClientConnection, **body: Any) -> list[dict[str, Any]]:
    """Every event of one response, or the one that refuses it."""
    socket.send(json.dumps({"type": "response.create", **BODY, **body}))
    told: list[dict[str, Any]] = []
    while not told or told[-1]["type"] not in ENDS:
        told.append(json.loads(socket.recv(timeout=60)))
        if "status" in told[-1]:
            return told
    return told


ENDS = {"response.completed", "response.incomplete", "response.failed"}


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # the client's own
def test_the_client_makes_responses_over_a_socket_that_are_metered_as_over_http(
    open_node: Node, client_of: Callable[[Node, str], OpenAI]
) -> None:
    client = client_of(open_node, "any")
    client._strict_response_validation = True
    with client.responses.connect() as connection:
        told = []
        for text in ("say something", "and more"):
            connection.response.create(model="echo", input=text, max_output_tokens=4)
            for event in connection:
                told.append(event)
                if event.type in ENDS:
                    break
    ends: list[Any] = [event.response for event in told if event.type in ENDS]

    assert [response.status for response in ends] == ["incomplete", "incomplete"]
    for response in ends:
        assert client.responses.retrieve(response.id) == response
        entry = open_node.entry(response.id.replace("resp_", "req_"))
        assert entry["amount_nano"] > 0


def test_the_events_are_those_of_a_stream(open_node: Node) -> None:
    with socket_at(open_node) as socket:
        told = ask(socket)

    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert told[0]["type"] == "response.created"
    deltas = [event["delta"] for event in told if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == told[-1]["response"]["output"][0]["content"][0]["text"]


def test_what_is_stored_nowhere_is_gone_on_with_on_its_own_socket_until_one_fails(
    open_node: Node,
) -> None:
    with socket_at(open_node) as socket, socket_at(open_node) as other:
        first = ask(socket, store=False)[-1]["response"]
        second = ask(socket, previous_response_id=first["id"])[-1]["response"]
        assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        (elsewhere,) = ask(other, previous_response_id=first["id"])
        assert elsewhere["error"]["code"] == "previous_response_not_found"
        last = ask(socket, store=False)[-1]["response"]
        assert ask(socket, previous_response_id=last["id"], model="fragile")[-1]["type"] in ENDS
        (gone,) = ask(socket, previous_response_id=last["id"])
        assert gone["status"] == 400

    kept = open_node.post("/v1/responses", {**BODY, "previous_response_id": second["id"]}).json()
    assert kept["usage"]["input_tokens"] > second["usage"]["input_tokens"]


def test_what_is_stored_is_not_stored_again_with_what_goes_on_with_it(open_node: Node) -> None:
    with socket_at(open_node) as socket:
        first = ask(socket)[-1]["response"]
        second = ask(socket, previous_response_id=first["id"])[-1]["response"]
    listed = open_node.get(f"/v1/responses/{second['id']}/input_items").json()

    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert len(listed["data"]) == 1


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # the client's own
def test_who_would_change_a_response_gets_his_words_back(
    open_node: Node, client_of: Callable[[Node, str], OpenAI]
) -> None:
    client = client_of(open_node, "any")
    client._strict_response_validation = True
    with client.responses.connect() as connection:
        connection.response.create(model="echo", input="say something", max_output_tokens=2)
        connection.response.steer(input="wait", previous_response_id="resp_1")
        told: list[Any] = []
        for event in connection:
            told.append(event)
            if event.type == "response.steer.failed":
                break
        connection.response.create(model="echo", input="wait", max_output_tokens=2)
        after = next(iter(connection))

    assert [event.type for event in told[-2:]] == ["response.incomplete", "response.steer.failed"]
    assert told[-1].error.code == "steering_not_supported"
    assert (told[-1].steer.input, told[-1].steer.previous_response_id) == ("wait", "resp_1")
    assert after.type == "response.created"


@pytest.mark.parametrize("store", [True, False])
def test_a_prompt_is_computed_ahead_and_gone_on_with(tiny_node: Node, store: bool) -> None:
    said = {"model": "tiny", "store": store, "temperature": 0}
    notes = f"Some notes that nobody has sent before, {'kept' if store else 'not kept'}: " * 9
    with socket_at(tiny_node) as socket:
        *begun, end = ask(socket, **said, instructions=notes, input="Hello!", generate=False)
        warm = end["response"]
        rest = {"input": [], "instructions": notes, "previous_response_id": warm["id"]}
        made = ask(socket, **said, **rest)[-1]["response"]

    assert [event["type"] for event in begun] == ["response.created", "response.in_progress"]
    assert (end["type"], warm["status"], warm["output"]) == ("response.completed", "completed", [])
    assert warm["usage"]["output_tokens"] == 0
    assert made["usage"]["input_tokens"] == warm["usage"]["input_tokens"]
    assert made["usage"]["input_tokens_details"]["cached_tokens"] > 100
    assert made["output"][0]["content"][0]["text"]
    tokens = tiny_node.entry(warm["id"].replace("resp_", "req_"))["tokens"]
    assert tokens.pop("output") == 0
    assert sum(tokens.values()) == warm["usage"]["input_tokens"]


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("no json", None, None),
        (json.dumps({"type": "response.steer"}), "invalid_value", "type"),
        (
            json.dumps({"type": "response.create", **BODY, "model": "nobody"}),
            *("model_not_found", "model"),
        ),
        (
            json.dumps({"type": "response.create", **BODY, "background": True}),
            *("unsupported_parameter", "background"),
        ),
        (json.dumps({"type": "response.create", **BODY, "tools": 7}), "invalid_value", "tools"),
    ],
)
def test_what_is_wrong_is_told_and_the_socket_goes_on(
    open_node: Node, message: str, code: str | None, param: str | None
) -> None:
    with socket_at(open_node) as socket:
        socket.send(message)
        told = json.loads(socket.recv(timeout=60))
        assert told["type"] == "error"
        assert told["status"] in (400, 404)
        assert (told["error"]["code"], told["error"]["param"]) == (code, param)
        assert ask(socket)[-1]["type"] == "response.incomplete"


def test_a_handshake_needs_what_every_request_needs(open_node: Node, keyed_node: Node) -> None:
    key = keyed_node.create_key("acme")["key"]
    with socket_at(keyed_node, additional_headers={"authorization": f"Bearer {key}"}) as socket:
        assert ask(socket)[-1]["type"] == "response.incomplete"
    for node, path, options, status in (
        (keyed_node, "/v1/responses", {}, 401),
        (open_node, "/v1/responses", {"origin": "https://evil.example"}, 403),
        (open_node, "/v1/completions", {}, 405),
        (open_node, "/nowhere", {}, 404),
    ):
        with pytest.raises(InvalidStatus) as refused, socket_at(node, path, **options):
            pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["error"]["message"]
    raw = create_connection(("127.0.0.1", open_node.port))
    with (
        pytest.raises(InvalidStatus) as refused,
        connect("ws://evil.example/v1/responses", sock=raw, proxy=None),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_a_key_is_asked_for_what_it_may_at_every_message(keyed_node: Node) -> None:
    made = keyed_node.create_key("acme")
    headers = {"authorization": f"Bearer {made['key']}"}
    with socket_at(keyed_node, additional_headers=headers) as socket:
        assert ask(socket)[-1]["type"] == "response.incomplete"
        for change, status, code in (
            ({"models": ["other"]}, 403, "model_not_allowed"),
            ({"disabled": True}, 401, "invalid_api_key"),
        ):
            path = f"/keys/{made['id']}"
            keyed_node.admin("PATCH", path, change).raise_for_status()
            (refused,) = ask(socket)
            assert (refused["status"], refused["error"]["code"]) == (status, code)


def test_a_socket_that_was_opened_without_a_key_needs_one_once_there_is_one(
    new_node: Callable[..., Node],
) -> None:
    node = new_node().start()
    with socket_at(node) as socket:
        assert ask(socket)[-1]["type"] == "response.incomplete"
        node.create_key("acme")
        (refused,) = ask(socket)

    assert (refused["status"], refused["error"]["code"]) == (401, "invalid_api_key")


def test_a_client_that_leaves_stops_its_response_which_is_billed(open_node: Node) -> None:
    with socket_at(open_node) as socket:
        socket.send(
            json.dumps(
                {"type": "response.create", **BODY, "model": "slow", "max_output_tokens": 5000}
            )
        )
        begun = json.loads(socket.recv(timeout=60))

    name = begun["response"]["id"]
    entry = open_node.entry(name.replace("resp_", "req_"))
    assert entry["outcome"] == "cancelled"
    eventually(lambda: open_node.is_idle("slow"), "its sequence goes on")
    path = f"/v1/responses/{name}"
    eventually(lambda: open_node.get(path).status_code == 200, "it is nowhere")
    assert open_node.get(path).json()["status"] == "cancelled"


def test_a_drain_lets_the_response_end_and_closes_the_socket(
    new_node: Callable[..., Node],
) -> None:
    node = new_node('[models.slow]\nengine = "fake"\n[models.slow.options]\ntoken_delay_ms = 20\n')
    node.start()
    with socket_at(node) as socket, socket_at(node) as idle:
        body = {**BODY, "model": "slow", "max_output_tokens": 30}
        socket.send(json.dumps({"type": "response.create", **body}))
        told = [json.loads(socket.recv(timeout=60))]
        node.signal(15)
        while told[-1]["type"] not in ENDS:
            told.append(json.loads(socket.recv(timeout=60)))
        assert told[-1]["response"]["usage"]["output_tokens"] == 30
        for each in (socket, idle):
            with pytest.raises(ConnectionClosed):
                each.recv(timeout=60)
        assert node.wait() == 0
    assert "Traceback" not in node.log()
