"""Options that set or change the limits of a key, a team or an organisation."""

import re
from typing import Annotated

import typer

Rpm = Annotated[
    int | None, typer.Option("--rpm", metavar="N", min=1, help="Most requests per minute.")
]
Tpm = Annotated[
    int | None,
    typer.Option(
        "--tpm", metavar="N", min=1, help="Most tokens per minute, of input and of output alike."
    ),
]
InputTpm = Annotated[
    int | None,
    typer.Option("--input-tpm", metavar="N", min=1, help="Most input tokens per minute."),
]
OutputTpm = Annotated[
    int | None,
    typer.Option("--output-tpm", metavar="N", min=1, help="Most output tokens per minute."),
]
Concurrency = Annotated[
    int | None,
    typer.Option("--concurrency", metavar="N", min=1, help="Most requests at the same time."),
]
NewRpm = Annotated[
    str | None, typer.Option("--rpm", metavar="N", help="Requests per minute, or none.")
]
NewTpm = Annotated[
    str | None,
    typer.Option("--tpm", metavar="N", help="Input and output tokens per minute alike, or none."),
]
NewInputTpm = Annotated[
    str | None, typer.Option("--input-tpm", metavar="N", help="Input tokens per minute, or none.")
]
NewOutputTpm = Annotated[
    str | None,
    typer.Option("--output-tpm", metavar="N", help="Output tokens per minute, or none."),
]
NewConcurrency = Annotated[
    str | None,
    typer.Option("--concurrency", metavar="N", help="Requests at the same time, or none."),
]

NONE = "none"
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def limits(
    rpm: int | None,
    tpm: int | None,
    input_tpm: int | None,
    output_tpm: int | None,
    concurrency: int | None,
) -> dict[str, int]:
    """Those that were given, as the admin API calls them."""
    wanted = {
        "requests_per_minute": rpm,
        "input_tokens_per_minute": tpm if input_tpm is None else input_tpm,
        "output_tokens_per_minute": tpm if output_tpm is None else output_tpm,
        "max_concurrency": concurrency,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def limit_changes(
    rpm: str | None,
    tpm: str | None,
    input_tpm: str | None,
    output_tpm: str | None,
    concurrency: str | None,
) -> dict[str, int | None]:
    """The same of a change; None takes a limit away."""
    wanted = (
        ("requests_per_minute", rpm, "--rpm"),
        ("input_tokens_per_minute", input_tpm or tpm, "--input-tpm" if input_tpm else "--tpm"),
        ("output_tokens_per_minute", output_tpm or tpm, "--output-tpm" if output_tpm else "--tpm"),
        ("max_concurrency", concurrency, "--concurrency"),
    )
    return {name: _limit(text, option) for name, text, option in wanted if text is not None}


def seconds(text: str, option: str) -> int:
    """`0`, `90s`, `30m`, `24h`, `7d`, `2w`."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None and text != "0":
        raise typer.BadParameter(f"{text!r} is no time such as 24h or 30m", param_hint=option)
    return 0 if match is None else int(match[1]) * _UNITS_S[match[2]]


def must_change(changes: dict[str, object]) -> None:
    """An update without a change is a mistake."""
    if not changes:
        raise typer.BadParameter("says nothing to change; see --help", param_hint="options")


def _limit(text: str, option: str) -> int | None:
    if text == NONE:
        return None
    if not re.fullmatch(r"[1-9]\d{0,9}", text):
        raise typer.BadParameter(f"{text!r} is neither a number from 1 nor none", param_hint=option)
    return int(text)
