"""What a hit of the response cache costs, beside a bare litestar handler that answers the same bytes, and beside the
same request when the model runs: `python tests/bench/bench_cache.py`.

The node has everything on that bench_gateway has: keys, limits, budgets on three levels, rules for text, true costs,
plugins and the ledger. The bar: a hit's median time is at most twice the bare handler's, in the same run.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench_gateway import cores, say
from contenders import Bare, Contender, Gateway, chat_body
from load import Told, load

WARM_S = 1.0
MOST_TIMES = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64, help="of the answer")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 16])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        ratios = measure(args, Path(name), opened)
    sys.exit(max(ratios) > MOST_TIMES)


def measure(args: argparse.Namespace, folder: Path, opened: ExitStack) -> list[float]:
    body = chat_body(args.tokens)
    server_core, load_core = cores()

    def keep(contender: Contender) -> Contender:
        opened.callback(contender.close)
        return contender

    node = keep(Gateway(folder / "node", server_core, log_level="warning"))
    bare = keep(Bare(folder / "bare", server_core, node.ask(body)))
    headers = {
        "bare handler": (bare, {}),
        "hit": (node, {**node.headers, "x-llmhost-cache": "on"}),
        "model runs": (node, node.headers),
    }

    def run(name: str, connections: int, seconds: float) -> tuple[Told, dict[str, float]]:
        """What was seen, and the microseconds of CPU a request that each thread has spent."""
        contender, sent = headers[name]
        before = contender.thread_s()
        told = load(
            contender.url,
            sent,
            body,
            connections=connections,
            seconds=seconds,
            core=load_core,
            folder=folder,
        )
        if told.errors:
            raise SystemExit(f"{name}: {told.errors} of {told.requests} failed")
        spent = {at: used - before.get(at, 0.0) for at, used in contender.thread_s().items()}
        return told, {at: 1e6 * used / told.requests for at, used in spent.items()}

    ratios = []
    for connections in args.connections:
        for name in headers:
            run(name, connections, WARM_S)
        rounds = [
            {name: run(name, connections, args.seconds) for name in headers}
            for _ in range(args.rounds)
        ]
        say(f"{connections} connections, answers of {args.tokens} tokens")
        p50 = {name: statistics.median(told[name][0].p50_ms for told in rounds) for name in headers}
        for name, ms in p50.items():
            rate = statistics.median(told[name][0].rate for told in rounds)
            loop_us = statistics.median(told[name][1]["loop"] for told in rounds)
            cpu_us = statistics.median(sum(told[name][1].values()) for told in rounds)
            cpu = f"{cpu_us:6.0f} us of CPU, {loop_us:.0f} of them on the loop"
            say(f"  {name:14} p50 {1000 * ms:7.0f} us  {rate:8.0f} requests/s  {cpu}")
        ratios.append(p50["hit"] / p50["bare handler"])
        say(f"  a hit takes {ratios[-1]:.2f} times as long as the bare handler")
    return ratios


if __name__ == "__main__":
    main()
