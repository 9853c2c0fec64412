"""Many streams at once: each gets its own answer, and none waits for another."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from crowd import Told, cpu_s, crowd, rss_bytes
from server_process import Node, eventually, http_bytes

from llmhost.testing import fake_words

pytestmark = pytest.mark.bars

NewNode = Callable[..., Node]
Bar = Callable[[str], None]

WIDE = """
[models.echo]
engine = "fake"
max_batch_size = 256
max_tokens_per_batch = 4096
[models.echo.options]
token_delay_ms = {delay_ms}
"""


@pytest.mark.parametrize("delay_ms", [0, 25], ids=["flat out", "paced"])
def test_256_streams_each_get_their_own_answer(new_node: NewNode, bar: Bar, delay_ms: int) -> None:
    node = new_node(WIDE.format(delay_ms=delay_ms)).start()
    tokens = [150 + i % 50 for i in range(256)]
    bodies = [
        {"model": "echo", "prompt": f"question {i} of a crowd", "max_tokens": tokens[i]}
        for i in range(256)
    ]
    before, began = cpu_s(node.pid), time.perf_counter()

    told = crowd(node.port, "/v1/completions", bodies)

    took_s, used_s = time.perf_counter() - began, cpu_s(node.pid) - before
    for i, one in enumerate(told):
        assert one.status == 200
        assert one.text == fake_words(str(bodies[i]["prompt"]), tokens[i])
        assert one.is_done
    total, writes = sum(tokens), sum(len(one.chunks) for one in told)
    eventually(lambda: node.is_idle("echo"), "sequences are left")
    assert node.verified()["ok"]
    bar(
        f"256 streams ({delay_ms} ms a step): {total} tokens right in {took_s:.2f} s,"
        f" {total / took_s:.0f} tokens/s, {1e6 * used_s / total:.0f} us of server CPU a token,"
        f" {total / writes:.1f} tokens a write"
    )


def beside(node: Node, count: int = 64) -> tuple[float, list[Told]]:
    """How long `count` paced streams take, and what they got."""
    bodies = [{"model": "paced", "prompt": f"voice {i}", "max_tokens": 150} for i in range(count)]
    began = time.perf_counter()
    told = crowd(node.port, "/v1/completions", bodies)
    return time.perf_counter() - began, told


def test_a_reader_that_stops_reading_stops_nobody_else(new_node: NewNode, bar: Bar) -> None:
    node = new_node(
        "[models.paced]\nengine = 'fake'\n[models.paced.options]\ntoken_delay_ms = 10\n"
        "[models.flood]\nengine = 'fake'\n"
    ).start()
    beside(node, 8)
    alone_s, told = beside(node)
    before = rss_bytes(node.pid)
    tokens, deaf_clients = 100_000, 4
    body = {"model": "flood", "prompt": "x", "max_tokens": tokens, "stream": True}
    connections = [node.raw(receive_buffer=1024) for _ in range(deaf_clients)]
    opened = [connection.__enter__() for connection in connections]
    try:
        for deaf in opened:
            deaf.sendall(http_bytes("/v1/completions", body))
            assert deaf.recv(16)

        with_deaf_s, told_beside = beside(node)

        eventually(lambda: node.is_idle("flood"), "the flood waits for its reader", 120)
        grown = rss_bytes(node.pid) - before
    finally:
        for connection in connections:
            connection.__exit__(None, None, None)
    assert all(one.is_done for one in (*told, *told_beside))
    entries = eventually(
        lambda: [e for e in node.entries() if e["model"] == "flood@1"], "the flood is not metered"
    )
    assert {e["tokens"]["output"] for e in entries} == {tokens}
    bar(
        f"64 streams beside {deaf_clients} deaf readers: {with_deaf_s:.2f} s, without {alone_s:.2f} s;"
        f" server grew {grown / 2**20:.0f} MiB for {deaf_clients * tokens} unread tokens"
        f" ({grown / deaf_clients / tokens:.0f} bytes each)"
    )
    assert with_deaf_s < 2 * alone_s + 2
    assert grown < deaf_clients * tokens * 1000


def test_a_deaf_reader_that_leaves_is_forgotten(new_node: NewNode, bar: Bar) -> None:
    node = new_node("[models.flood]\nengine = 'fake'\n").start()
    body = {"model": "flood", "prompt": "x", "max_tokens": 50_000, "stream": True}
    sizes = []
    for _ in range(6):
        with node.raw(receive_buffer=1024) as deaf:
            deaf.sendall(http_bytes("/v1/completions", body))
            assert deaf.recv(16)
            eventually(lambda: node.loaded("flood")["running"] == 0, "it waits for its reader", 60)
        eventually(lambda: node.is_idle("flood"), "the sequence goes on")
        sizes.append(rss_bytes(node.pid))
    bar(
        f"6 deaf readers of 50,000 tokens, one after another: {sizes[0] / 2**20:.0f} MiB after the first,"
        f" {sizes[-1] / 2**20:.0f} MiB after the last"
    )
    assert sizes[-1] < sizes[1] + 40 * 2**20


# ------------------------------------------------------------ the built-in model


TINY = """
[models.tiny]
engine = "torch"
source = "builtin:tiny"
[models.tiny.options]
device = "cpu"
threads = 1
"""


def test_64_streams_of_the_built_in_model_say_what_each_says_alone(
    new_node: NewNode, bar: Bar
) -> None:
    from llmhost.engines.builtin.corpus import known_answers

    node = new_node(TINY).start()
    known = [k for k in known_answers() if k.tools is None and "<tool_call>" not in k.answer]
    known = known[:: len(known) // 64][:64]
    bodies: list[dict[str, Any]] = [
        {"model": "tiny", "messages": k.messages, "temperature": 0, "max_tokens": 200}
        for k in known
    ]
    alone: list[str] = []
    began = time.perf_counter()
    for body in bodies:
        answer = node.post("/v1/chat/completions", body).json()
        alone.append(answer["choices"][0]["message"]["content"])
    alone_s, began = time.perf_counter() - began, time.perf_counter()

    told = crowd(node.port, "/v1/chat/completions", bodies)

    took_s = time.perf_counter() - began
    differing = [i for i, one in enumerate(told) if one.text != alone[i]]
    by_heart = sum(text == k.answer for text, k in zip(alone, known, strict=True))
    bar(
        f"builtin:tiny, 64 streams at once: {64 - len(differing)} of 64 as alone, {by_heart} of 64 as in the"
        f" corpus; {took_s:.1f} s together, {alone_s:.1f} s one by one"
    )
    assert not differing, [(alone[i], told[i].text) for i in differing]
    assert by_heart >= 60


def test_readers_of_every_speed_get_the_same_text(new_node: NewNode, bar: Bar) -> None:
    """Slow readers get their pieces joined; what is joined is never changed."""
    node = new_node(
        "[models.echo]\nengine = 'fake'\n[models.echo.options]\ntoken_delay_ms = 1\n"
    ).start()
    body = {"model": "echo", "prompt": "same for all", "max_tokens": 2000, "stream": True}
    texts: list[str] = []

    def read(step: int) -> None:
        with node.raw(receive_buffer=4096) as connection:
            connection.sendall(http_bytes("/v1/completions", body))
            raw = b""
            while b"[DONE]" not in raw and (piece := connection.recv(step)):
                raw += piece
        texts.append(_text_of(raw))

    readers = [threading.Thread(target=read, args=(step,)) for step in (97, 1024, 65536)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(120)

    assert texts == [fake_words("same for all", 2000)] * 3
    bar("readers of 97, 1024 and 65536 bytes at a time: the same 2000 words")


def _text_of(raw: bytes) -> str:
    told = Told()
    rest = raw.split(b"\r\n\r\n", 1)[1]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        told.chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return told.text
