"""Log lines: one event each, its facts readable by people and by programs, and never a word of a prompt."""

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config.schema import Settings
from llmhost.config.schema.engines import FakeOptions
from llmhost.config.schema.models import ModelSpec
from llmhost.config.schema.safety import SafetySettings
from llmhost.engines.fake import FakeRunner
from llmhost.hooks.spec import hookimpl
from llmhost.observe.logs import (
    Gatherer,
    JsonLines,
    TextLines,
    log_event,
    request_id,
    start_logging,
)
from llmhost.testing import make_host

log = logging.getLogger("llmhost.test")


def line(form: logging.Formatter, name: str, **facts: Any) -> str:
    record = log.makeRecord("llmhost", logging.INFO, "file", 1, name, (), None)
    record.created = 0.0
    record.facts = facts
    return form.format(record)


def test_a_text_line_is_time_level_event_and_facts() -> None:
    assert (
        line(TextLines(), "model.ready", model="m@1", took_s=1.5, bytes=640)
        == "00:00:00.000 info    model.ready model=m@1 took_s=1.5 bytes=640"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("two words", '"two words"'),
        ("", '""'),
        ('say "hi"', r'"say \"hi\""'),
        ("a=b", '"a=b"'),
        ("a\nb", r'"a\nb"'),
        ("a\rb", r'"a\rb"'),
        ("a\tb", r'"a\tb"'),
        ("\x1b[31mred", r'"\u001b[31mred"'),
        ("a\u2028b", r'"a\u2028b"'),
        ("a\x7fb", r'"a\u007fb"'),
        ("a\x85b", r'"a\u0085b"'),
        ("caf\u00e9", "caf\u00e9"),
        (7, "7"),
        (0.25, "0.25"),
        (True, "True"),
    ],
)
def test_a_value_that_would_be_misread_is_quoted(value: Any, shown: str) -> None:
    assert line(TextLines(), "a.b", key=value).endswith(f" key={shown}")


@given(st.text())
def test_whatever_a_fact_holds_a_text_line_stays_one_printable_line(value: str) -> None:
    text = line(TextLines(), "a.b", key=value)

    assert text.isprintable()
    assert len(text.splitlines()) == 1


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text() | st.integers() | st.booleans()))
def test_a_json_line_is_one_object_with_facts_as_fields(facts: dict[str, Any]) -> None:
    text = line(JsonLines(), "model.ready", **facts)

    assert "\n" not in text
    assert json.loads(text) == {
        "at": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "event": "model.ready",
        **facts,
    }


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_the_request_that_runs_is_named_unless_the_line_names_its_own(
    form: logging.Formatter,
) -> None:
    token = request_id.set("req_1")
    try:
        current, own = line(form, "a.b"), line(form, "a.b", request="req_2")
    finally:
        request_id.reset(token)

    assert "req_1" in current
    assert "req_2" in own and "req_1" not in own


@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_an_error_brings_its_traceback(form: logging.Formatter) -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        record = log.makeRecord("x", logging.ERROR, "f", 1, "a.b", (), sys.exc_info())

    assert "ValueError: odd" in form.format(record)


def test_facts_that_are_none_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmhost")
    log_event(log, "a.b", kept=0, gone=None)
    [record] = caplog.records

    assert record.__dict__["facts"] == {"kept": 0}


# -- prompts --------------------------------------------------------------------------------------------------------

MARKER = "xylophone-4711"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Everything that a server that logs at debug level writes."""
    root, own = logging.getLogger(), logging.getLogger("llmhost")
    before = (root.handlers[:], root.level, own.level)
    text = io.StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    start_logging("debug", "text")
    root.setLevel(logging.DEBUG)
    yield text
    logging.captureWarnings(capture=False)
    root.handlers[:], own.level = before[0], before[2]
    root.setLevel(before[1])
    own.setLevel(before[2])


class Refusing:
    @hookimpl
    def check_input(self, request: Any) -> None:
        if request.user == "fail":
            raise RuntimeError("down")


class Failing:
    """An engine whose every step fails."""

    name, needs_files = "failing", False

    @hookimpl
    def register_engines(self, register: Any) -> None:
        register(self)

    def footprint(self, spec: ModelSpec, folder: Any) -> Any:
        return FakeRunner(FakeOptions()).facts

    def tokenizer(self, spec: ModelSpec, folder: Any) -> Any:
        from llmhost.text.words import WordTokenizer

        return WordTokenizer(4096)

    def load(self, spec: ModelSpec, folder: Any, predicted: Any) -> Any:
        runner: Any = FakeRunner(FakeOptions())
        run = runner.run
        runner.run = lambda rows: run(rows) if rows[0].purpose == "probe" else 1 / 0
        return runner

    def device_bytes(self, device: str) -> None:
        return None


async def test_no_prompt_is_in_the_log_at_any_level_however_the_request_ends(
    written: io.StringIO,
) -> None:
    models = {"fake": ModelSpec(engine="fake"), "bad": ModelSpec(engine="failing")}
    rules = Settings(safety=SafetySettings(blocked_words=("forbidden",)))
    async with make_host(plugins=[Refusing(), Failing()], models=models, settings=rules) as host:
        statuses = [
            (await host.chat(MARKER, **body)).status_code
            for body in (
                {"max_tokens": 2},
                {"max_tokens": 2, "stream": True},
                {"model": "nobody"},
                {"max_tokens": 10**6},
                {"temperature": 9},
                {"user": "fail"},
                {"model": "bad"},
                {"stop": MARKER, "max_tokens": 1},
            )
        ]
        statuses.append((await host.chat(f"{MARKER} forbidden")).status_code)
        for raw in (f'{{"messages": "{MARKER}', f'{{"{MARKER}": 1, "messages": ["{MARKER}"]}}'):
            answer = await host.client.post("/v1/chat/completions", content=raw)
            statuses.append(answer.status_code)

    assert statuses == [200, 200, 404, 400, 400, 503, 500, 200, 400, 400, 400]
    assert "request.answered" in written.getvalue()
    assert "step.failed" in written.getvalue()
    assert MARKER not in written.getvalue()


async def test_a_name_made_up_by_a_caller_can_not_forge_a_line(written: io.StringIO) -> None:
    async with make_host() as host:
        await host.chat("hello", model="x\r\n12:00:00.000 info    request.answered")
    lines = [text for text in written.getvalue().splitlines() if "model_not_found" in text]

    assert len(lines) == 1
    assert not [text for text in written.getvalue().splitlines() if text.startswith("12:00:00.000")]


class Stream(io.StringIO):
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        return super().write(text)


def gathered(stream: io.StringIO) -> logging.Logger:
    logger = logging.getLogger(f"gathered.{id(stream)}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(Gatherer(stream))
    return logger


async def test_lines_of_one_turn_of_the_loop_are_one_write_in_their_order() -> None:
    stream = Stream()
    logger = gathered(stream)
    logger.info("one")
    logger.info("two")
    before = stream.getvalue()
    await asyncio.sleep(0)

    assert (before, stream.getvalue(), stream.writes) == ("", "one\ntwo\n", 1)


async def test_what_is_wrong_is_written_at_once_with_what_came_before_it() -> None:
    stream = Stream()
    logger = gathered(stream)
    logger.info("one")
    logger.warning("two")

    assert stream.getvalue() == "one\ntwo\n"
    await asyncio.sleep(0)
    assert stream.writes == 1


def test_without_a_loop_each_line_is_written_at_once() -> None:
    stream = Stream()
    gathered(stream).info("one")

    assert stream.getvalue() == "one\n"


async def test_a_log_that_nobody_reads_any_more_breaks_nothing() -> None:
    stream = Stream()
    logger = gathered(stream)
    stream.close()
    logger.info("one")
    await asyncio.sleep(0)
    logger.warning("two")


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_a_line_is_the_same_whether_one_hears_it_or_two(written: io.StringIO, level: int) -> None:
    facts = {"model": "a model", "kept": True, "gone": None, "share": 0.25, "request": "req_1"}
    log_event(log, "a.b", level=level, **facts)
    logging.getLogger().addHandler(logging.NullHandler())
    log_event(log, "a.b", level=level, **facts)

    first, second = written.getvalue().splitlines()
    assert first.split(" ", 1)[1] == second.split(" ", 1)[1]
    assert first.endswith(' a.b model="a model" kept=True share=0.25 request=req_1')
