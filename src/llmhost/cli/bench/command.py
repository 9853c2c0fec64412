"""The options of `llmhost bench`, checked; what they mean is in the modules beside this one."""

import json
import math
import secrets
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from llmhost.cli import show
from llmhost.cli.bench.engine_command import engine
from llmhost.cli.node import Node, NoNode, need_address
from llmhost.cli.options import DataDir, Json, Url, examples
from llmhost.core.errors import LlmhostError

if TYPE_CHECKING:
    from llmhost.cli.bench.drive import Pace, Run, Target
    from llmhost.cli.bench.figures import Record
    from llmhost.cli.bench.workload import Workload

T = TypeVar("T")

DEFAULT_REQUESTS = 100
DEFAULT_CONCURRENCY = 8

bench = typer.Typer(
    name="bench",
    invoke_without_command=True,
    subcommand_metavar="[engine]",
    epilog=examples(
        "llmhost bench --concurrency 16 --requests 200",
        "llmhost bench --rate 5 --duration-s 60 --slo ttft:500,itl:50",
        "llmhost bench --rate 8 --burstiness 0.3 --prompt-tokens lognormal:200:0.8:4096 --output-tokens uniform:16-256",
        "llmhost bench --prefix-tokens 1000 --prefix-groups 4 --json --out result.json",
        "llmhost bench --url https://api.example.com/v1 --model m --route chat",
        "llmhost bench engine",
    ),
)


def add_to(app: typer.Typer) -> None:
    bench.command(
        epilog=examples(
            "llmhost bench engine",
            "llmhost bench engine /models/mine --batch 1,32 --context 1024 --dtype bfloat16",
            "llmhost bench engine --random-layers 28 --random-hidden 1024 --dtype bfloat16 --json",
        )
    )(engine)
    app.add_typer(bench)


@bench.callback()
def load_test(
    ctx: typer.Context,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Open loop: requests per second, whatever the server does; inf is all at once.",
        ),
    ] = None,
    burstiness: Annotated[
        float,
        typer.Option(
            metavar="B",
            help="With --rate: 1 is a Poisson process, below 1 comes in bursts, above more evenly.",
        ),
    ] = 1.0,
    concurrency: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help=f"Closed loop: requests at once. {DEFAULT_CONCURRENCY} when nothing is said.",
        ),
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help=f"Stop after so many. {DEFAULT_REQUESTS} without --duration-s."
        ),
    ] = None,
    duration_s: Annotated[
        float | None, typer.Option(metavar="S", help="Begin no request after so many seconds.")
    ] = None,
    prompt_tokens: Annotated[
        str,
        typer.Option(
            metavar="D", help="Length of prompts: 512, uniform:16-1500, lognormal:200:0.8:4096."
        ),
    ] = "128",
    output_tokens: Annotated[
        str, typer.Option(metavar="D", help="Most tokens of an answer, spelled the same way.")
    ] = "64",
    prefix_tokens: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Begin all prompts of a group with the same N tokens."
        ),
    ] = 0,
    prefix_groups: Annotated[
        int, typer.Option(metavar="G", min=1, help="How many such groups there are.")
    ] = 1,
    route: Annotated[
        Literal["completions", "chat"], typer.Option(help="Route to ask.")
    ] = "completions",
    prompts: Annotated[
        Literal["ids", "text"] | None,
        typer.Option(
            help="Prompts as token ids, whose length is exact, or as text. A chat takes text; ids otherwise.",
            show_default=False,
        ),
    ] = None,
    vocab: Annotated[
        int, typer.Option(metavar="N", min=2, help="Token ids of prompts are below this.")
    ] = 2000,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos", help="Have every answer reach its full length.", show_default=False
        ),
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T", min=0, help="Sampling temperature; the server's own when absent."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Repeat the requests of a run. A new one each time, so that no cache knows them.",
        ),
    ] = None,
    warm_up: Annotated[
        int, typer.Option(metavar="N", min=0, help="Requests before the measured ones.")
    ] = 1,
    slo: Annotated[
        str | None,
        typer.Option(
            metavar="LIMITS",
            help="Count requests that meet all of these, in ms, such as ttft:500,itl:50."
            " itl is the 99th percentile of an answer's gaps; tpot and e2e are known too.",
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(metavar="S", help="Give up on a server that is silent for so long.")
    ] = 600.0,
    url: Url = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The server's first model when absent.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="API key, or LLMHOST_API_KEY.")
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the result as JSON, with a record per request."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put load on an OpenAI endpoint and measure what its callers see.

    Without --url this is the running node. `llmhost bench engine` measures a model without HTTP.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_options_of_the_other_command(ctx)
        return
    from llmhost.cli.bench.drive import Pace, Target
    from llmhost.cli.bench.figures import parse_slo
    from llmhost.cli.bench.lengths import parse_lengths
    from llmhost.cli.bench.workload import Workload

    if route == "chat" and prompts == "ids":
        raise typer.BadParameter("a chat takes text, not ids", param_hint="--prompts")
    work = Workload(
        prompt=_parsed(parse_lengths, prompt_tokens, "--prompt-tokens"),
        output=_parsed(parse_lengths, output_tokens, "--output-tokens"),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        prefix_tokens=prefix_tokens,
        prefix_groups=prefix_groups,
        as_text=prompts == "text" or route == "chat",
        vocab=vocab,
    )
    limits = {} if slo is None else _parsed(parse_slo, slo, "--slo")
    _positive(rate, "--rate", allow_inf=True)
    _positive(burstiness, "--burstiness")
    _positive(duration_s, "--duration-s")
    _positive(timeout_s, "--timeout-s")
    if rate is not None and concurrency is not None:
        raise typer.BadParameter(
            "is a closed loop and --rate an open one", param_hint="--concurrency"
        )
    if rate == math.inf and requests is None:
        raise typer.BadParameter("inf needs --requests", param_hint="--rate")
    pace = Pace(
        rate=rate,
        burstiness=burstiness,
        concurrency=concurrency or DEFAULT_CONCURRENCY,
        requests=requests or (DEFAULT_REQUESTS if duration_s is None else None),
        duration_s=math.inf if duration_s is None else duration_s,
    )
    node, key = _address(url, api_key, data_dir)
    target = Target(
        url=node.url,
        tls_cert=node.tls_cert,
        model=model or _first_model(node, key),
        api_key=key,
        is_chat=route == "chat",
        ignore_eos=ignore_eos,
        temperature=temperature,
        timeout_s=timeout_s,
    )
    _warm_up(target, work, warm_up)
    run = _drive(target, work, pace, is_quiet=as_json)
    _report(target, work, pace, run, limits, out, as_json=as_json)


def _refuse_options_of_the_other_command(ctx: typer.Context) -> None:
    """`llmhost bench --rate 5 engine` would forget the rate."""
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                "does not belong to `llmhost bench engine`", param_hint=parameter.opts[0]
            )


def _parsed(parse: Callable[[str], T], text: str, option: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _positive(number: float | None, option: str, *, allow_inf: bool = False) -> None:
    if number is None or (number > 0 and (allow_inf or math.isfinite(number))):
        return
    raise typer.BadParameter("must be a number above 0", param_hint=option)


def _address(
    url: str | None, api_key: str | None, data_dir: Path | None
) -> tuple[Node, str | None]:
    from llmhost.config.environment import process_environment, read_variables

    key = api_key or read_variables(process_environment()).api_key
    if key is not None and not key.isascii():
        raise typer.BadParameter("has ASCII characters only", param_hint="--api-key")
    return need_address(url, data_dir), key


def _first_model(node: Node, key: str | None) -> str:
    from llmhost.cli.caller import ChatClient

    with closing(ChatClient(node, key)) as api:
        names = api.models()
    if not names:
        raise NoNode(f"{node.url} offers no model.")
    return names[0]


def _warm_up(target: "Target", work: "Workload", requests: int) -> None:
    """It also finds out what is wrong before a whole load fails of it."""
    if not requests:
        return
    from llmhost.cli.bench.drive import warm_up

    for record in warm_up(target, work, requests):
        if record.error is not None:
            raise LlmhostError(_why(target, record))


def _why(target: "Target", record: "Record") -> str:
    cure = (
        " Give --api-key or set LLMHOST_API_KEY." if (record.error or "").startswith("401") else ""
    )
    said = " ".join(show.printable(record.message).split())
    return f"{target.url}{target.path} failed with {record.error}: {said}{cure}"


def _drive(target: "Target", work: "Workload", pace: "Pace", *, is_quiet: bool) -> "Run":
    from llmhost.cli.bench.drive import drive
    from llmhost.cli.bench.progress import progress, watch_requests

    with progress(target.model, pace.requests, is_wanted=not is_quiet) as advance:
        return drive(target, work, pace, watch_requests(advance))


def _report(
    target: "Target",
    work: "Workload",
    pace: "Pace",
    run: "Run",
    limits: dict[str, float],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    from llmhost.cli.bench.figures import summarise
    from llmhost.cli.bench.report import as_data, as_text, records_as_data

    summary = summarise(run.records, limits)
    data: dict[str, Any] = as_data(target, work, pace, run, summary)
    if as_json:
        show.value(data)
    else:
        typer.echo(show.printable(as_text(target, work, pace, run, summary)))
    if out is not None:
        _write(out, {**data, "records": records_as_data(run)})
    if run.is_interrupted:
        raise KeyboardInterrupt
    if not summary.requests["answered"]:
        raise typer.Exit(1)


def _write(path: Path, data: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(data, indent=1) + "\n")
    except OSError as error:
        raise LlmhostError(f"{path} can't be written: {error.strerror}.") from None
