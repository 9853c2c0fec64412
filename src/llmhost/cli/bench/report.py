"""A load test's result: text for people, plain data for programs. Pure."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from llmhost.cli.bench.drive import Pace, Run, Target
from llmhost.cli.bench.figures import Spread, Summary
from llmhost.cli.bench.lengths import Lengths
from llmhost.cli.bench.workload import Workload
from llmhost.cli.show import table

LATE_MS = 10.0
BUSY_SHARE = 0.8
"""Above these the client itself is part of what was measured, and the report says so."""


def as_data(
    target: Target, work: Workload, pace: Pace, run: Run, summary: Summary
) -> dict[str, Any]:
    """For `--json` and `--out`. Times are milliseconds where the name says so."""
    return {
        "target": {"url": target.url, "model": target.model, "route": target.path},
        "load": {
            "loop": "closed" if pace.rate is None else "open",
            "concurrency": pace.concurrency if pace.rate is None else None,
            "rate": None if pace.rate is None or math.isinf(pace.rate) else pace.rate,
            "burstiness": None if pace.rate is None else pace.burstiness,
            "seed": work.seed,
            "prompts": "text" if work.as_text else "ids",
            "prompt_tokens": _lengths(work.prompt),
            "output_tokens": _lengths(work.output),
            "prefix_tokens": work.prefix_tokens,
            "prefix_groups": work.prefix_groups,
            "ignore_eos": target.ignore_eos,
        },
        **asdict(summary),
        "client": {
            "is_interrupted": run.is_interrupted,
            "cpu_share": run.cpu_share,
            "loop_lag_p99_ms": run.lag_p99_ms,
            "notes": list(_notes(pace, run, summary)),
        },
    }


def records_as_data(run: Run) -> list[dict[str, Any]]:
    """One object per request, in the order in which they were sent."""
    return [asdict(record) for record in run.records]


def as_text(target: Target, work: Workload, pace: Pace, run: Run, summary: Summary) -> str:
    return "\n".join(
        [
            f"{target.model} at {target.url}{target.path}, {_loop(pace)}, seed {work.seed}",
            _requests(summary),
            _tokens(summary),
            *_goodput(summary),
            "",
            _latencies(pace, summary),
            *_failures(summary),
            *(f"Note: {note}" for note in _notes(pace, run, summary)),
        ]
    )


def _loop(pace: Pace) -> str:
    if pace.rate is None:
        return f"closed loop of {pace.concurrency}"
    kind = "Poisson" if pace.burstiness == 1 else f"burstiness {pace.burstiness:g}"
    return "all at once" if math.isinf(pace.rate) else f"open loop, {pace.rate:g}/s, {kind}"


def _requests(summary: Summary) -> str:
    ends = ", ".join(f"{count} {how}" for how, count in summary.requests.items() if count)
    return f"{ends or 'no request ended'} in {summary.seconds:.2f} s: {summary.requests_per_s:.2f} requests/s"


def _tokens(summary: Summary) -> str:
    cached = f" ({summary.cached_tokens:,} cached)" if summary.cached_tokens else ""
    return (
        f"{summary.prompt_tokens:,} prompt tokens{cached}, {summary.output_tokens:,} output tokens:"
        f" {summary.output_tokens_per_s:,.1f} output and {summary.total_tokens_per_s:,.1f} tokens/s in all"
    )


def _goodput(summary: Summary) -> Iterator[str]:
    if summary.goodput is not None:
        share, rate = summary.goodput.share, summary.goodput.requests_per_s
        yield f"{100 * share:.1f}% met the SLO: goodput {rate:.2f} requests/s"


def _latencies(pace: Pace, summary: Summary) -> str:
    spreads: dict[str, Spread | None] = {
        "TTFT": summary.ttft_ms,
        "ITL": summary.itl_ms,
        "TPOT": summary.tpot_ms,
        "end to end": summary.e2e_ms,
    }
    if pace.rate is not None:
        spreads["sent late"] = summary.late_ms
    rows = [
        {"ms": name, **({} if spread is None else _rounded(spread))}
        for name, spread in spreads.items()
    ]
    return table(rows, {key: key for key in ("ms", "mean", "p50", "p90", "p99", "max")})


def _rounded(spread: Spread) -> dict[str, str]:
    return {name: f"{value:.2f}" for name, value in asdict(spread).items()}


def _failures(summary: Summary) -> Iterator[str]:
    for code, count in summary.errors.items():
        message = " ".join(summary.error_messages.get(code, "").split())
        yield f"{count} failed with {code}: {message}"


def _notes(pace: Pace, run: Run, summary: Summary) -> Iterator[str]:
    """What the reader of the figures should know before believing them."""
    late = summary.late_ms
    if pace.rate is not None and not math.isinf(pace.rate) and late and late.p99 > LATE_MS:
        yield (
            f"the client sent requests late (p99 {late.p99:.0f} ms), so the load was not the one asked for."
            " Latencies count from when requests were due."
        )
    if run.cpu_share > BUSY_SHARE:
        yield (
            f"the client used {100 * run.cpu_share:.0f}% of a core: its own speed may be what was measured."
            " Use a lower load, or several clients."
        )
    if run.lag_p99_ms > LATE_MS:
        yield f"the client's event loop was late by {run.lag_p99_ms:.0f} ms at p99, and latencies with it."
    if summary.requests["answered"] and not summary.are_tokens_counted:
        yield "the server reports no usage: output tokens are pieces of text, prompt tokens are unknown."
    elif summary.tokens_per_piece is not None and summary.tokens_per_piece > 1.2:
        yield (
            f"pieces hold {summary.tokens_per_piece:.1f} tokens on average: ITL is between pieces,"
            " TPOT per token."
        )


def _lengths(lengths: Lengths) -> dict[str, float | None]:
    if lengths.median is None:
        return {"least": lengths.least, "most": lengths.most}
    return {"median": lengths.median, "sigma": lengths.sigma, "most": lengths.most}
