"""What reports say, for tests that look at one figure."""

from llmhost.cost.query import POOLS, USED, Query
from llmhost.cost.reports import Reports
from llmhost.storage.reader import Reader

Told = dict[str | int | None, dict[str, int]]


def used(reader: Reader, by: str = "org") -> Told:
    """Of each group: what it used, and what it was charged."""
    lines = Reports(reader).usage(Query(by=(by,)))
    return {line.groups[0]: dict(zip(USED, line.sums, strict=True)) for line in lines}


def cost(reader: Reader, by: str = "org") -> Told:
    """Of each group: that, and what it cost by pool."""
    lines = Reports(reader).costs(Query(by=(by,)))
    return {line.groups[0]: dict(zip((*USED, *POOLS), line.sums, strict=True)) for line in lines}
