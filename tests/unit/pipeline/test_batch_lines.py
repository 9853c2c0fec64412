"""What may stand in a batch's input, and what is written of its lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.caller import LOCAL_CALLER
from llmhost.pipeline.batches.lines import (
    Check,
    Line,
    answered,
    not_run,
    numbered,
    read_line,
    request_id_of,
    window_s,
)
from llmhost.pipeline.batches.record import Batch, BatchStatus, Fault, from_record, to_record
from llmhost.pipeline.batches.source import check_input, lines_left, raw_lines

URL = "/v1/chat/completions"
RIGHT = {"custom_id": "a", "method": "POST", "url": URL, "body": {"model": "m"}}

few = settings(max_examples=25)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4)
json_values = (
    scalars
    | st.lists(scalars, max_size=3)
    | st.dictionaries(st.text(max_size=4), scalars, max_size=3)
)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in RIGHT.items() if key != name}


@pytest.mark.parametrize(
    ("said", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        ({**RIGHT, "custom_id": ""}, "missing_required_parameter", "custom_id"),
        ({**RIGHT, "custom_id": 7}, "missing_required_parameter", "custom_id"),
        ({**RIGHT, "custom_id": "x" * 513}, "missing_required_parameter", "custom_id"),
        ({**RIGHT, "method": "GET"}, "invalid_method", "method"),
        (without("method"), "invalid_method", "method"),
        ({**RIGHT, "url": "/v1/embeddings"}, "invalid_url", "url"),
        (without("url"), "invalid_url", "url"),
        ({**RIGHT, "body": [1]}, "invalid_request", "body"),
        (without("body"), "invalid_request", "body"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_with_its_number(
    said: Any, code: str, param: str | None
) -> None:
    raw = said if isinstance(said, bytes) else json.dumps(said).encode()
    fault = read_line(raw, 7, URL)
    assert isinstance(fault, Fault)
    assert (fault.code, fault.param, fault.line) == (code, param, 7)


@few
@given(body=st.dictionaries(st.text(max_size=4), json_values, max_size=3), name=st.text(min_size=1))
def test_a_right_line_is_read_and_its_body_is_what_was_sent(
    body: dict[str, Any], name: str
) -> None:
    try:
        raw = json.dumps({**RIGHT, "custom_id": name, "body": body}, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    read = read_line(raw, 3, URL)
    assert isinstance(read, Line)
    assert (read.number, read.custom_id, json.loads(read.body)) == (3, name, body)


@few
@given(json_values)
def test_no_line_can_break_the_reading(value: Any) -> None:
    try:
        raw = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert isinstance(read_line(raw, 1, URL), Line | Fault)


def test_lines_that_share_a_name_are_faults_and_the_first_of_them_is_named() -> None:
    check = Check(URL, most_lines=10, longest_bytes=1000)
    for number in (1, 2, 3):
        check.look(json.dumps(RIGHT).encode(), number)
    assert [(fault.code, fault.line) for fault in check.faults] == [
        ("duplicate_custom_id", 2),
        ("duplicate_custom_id", 3),
    ]
    assert "line 1" in check.faults[0].message


def test_a_file_without_lines_and_one_with_too_many_or_too_long_ones_can_not_run() -> None:
    empty = Check(URL, most_lines=2, longest_bytes=100)
    empty.end()
    assert [fault.code for fault in empty.faults] == ["empty_file"]

    many = Check(URL, most_lines=2, longest_bytes=1000)
    for number in (1, 2, 3):
        many.look(json.dumps({**RIGHT, "custom_id": str(number)}).encode(), number)
    assert [fault.code for fault in many.faults] == ["too_many_lines"]
    assert many.is_hopeless

    long = Check(URL, most_lines=2, longest_bytes=20)
    long.look(json.dumps(RIGHT).encode(), 1)
    assert [fault.code for fault in long.faults] == ["line_too_long"]


def test_the_model_is_told_where_all_lines_ask_the_same() -> None:
    check = Check(URL, most_lines=9, longest_bytes=1000)
    check.look(json.dumps(RIGHT).encode(), 1)
    assert check.model == "m"
    check.look(json.dumps({**RIGHT, "custom_id": "b", "body": {"model": "n"}}).encode(), 2)
    assert check.model is None


@few
@given(
    lines=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" ")), max_size=20),
    longest=st.integers(1, 40),
)
def test_a_files_lines_are_read_whole_or_as_too_long(
    lines: list[bytes], longest: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "in"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    found = list(raw_lines(path, longest))
    assert len(found) == len(lines)
    for line, read in zip(lines, found, strict=True):
        assert read.rstrip(b"\n") == line if len(line) <= longest else len(read) > longest


def test_blank_lines_count_and_are_passed_over(tmp_path: Path) -> None:
    assert list(numbered([b"\n", b"a\n", b" \r\n", b"b"])) == [(2, b"a\n"), (4, b"b")]


def test_a_mark_before_the_first_line_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text(f"{json.dumps(RIGHT)}\n", encoding="utf-8-sig")

    check = check_input(path, Check(URL, most_lines=9, longest_bytes=1000), 1000)
    left = lines_left(path, URL, 1000, set())

    assert (check.faults, check.total) == ([], 1)
    assert [line.custom_id for line in left] == [RIGHT["custom_id"]]


def test_lines_that_are_done_are_not_handed_out_again(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text("".join(json.dumps({**RIGHT, "custom_id": str(n)}) + "\n" for n in range(1, 6)))
    left = lines_left(path, URL, 1000, {1, 4})
    assert [line.custom_id for line in left] == ["2", "3", "5"]


def test_an_output_line_is_openais_and_its_request_id_is_the_same_each_time() -> None:
    line = Line(number=12, custom_id="mine", body=b"{}", model=None)
    assert request_id_of("batch_abc", 12) == "req_abc_12"
    assert json.loads(answered("batch_abc", line, 200, b'{"id":"x"}')) == {
        "id": "batch_req_abc_12",
        "custom_id": "mine",
        "response": {"status_code": 200, "request_id": "req_abc_12", "body": {"id": "x"}},
        "error": None,
    }
    assert json.loads(not_run("batch_abc", line, "batch_expired", "too late")) == {
        "id": "batch_req_abc_12",
        "custom_id": "mine",
        "response": None,
        "error": {"code": "batch_expired", "message": "too late"},
    }


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86_400),
        ("1m", 60),
        ("90m", 5_400),
        ("7d", 604_800),
        ("8d", None),
        ("0h", None),
        ("24", None),
        ("-1h", None),
        ("24 h", None),
        ("\u0662\u0664h", None),
        ("1s", None),
    ],
)
def test_a_completion_window_is_a_number_with_its_unit(text: str, seconds: int | None) -> None:
    assert window_s(text) == seconds


def test_a_record_is_read_as_it_was_written() -> None:
    batch = Batch(
        id="batch_a",
        caller=LOCAL_CALLER,
        run_id="batch_a",
        endpoint=URL,
        input_file_id="file-a",
        completion_window="24h",
        created_at=1,
        expires_at=2,
        output_lasts_s=3,
        metadata={"a": "b"},
        faults=(Fault(code="c", message="m", line=1),),
    )
    moved = batch.moved(BatchStatus.IN_PROGRESS, 5).moved(BatchStatus.IN_PROGRESS, 9)
    assert from_record(to_record(moved)) == moved
    assert moved.in_progress_at == 5
