"""What the gateway costs with everything on, beside a bare litestar handler and LiteLLM's proxy:
`python tests/bench/bench_gateway.py`.

The fake engine answers, the server has one core, and the load comes from the other, by wrk. CPU time is the server
process's own, all threads together, so it means something on a machine that others use too; requests/s don't.

  rate     requests/s and CPU a request, the contenders in turns. `--tokens` is how long the answers are: the fake
           engine's steps, the scheduler and the delivery of each token are in the figure. With `--differ` no two bodies
           are the same
  stream   CPU a token of a streamed answer, minus that of a bare loop that sends the same events, as fast as it can and
           at the same pace: whoever waits between events pays for timers, wake-ups and cold caches, with a gateway or
           without. Nothing judges answers here, so that each token is an event
  memory   RSS after each tenth of `--requests`; the bar is flat over 1,000,000

LiteLLM is measured where it is installed: `python3 -m venv /tmp/litellm-venv` and its pip `install 'litellm[proxy]'`.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import Bare, Contender, Gateway, LiteLlm, chat_body
from load import NUMBER, Told, has_wrk, load

WARM_S = 2.0
LOOKS = 10
"""So often memory is looked at."""
SECTIONS = ("rate", "stream", "memory")


@dataclass(frozen=True, slots=True)
class Run:
    """One contender under load, once."""

    told: Told
    cpu_s: float
    thread_s: dict[str, float]

    @property
    def cpu_us(self) -> float:
        """Of CPU time, for a request."""
        return 1e6 * self.cpu_s / max(self.told.requests, 1)


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def cores() -> tuple[int | None, int | None]:
    """The server's, and the load's; None where there is but one."""
    known = sorted(os.sched_getaffinity(0))
    return (known[0], known[1]) if len(known) > 1 else (None, None)


class Bench:
    """The options, and whatever was started for them."""

    def __init__(self, args: argparse.Namespace, folder: Path, opened: ExitStack) -> None:
        self.args = args
        self.folder = folder
        self.server_core, self.load_core = cores()
        self._opened = opened

    def keep(self, contender: Contender) -> Contender:
        self._opened.callback(contender.close)
        return contender

    def run(self, contender: Contender, body: dict[str, Any], seconds: float) -> Run:
        cpu_s, threads = contender.cpu_s(), contender.thread_s()
        told = load(
            contender.url,
            contender.headers,
            body,
            connections=self.args.connections,
            seconds=seconds,
            core=self.load_core,
            folder=self.folder,
        )
        if told.errors:
            raise SystemExit(f"{contender.name}: {told.errors} of {told.requests} failed")
        after = contender.thread_s()
        spent = {name: used - threads.get(name, 0.0) for name, used in after.items()}
        return Run(told, contender.cpu_s() - cpu_s, spent)


# ------------------------------------------------------------ rate


def rate(bench: Bench) -> None:
    body = chat_body(bench.args.tokens)
    if bench.args.differ:
        body["messages"][-1]["content"] += f" {NUMBER}"
    gateway = bench.keep(Gateway(bench.folder / "rate", bench.server_core))
    answer = gateway.ask(body)
    all_of_them = [bench.keep(Bare(bench.folder / "bare", bench.server_core, answer)), gateway]
    if (venv := Path(bench.args.litellm)).joinpath("bin/litellm").exists():
        folder = bench.folder / "litellm"
        all_of_them.append(bench.keep(LiteLlm(folder, bench.server_core, venv, answer)))
    else:
        say(f"LiteLLM is not installed in {venv}: skipped (--help says how)")
    say(
        f"rate: answers of {bench.args.tokens} tokens, {len(answer)} bytes, {bench.args.connections} connections"
    )
    for contender in all_of_them:
        bench.run(contender, body, WARM_S)
    runs = [
        [bench.run(contender, body, bench.args.seconds) for contender in all_of_them]
        for _ in range(bench.args.rounds)
    ]
    columns = [list(column) for column in zip(*runs, strict=True)]
    for contender, column in zip(all_of_them, columns, strict=True):
        say(f"  {contender.name:14} {_line(column)}")
        if bench.args.threads:
            say(f"    CPU a request by thread: {_threads(column)}")
    _ratios(all_of_them, columns)


def _line(runs: Sequence[Run]) -> str:
    told = [run.told for run in runs]
    middle = statistics.median
    return (
        f"{middle(t.rate for t in told):8.0f} requests/s ({min(t.rate for t in told):.0f}"
        f" to {max(t.rate for t in told):.0f})"
        f"  {middle(run.cpu_us for run in runs):7.1f} us of CPU each"
        f"  p50 {middle(t.p50_ms for t in told):.1f} ms  p99 {middle(t.p99_ms for t in told):.1f} ms"
    )


def _threads(runs: Sequence[Run]) -> str:
    names = {name for run in runs for name in run.thread_s}
    requests = sum(run.told.requests for run in runs)
    each = {name: sum(run.thread_s.get(name, 0.0) for run in runs) / requests for name in names}
    dearest = sorted(each.items(), key=lambda one: -one[1])
    return ", ".join(f"{name} {1e6 * used:.1f} us" for name, used in dearest if used > 5e-7)


def _ratios(contenders: Sequence[Contender], columns: Sequence[Sequence[Run]]) -> None:
    """Of the node to the others, in each round; and by CPU time, as if each had the core for itself."""
    ours = columns[1]
    for other, runs in zip(contenders, columns, strict=True):
        if runs is ours:
            continue
        by_rate = statistics.median(
            a.told.rate / b.told.rate for a, b in zip(ours, runs, strict=True)
        )
        by_cpu = statistics.median(b.cpu_us / a.cpu_us for a, b in zip(ours, runs, strict=True))
        say(f"  {by_rate:.3g} times the requests/s of {other.name}; by CPU time {by_cpu:.3g} times")


# ------------------------------------------------------------ stream


def stream(bench: Bench) -> None:
    args = bench.args
    settings = {
        "token_delay_ms": args.step_ms,
        "write_share": args.write_share,
        "check_output": "false",
        "disabled": '["blocklist"]',  # else answers come in windows of text, not token by token
    }
    gateway = Gateway(bench.folder / "stream", bench.server_core, **settings)
    bench.keep(gateway)
    body = chat_body(args.stream_tokens, is_stream=True)
    events = gateway.ask(body)
    bare, paced = (
        bench.keep(
            Bare(
                bench.folder / path,
                bench.server_core,
                b"{}",
                events,
                f"/{path}",
                args.step_ms / 1e3,
            )
        )
        for path in ("stream", "paced")
    )
    pieces = events.count(b"\n\n")
    say(
        f"stream: answers of {args.stream_tokens} tokens in {pieces} events, {args.connections} at once,"
        f" a step each {args.step_ms:g} ms"
    )
    for contender in (bare, paced, gateway):
        bench.run(contender, body, WARM_S)
    loops = [bench.run(bare, body, args.seconds) for _ in range(args.rounds)]
    piece_bytes = loops[0].told.received_bytes / (loops[0].told.requests * pieces)
    at_pace = [bench.run(paced, body, args.seconds) for _ in range(args.rounds)]
    token_us, made, received = [], 0.0, 0
    for _ in range(args.rounds):
        before = gateway.fed_tokens()
        run = bench.run(gateway, body, args.seconds)
        # By tokens, since many answers have not ended when a run does; prompts are found in the prefix cache.
        made, received = gateway.fed_tokens() - before, run.told.received_bytes
        token_us.append(1e6 * run.cpu_s / made)
    loop_us = statistics.median(run.cpu_us for run in loops) / pieces
    # Most of its streams, too, go on when a run ends.
    paced_us = statistics.median(
        1e6 * run.cpu_s * piece_bytes / run.told.received_bytes for run in at_pace
    )
    each_us = statistics.median(token_us)
    say(
        f"  bare loop      {loop_us:6.2f} us of CPU an event as fast as it can, {paced_us:.2f} at the pace"
    )
    say(
        f"  llmhost        {each_us:6.2f} us of CPU a token, {each_us - loop_us:.2f} us above the loop,"
        f" {each_us - paced_us:.2f} above the loop at the pace, the engine's part of it too;"
        f" {made / (received / piece_bytes):.2f} tokens an event"
    )
    threads = {name: used / made * 1e6 for name, used in run.thread_s.items()}
    said = ", ".join(f"{name} {us:.1f} us" for name, us in threads.items() if us > 0.05)
    say(f"    CPU a token by thread: {said}")


# ------------------------------------------------------------ memory


def memory(bench: Bench) -> None:
    body = chat_body(bench.args.tokens)
    gateway = bench.keep(Gateway(bench.folder / "memory", bench.server_core))
    gateway.ask(body)
    say(f"memory: RSS after start {gateway.rss_mb():.1f} MB")
    step = bench.args.requests / LOOKS
    done, due = 0, step
    seconds = bench.args.seconds
    while done < bench.args.requests:
        told = bench.run(gateway, body, seconds).told
        done += told.requests
        seconds = max(1.0, min(30.0, (due - done) / told.rate))
        if done >= due * 0.995:
            say(f"  after {done:9,} requests {gateway.rss_mb():7.1f} MB")
            due += step * max(1, -(-(done - due) // step))


# ------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SECTIONS, help="one section")
    parser.add_argument("--seconds", type=float, default=5, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer (rate, memory)")
    parser.add_argument("--differ", action="store_true", help="each body is another one (rate)")
    parser.add_argument("--stream-tokens", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=20, help="pace of streams")
    parser.add_argument("--write-share", type=float, default=1, help="of [server], for streams")
    parser.add_argument("--requests", type=int, default=200_000, help="of section memory")
    parser.add_argument("--litellm", default="/tmp/litellm-venv", help="its virtual environment")
    parser.add_argument("--threads", action="store_true", help="CPU by thread as well")
    args = parser.parse_args()
    if not has_wrk():
        say(
            "wrk is not installed, so Python makes the load, and less of it (Debian: apt-get install wrk)"
        )
    for name in SECTIONS:
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
                globals()[name](Bench(args, Path(folder), opened))


if __name__ == "__main__":
    main()
