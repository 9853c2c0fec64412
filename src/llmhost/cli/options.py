"""Options that many commands share, and the look of their examples."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.", show_default=False)]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Node to ask (http://HOST:PORT or unix:PATH), or LLMHOST_URL; else that of the data dir.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Data dir of the node; the settings name it when absent."),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--models",
        metavar="FILE",
        help="Settings file; models.toml of the current directory when absent.",
    ),
]
PluginsDir = Annotated[
    Path | None,
    typer.Option("--plugins", metavar="DIR", help="Folder of drop-in plugins."),
]
Orgs = Annotated[
    list[str] | None,
    typer.Option("--org", metavar="ORG", help="Of this organisation only; may be repeated."),
]
Teams = Annotated[
    list[str] | None,
    typer.Option("--team", metavar="TEAM", help="Of this team only: TEAM, or ORG/TEAM."),
]
Keys = Annotated[
    list[str] | None, typer.Option("--key", metavar="ID", help="Of the key with this id only.")
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="MODEL", help="Of this model only: NAME or NAME@VERSION."),
]

BudgetUsd = Annotated[
    str | None,
    typer.Option("--budget-usd", metavar="DOLLARS", help="Most that may be spent, such as 12.50."),
]
BudgetPeriod = Annotated[
    Literal["day", "month", "total"] | None,
    typer.Option("--budget-period", help="Per what that is, in UTC. [default: total]"),
]


def first_budget(usd: str | None, period: str | None) -> dict[str, str]:
    """As the admin API calls it; `llmhost budgets` makes all other kinds."""
    if usd is None and period is not None:
        raise typer.BadParameter("needs --budget-usd", param_hint="--budget-period")
    wanted = {"budget_usd": usd, "budget_period": period}
    return {name: value for name, value in wanted.items() if value is not None}


def examples(*lines: str) -> str:
    r"""Text for below the options. `\b` keeps its lines as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
