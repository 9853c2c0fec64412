"""The options of `llmhost bench engine`, and its report."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmhost.cli import show
from llmhost.cli.options import Json

if TYPE_CHECKING:
    from llmhost.cli.bench.engine import Case, Measured

SOURCE = "builtin:tiny"


def engine(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help=f"builtin:NAME or a folder; {SOURCE} when absent. Nothing is fetched.",
        ),
    ] = None,
    batch: Annotated[
        str, typer.Option(metavar="N,N", help="Batch sizes of the decode steps.")
    ] = "1,8,64",
    context: Annotated[
        str, typer.Option(metavar="N,N", help="Context lengths of the decode steps.")
    ] = "128,512",
    prefill: Annotated[
        str, typer.Option(metavar="N,N", help="Lengths of the prompts; 0 for none.")
    ] = "512",
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Decode steps per case.")] = 20,
    random_layers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Make a model with random weights and so many layers."
        ),
    ] = None,
    random_hidden: Annotated[
        int, typer.Option(metavar="N", min=64, help="Its hidden size, a multiple of 64.")
    ] = 1024,
    random_ffn: Annotated[
        int | None,
        typer.Option(metavar="N", min=64, help="Its inner size; 3 x hidden when absent."),
    ] = None,
    random_heads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Its heads; hidden / 64 when absent.")
    ] = None,
    random_kv_heads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Its KV heads; half the heads when absent."),
    ] = None,
    random_vocab: Annotated[
        int, typer.Option(metavar="N", min=64, help="Its vocabulary.")
    ] = 32_000,
    random_family: Annotated[
        Literal["llama", "qwen3"], typer.Option(help="Its architecture.")
    ] = "llama",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Computation type.")
    ] = "auto",
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu or cuda:N.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="CPU threads; torch's choice when absent."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a model's steps without HTTP: decode and prefill, beside what the machine could do at best.

    PYTHON is the CPU time of a step beside forward pass and sampling. FLOOR is the least time for its bytes and its
    arithmetic at the bandwidth and matrix rate measured in this run, and ROOF the share of the step that it is.
    """
    cases = [(b, c) for b in _numbers(batch, "--batch") for c in _numbers(context, "--context")]
    prompts = [] if prefill.strip() == "0" else _numbers(prefill, "--prefill")
    if random_layers is not None and source is not None:
        raise typer.BadParameter(
            "makes a model, and SOURCE names one", param_hint="--random-layers"
        )
    heads = random_heads or random_hidden // 64
    shape = {
        "layers": random_layers,
        "hidden": random_hidden,
        "ffn": random_ffn or 3 * random_hidden,
        "heads": heads,
        "kv_heads": random_kv_heads or max(heads // 2, 1),
        "vocab": random_vocab,
        "family": random_family,
        "dtype": "float32" if dtype == "auto" else dtype,
    }
    if random_hidden % (2 * heads) or heads % int(str(shape["kv_heads"])):
        raise typer.BadParameter(
            f"{heads} heads don't divide {random_hidden} into even sizes, or are no multiple of the"
            f" {shape['kv_heads']} KV heads",
            param_hint="--random-heads",
        )
    from llmhost.cli.bench.engine import Case
    from llmhost.config.schema.engines import TorchOptions

    wanted = [Case("decode", b, c) for b, c in cases] + [Case("prefill", 1, p) for p in prompts]
    options = TorchOptions(dtype=dtype, device=device, threads=threads)
    name = source or SOURCE
    if random_layers is not None:
        name = f"random {random_family} of {random_layers} layers x {random_hidden}"
    with _folder(source, None if random_layers is None else shape) as folder:
        report = _measure(folder, options, wanted, steps, name, is_quiet=as_json)
    if as_json:
        show.value(report)
    else:
        typer.echo(_as_text(report))


def _numbers(text: str, option: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 2**20 for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not a list of counts such as 1,8,64", param_hint=option
        )
    return [int(part) for part in parts]


@contextmanager
def _folder(source: str | None, shape: dict[str, Any] | None) -> Iterator[Path]:
    if shape is not None:
        from llmhost.cli.bench.engine import random_folder
        from llmhost.engines.torch.random_model import RandomShape

        show.note("Making a model with random weights.")
        with random_folder(RandomShape(**shape)) as folder:
            yield folder
        return
    from llmhost.deploy.sources import find_local

    found = find_local(source or SOURCE, Path())
    if found is None:
        raise typer.BadParameter("takes builtin:NAME or a folder", param_hint="SOURCE")
    yield found


def _measure(
    folder: Path, options: Any, wanted: "list[Case]", steps: int, name: str, *, is_quiet: bool
) -> dict[str, Any]:
    from llmhost.cli.bench import engine as bench
    from llmhost.cli.bench.progress import progress
    from llmhost.engines.torch.bench import facts_of, measure_ceilings, model_work

    results: list[Measured] = []
    with (
        progress(name, len(wanted), is_wanted=not is_quiet) as advance,
        bench.loaded(folder, options, block_tokens=16) as (runner, measuring),
    ):
        longest = runner.facts.max_sequence_length
        for case in wanted:
            if case.context + bench.headroom(case, steps) > longest:
                raise typer.BadParameter(
                    f"{case.context} and the steps after it pass the model's {longest} tokens",
                    param_hint="--prefill" if case.kind == "prefill" else "--context",
                )
        work, ceilings = model_work(runner), measure_ceilings(runner)
        for done, case in enumerate(wanted):
            advance(done, f"{case.kind} {case.batch} x {case.context}")
            results.append(
                bench.figures(case, bench.run_case(measuring, case, steps), work, ceilings)
            )
        return {
            "model": name,
            "dtype": options.dtype,
            **facts_of(runner),
            "ceilings": asdict(ceilings),
            "cases": [asdict(result) for result in results],
        }


def _as_text(report: dict[str, Any]) -> str:
    ceilings = report["ceilings"]
    head = (
        f"{report['model']}, {report['dtype']}, {report['device']}, {report['threads']} threads,"
        f" torch {report['torch']}, {show.memory(report['weights_bytes'])} of weights\n"
        f"This machine in this run: {ceilings['bytes_per_s'] / 1e9:.1f} GB/s,"
        f" {ceilings['flops_per_s'] / 1e9:,.0f} GFLOP/s"
    )
    columns: dict[str, show.Cell] = {
        "": "kind",
        "batch": "batch",
        "context": "context",
        "step ms": lambda row: f"{row['step_ms']:.2f}",
        "forward": lambda row: f"{row['forward_ms']:.2f}",
        "sample": lambda row: f"{row['sample_ms']:.3f}",
        "python": lambda row: f"{row['python_ms']:.3f}",
        "tokens/s": lambda row: f"{row['tokens_per_s']:.1f}",
        "MB/step": lambda row: f"{row['step_bytes'] / 1e6:.0f}",
        "GB/s": lambda row: f"{row['gb_per_s']:.1f}",
        "floor ms": lambda row: f"{row['floor_ms']:.2f}",
        "roof": lambda row: f"{100 * row['roofline_share']:.0f}%",
    }
    return f"{head}\n\n{show.table(report['cases'], columns)}"
