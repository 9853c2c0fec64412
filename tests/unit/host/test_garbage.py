"""Full collections come in quiet moments, and what a model brought is not gone through again while it is there."""

import pytest

from llmhost.host import garbage as garbage_module
from llmhost.host.garbage import STALE_S, Garbage


class Collector:
    """Stands for the module `gc`, and notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def freeze(self) -> None:
        self.calls.append("freeze")

    def unfreeze(self) -> None:
        self.calls.append("unfreeze")

    def collect(self) -> int:
        self.calls.append("collect")
        return 0

    def take(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


WHOLE = ["unfreeze", "collect", "freeze"]


class Server:
    def __init__(self) -> None:
        self.loaded: frozenset[str] = frozenset()
        self.is_idle = True
        self.garbage = Garbage(lambda: self.loaded, lambda: self.is_idle)
        self.began_s = self.garbage._looked_s

    def look(self, after_s: float) -> None:
        self.garbage.look(self.began_s + after_s)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    collector = Collector()
    monkeypatch.setattr(garbage_module, "gc", collector)
    return collector


@pytest.fixture
def server(collector: Collector) -> Server:
    server = Server()
    server.look(1)
    assert collector.take() == WHOLE
    return server


def test_a_quiet_server_is_left_alone(server: Server, collector: Collector) -> None:
    server.look(5)
    server.look(10)

    assert collector.take() == []


def test_a_model_that_came_amid_requests_is_set_aside_at_once(
    server: Server, collector: Collector
) -> None:
    server.is_idle = False
    server.loaded = frozenset({"a"})
    server.look(5)
    assert collector.take() == ["freeze"]

    server.look(10)
    assert collector.take() == []
    server.is_idle = True
    server.look(15)
    assert collector.take() == WHOLE


def test_what_a_model_left_behind_is_collected_in_the_next_quiet_moment(
    server: Server, collector: Collector
) -> None:
    server.loaded = frozenset({"a"})
    server.look(5)
    collector.take()
    server.is_idle, server.loaded = False, frozenset()
    server.look(10)
    assert collector.take() == []

    server.is_idle = True
    server.look(15)
    assert collector.take() == WHOLE


def test_a_server_that_is_never_quiet_looks_at_what_is_not_set_aside(
    server: Server, collector: Collector
) -> None:
    server.is_idle = False
    server.look(2 + STALE_S)
    assert collector.take() == ["collect"]

    server.look(10 + STALE_S)
    assert collector.take() == []


def test_after_a_while_a_quiet_server_looks_at_everything(
    server: Server, collector: Collector
) -> None:
    server.look(2 + STALE_S)

    assert collector.take() == WHOLE
