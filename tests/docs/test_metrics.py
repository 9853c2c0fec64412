"""The metrics table of docs/operations.md is what a node exposes."""

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from llmhost.config.schema import Settings
from llmhost.config.schema.money import BillingSettings
from llmhost.tenants.budgets import Budget
from llmhost.tenants.periods import Period
from llmhost.testing import make_host

DOC = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
ROW = r"^\| `((?:llmhost_|vllm:)\w+)` \| (\w+) \| (.*?) \| (.+?) \|$"

Row = tuple[str, str, frozenset[str], str]


def documented() -> set[Row]:
    table = DOC.split("\n## Metrics\n")[1].split("\n## ")[0]
    return {
        (name, kind, frozenset(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in re.findall(ROW, table.replace("| |", "|  |"), re.MULTILINE)
    }


def exposed(text: str) -> set[Row]:
    """(name as queried, type, labels, help) of every metric but the creation times."""
    rows = set()
    for family in text_string_to_metric_families(text):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        rows.add((name, family.type, frozenset(labels), family.documentation))
    return rows


async def test_the_table_is_what_a_node_exposes():
    settings = Settings(billing=BillingSettings(budget_metrics=True))
    async with make_host(settings=settings) as host:
        await host.say("hello", max_tokens=2)
        books = host.host.books
        await books.keys.create_org("acme")
        await books.budgets.create(Budget(id="", org="acme", period=Period.DAY), who="operator")
        text = (await host.client.get("/metrics")).text

    assert documented() == exposed(text)
