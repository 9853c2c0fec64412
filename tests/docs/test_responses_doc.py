"""docs/responses.md says of every parameter what becomes of it."""

import re
from pathlib import Path

import msgspec

from llmhost.api.responses.bodies import ResponseBody

TEXT = (Path(__file__).parents[2] / "docs" / "responses.md").read_text()


def test_every_parameter_is_in_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:honoured|ignored|refused) \|", TEXT, re.MULTILINE)

    known = {field.encode_name for field in msgspec.structs.fields(ResponseBody)}
    assert sorted(rows) == sorted(known | {"store", "max_tokens"})
