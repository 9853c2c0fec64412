"""From records to figures, and from figures to what people and programs read."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.cli.bench.answer import Reading
from llmhost.cli.bench.drive import Pace, Run, Target
from llmhost.cli.bench.figures import Record, meets, parse_slo, percentile, summarise
from llmhost.cli.bench.lengths import Lengths
from llmhost.cli.bench.report import as_data, as_text
from llmhost.cli.bench.workload import Workload

times = st.floats(0, 1000, allow_nan=False)
WORK = Workload(prompt=Lengths(4, 4), output=Lengths(5, 5), seed=7)
TARGET = Target(url="http://node:8000", model="m")


def answered(
    due: float = 0.0, *, sent: float | None = None, at: list[float], tokens: int
) -> Record:
    """A request whose pieces came `at` these times."""
    return Record(
        number=0,
        due_s=due,
        sent_s=due if sent is None else sent,
        first_s=at[0],
        last_s=at[-1],
        ended_s=at[-1],
        gaps_s=[b - a for a, b in itertools.pairwise(at)],
        prompt_tokens=10,
        output_tokens=tokens,
        has_usage=True,
    )


def failed(code: str = "503 overloaded") -> Record:
    return Record(number=1, due_s=0, sent_s=0, ended_s=0.5, error=code, message="Full.")


@given(st.lists(times, min_size=1), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], share: float):
    ordered = sorted(values)

    assert percentile(ordered, share) == pytest.approx(np.percentile(ordered, share))


def test_the_figures_of_one_answer():
    summary = summarise([answered(1.0, at=[1.5, 1.6, 1.8], tokens=3)], {})

    assert summary.ttft_ms is not None
    assert summary.ttft_ms.p50 == pytest.approx(500)
    assert summary.itl_ms is not None
    assert (summary.itl_ms.mean, summary.itl_ms.max) == (pytest.approx(150), pytest.approx(200))
    assert summary.tpot_ms is not None
    assert summary.tpot_ms.p99 == pytest.approx(150)
    assert summary.e2e_ms is not None
    assert summary.e2e_ms.p50 == pytest.approx(800)
    assert summary.seconds == pytest.approx(0.8)
    assert summary.output_tokens_per_s == pytest.approx(3 / 0.8)
    assert summary.total_tokens_per_s == pytest.approx(13 / 0.8)
    assert summary.goodput is None


def test_latency_counts_from_when_a_request_was_due_and_not_from_when_a_late_client_sent_it():
    summary = summarise([answered(1.0, sent=3.0, at=[3.1, 3.2], tokens=2)], {})

    assert summary.ttft_ms is not None
    assert summary.ttft_ms.max == pytest.approx(2100)
    assert summary.late_ms is not None
    assert summary.late_ms.max == pytest.approx(2000)


@given(
    st.lists(
        st.one_of(
            st.builds(lambda a, b: answered(a, at=[a + 1, a + 1 + b], tokens=2), times, times),
            st.builds(failed, st.sampled_from(["429 rate", "timeout"])),
            st.just(Record(number=2, due_s=0, sent_s=0, was_cut=True)),
        )
    ),
    st.dictionaries(st.sampled_from(["ttft", "itl", "tpot", "e2e"]), times),
)
def test_every_request_is_counted_once_and_goodput_is_no_more_than_what_was_answered(
    records: list[Record], slo: dict[str, float]
):
    summary = summarise(records, slo)

    assert sum(summary.requests.values()) == len(records)
    assert sum(summary.errors.values()) == summary.requests["failed"]
    assert summary.errors.keys() == summary.error_messages.keys()
    if summary.goodput is not None:
        assert 0 <= summary.goodput.share <= 1
        assert summary.goodput.requests_per_s <= summary.requests_per_s


def test_an_answer_meets_an_slo_only_with_all_of_its_figures():
    record = answered(0.0, at=[0.1, 0.2, 0.5], tokens=3)

    assert meets(record, {"ttft": 100.1, "itl": 300.1})
    assert not meets(record, {"ttft": 99, "itl": 301})
    assert not meets(record, {"ttft": 101, "itl": 250})
    assert not meets(record, {"e2e": 499})


def test_failed_requests_are_not_good_ones():
    summary = summarise([answered(at=[0.1, 0.2], tokens=2), failed()], {"ttft": 500})

    assert summary.goodput is not None
    assert summary.goodput.share == 0.5


def test_an_slo_is_read_or_refused_with_an_example():
    assert parse_slo("ttft:500, itl:50.5") == {"ttft": 500.0, "itl": 50.5}
    for text in ("", "ttft", "ttft:x", "speed:5", "ttft:1,ttft:2", "ttft:-1", "ttft:nan"):
        with pytest.raises(ValueError, match="such as ttft:500,itl:50"):
            parse_slo(text)


# ------------------------------------------------------------ reading a stream


def read(*parts: bytes) -> Record:
    record = Record(number=0, due_s=0, sent_s=0)
    reading = Reading(record)
    for at, part in enumerate(parts):
        reading.take(part, float(at))
    reading.close()
    return record


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def chat(text: str | None = None, finish: str | None = None) -> bytes:
    return event(choices=[{"delta": {"content": text}, "finish_reason": finish}])


USAGE = event(
    choices=[],
    usage={
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 8},
    },
)
DONE = b"data: [DONE]\n\n"


def test_the_first_token_is_the_first_text_and_not_the_role_before_it():
    record = read(
        b": hello\n\n" + chat(""), chat("a"), chat("b"), chat(None, "stop") + USAGE + DONE
    )

    assert (record.first_s, record.last_s, record.gaps_s) == (1.0, 2.0, [1.0])
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (9, 4, 8)
    assert record.error is None


@given(st.lists(st.integers(1, 400), max_size=8))
def test_a_stream_may_be_cut_anywhere(cuts: list[int]):
    whole = chat("") + chat("a") + b"data:" + chat("b")[5:].replace(b"\n", b"\r\n") + USAGE + DONE
    ends = sorted(min(cut, len(whole)) for cut in cuts)
    parts = [whole[a:b] for a, b in zip([0, *ends], [*ends, len(whole)], strict=True)]

    record = read(*parts)

    assert (record.pieces, record.output_tokens, record.error) == (2, 4, None)


def test_without_usage_pieces_are_counted_and_the_report_says_so():
    record = read(chat("a"), chat("b"), DONE)
    record.ended_s = 2.0

    text = as_text(TARGET, WORK, Pace(), Run([record]), summarise([record], {}))

    assert record.output_tokens == 2
    assert "reports no usage" in text


def test_an_answer_without_visible_text_had_its_first_token_by_its_end():
    assert read(chat(""), chat(None, "length"), USAGE + DONE).first_s == 1.0


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([chat("a")], "broken"),
        ([chat("a"), event(error={"message": "Oh.", "code": "engine_failed"})], "engine_failed"),
        ([chat("a"), event(error="Oh.")], "error"),
        ([b"data: {]\n\n", DONE], "not OpenAI's API"),
        ([b"<html></html>"], "broken"),
    ],
)
def test_a_stream_that_goes_wrong_is_a_failure_with_its_reason(parts: list[bytes], code: str):
    record = read(*parts)

    assert record.error == code
    assert record.message


# ------------------------------------------------------------ the report


def report(records: list[Record], pace: Pace, **facts: Any) -> str:
    run = Run(records, seconds=1.0, **facts)
    return as_text(TARGET, WORK, pace, run, summarise(records, {"ttft": 200}))


GOOD = answered(at=[0.1, 0.2, 0.4], tokens=3)


def test_people_read_rates_a_table_and_what_failed():
    text = report([GOOD, failed(), failed()], Pace())

    assert "closed loop of 1, seed 7" in text
    assert "1 answered, 2 failed in 0.50 s" in text
    assert "33.3% met the SLO" in text
    assert "2 failed with 503 overloaded: Full." in text
    assert "sent late" not in text
    assert "Note" not in text


def test_a_client_that_was_late_or_busy_says_so():
    late = answered(0.0, sent=0.5, at=[0.6, 0.7], tokens=2)

    assert "sent requests late (p99 500 ms)" in report([late], Pace(rate=5.0))
    assert "90% of a core" in report([GOOD], Pace(), cpu_s=0.9)
    assert "event loop was late" in report([GOOD], Pace(), lags_s=[0.1])
    # All at once is late by nature.
    assert "late (p99" not in report([late], Pace(rate=math.inf))


def test_coalesced_pieces_are_named():
    assert "pieces hold 5.0 tokens" in report([answered(at=[0.1, 0.2], tokens=10)], Pace())


def test_nothing_measured_is_still_a_report():
    text = report([Record(number=0, due_s=0, sent_s=0, was_cut=True)], Pace(rate=1.0))

    assert "1 cut in 0.00 s" in text


def test_programs_get_numbers_that_are_json():
    run = Run([GOOD, failed()], seconds=1.0)
    data = as_data(TARGET, WORK, Pace(rate=math.inf), run, summarise(run.records, {}))

    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["load"]["loop"] == "open"
    assert data["ttft_ms"]["p50"] == pytest.approx(100)
    assert data["errors"] == {"503 overloaded": 1}
