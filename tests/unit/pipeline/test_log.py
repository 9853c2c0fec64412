"""How requests ended, as the log says it."""

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.caller import Caller
from llmhost.core.events import RequestEnded
from llmhost.core.output import FinishReason, Outcome, Usage
from llmhost.observe.logs import Gatherer, TextLines
from llmhost.observe.metrics import Metrics
from llmhost.pipeline.log import Log
from llmhost.pipeline.log import _text_again as text_again

names = st.none() | st.sampled_from(["a", "echo@1", "a b", 'x="y"', "\n", "é", ""]) | st.text()
times = st.sampled_from([0.0, 0.04, 0.05, 1.0, 99.95, 99_998.96, 123_456.78]) | st.floats(0, 1e7)


def event(**facts: object) -> RequestEnded:
    known = {
        "request_id": "req_1",
        "client_request_id": None,
        "utc_ns": 1,
        "kind": "chat",
        "model": "echo@1",
        "caller": Caller("key1", "acme", "search"),
        "outcome": Outcome.ANSWERED,
        "status": 200,
        "code": None,
        "finish_reason": FinishReason.STOP,
        "usage": Usage(40, 0, 7),
        "amount_nano": 66_000,
        "queue_ms": 1.25,
        "ttft_ms": 3.456,
        "total_ms": 7.0,
        "stream": False,
    }
    return RequestEnded(**{**known, **facts})  # type: ignore[arg-type]


class Other(Gatherer):
    """One for which a record of each line is made."""


@contextmanager
def heard(kind: type[Gatherer]) -> Iterator[io.StringIO]:
    said = io.StringIO()
    handler, log, root = kind(said), logging.getLogger("llmhost.request"), logging.getLogger()
    handler.setFormatter(TextLines())
    before, level = root.handlers[:], log.level
    root.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    try:
        yield said
    finally:
        root.handlers[:] = before
        log.setLevel(level)


def told(ended: RequestEnded, kind: type[Gatherer]) -> str:
    """Its line, without the time."""
    with heard(kind) as said:
        Log(Metrics(), ())(Context(ended))  # type: ignore[arg-type]
    return said.getvalue().partition(" ")[2]


def told_together(ended: Sequence[RequestEnded], kind: type[Gatherer]) -> list[str]:
    """The lines of several, without their times."""
    with heard(kind) as said:
        Log(Metrics(), ()).all([Context(each) for each in ended])  # type: ignore[misc]
    return [line.partition(" ")[2] for line in said.getvalue().splitlines(keepends=True)]


class Context:
    deployment = None

    def __init__(self, ended: RequestEnded) -> None:
        self.event = lambda: ended


def test_an_answer_is_one_line_with_its_figures() -> None:
    assert told(event(), Gatherer) == (
        "info    request.answered request=req_1 kind=chat model=echo@1 org=acme key=key1 status=200 finish=stop"
        " prompt_tokens=40 output_tokens=7 ttft_ms=3.5 total_ms=7 amount_nano=66000\n"
    )


def test_what_a_refused_request_brought_is_quoted() -> None:
    refused = event(
        outcome=Outcome.FAILED, model="a b", code="broken", status=500, client_request_id="c=1"
    )
    line = told(refused, Gatherer)
    assert line.startswith('warning request.failed request=req_1 client_request="c=1" kind=chat')
    assert 'model="a b"' in line


@given(
    names,
    names,
    names,
    names,
    st.sampled_from(Outcome),
    st.none() | st.sampled_from(FinishReason),
    st.none() | times,
    times,
)
def test_a_line_is_the_same_whether_or_not_a_record_is_made_of_it(
    client: str | None,
    model: str | None,
    run: str | None,
    code: str | None,
    outcome: Outcome,
    finish: FinishReason | None,
    ttft_ms: float | None,
    total_ms: float,
) -> None:
    ended = event(
        client_request_id=client,
        model=model or "",
        run_id=run,
        code=code,
        outcome=outcome,
        finish_reason=finish,
        ttft_ms=ttft_ms,
        total_ms=total_ms,
        caller=None if code else Caller("key1", "acme", None),
    )
    line = told(ended, Gatherer)
    assert line == told(ended, Other)
    broken = event(outcome=Outcome.FAILED)
    for kind in (Gatherer, Other):
        assert told_together([ended, broken, ended], kind) == [line, told(broken, kind), line]


def test_counts_are_the_same_whether_or_not_requests_are_told_of_together() -> None:
    ended = [
        event(outcome=outcome, finish_reason=reason)
        for outcome in Outcome
        for reason in FinishReason
    ]
    ended += [event(ttft_ms=None, code="broken"), event()]
    alone, together = Metrics(), Metrics()
    observed: list[RequestEnded] = []
    for each in ended:
        Log(alone, ())(Context(each))  # type: ignore[arg-type]
    Log(together, (observed.append,)).all([Context(each) for each in ended])  # type: ignore[misc]
    assert observed == ended
    counted, again = (
        [line for line in metrics.render().splitlines() if b'model_name="unknown"' in line]
        for metrics in (alone, together)
    )
    assert counted == again
    assert any(line.startswith(b"llmhost_requests_total{") for line in counted)


def test_of_a_name_that_was_never_looked_up_nothing_is_kept() -> None:
    kept = text_again.cache_info().currsize
    for number in range(3):
        told(event(outcome=Outcome.CANCELLED, model=f"made up {number}"), Gatherer)
    assert text_again.cache_info().currsize == kept


@pytest.mark.parametrize("kind", [Gatherer, Other])
def test_a_line_is_not_made_where_nobody_hears_it(kind: type[Gatherer]) -> None:
    with heard(kind) as said:
        logging.getLogger("llmhost.request").setLevel(logging.ERROR)
        Log(Metrics(), ())(Context(event()))  # type: ignore[arg-type]
    assert said.getvalue() == ""
