"""docs/safety.md lists every rule of the pack, and no other."""

import re
from pathlib import Path

from llmhost.safety.pack.pack import RULES

DOC = (Path(__file__).parents[2] / "docs/safety.md").read_text()


def test_every_rule_is_in_the_table_and_no_other_is():
    rows = [line.split("|")[1] for line in DOC.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+\.\w+)`", row)]

    assert sorted(listed) == sorted(RULES)
