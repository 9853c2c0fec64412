"""The tables of docs/models.md are what the code does; `make bars` makes them anew."""

import re

import pytest
import transformers
from tests.unit.engines import model_table
from tests.unit.engines.model_table import PAGE, architectures, rows_of, written

TABLES = ("served", "refused", "untried")
SHOWN = re.search(r"With transformers (\d+)\.(\d+)", PAGE.read_text())
assert SHOWN is not None
INSTALLED = tuple(int(part) for part in transformers.__version__.split(".")[:2])
of_this_version = pytest.mark.skipif(
    (int(SHOWN[1]), int(SHOWN[2])) > INSTALLED, reason="the page is of a newer transformers"
)


@of_this_version
def test_the_page_is_of_the_version_that_is_installed():
    assert f"With transformers {transformers.__version__}." in PAGE.read_text()


@of_this_version
def test_every_language_model_of_transformers_stands_in_a_table():
    rows = [line for name in TABLES for line in written(name).splitlines()[2:]]
    names = {found[1] for row in rows if (found := re.match(r"\| `(\w+)` \|", row))}

    assert names == set(architectures())


# One of each kind: served with everything, refused by the config, by what it asks, by what it computes.
@pytest.mark.parametrize(
    "name", ["GptOssForCausalLM", "DeepseekV3ForCausalLM", "DiffLlamaForCausalLM", "MoshiForCausalLM"]
)  # fmt: skip
def test_a_line_says_what_becomes_of_the_model(name: str):
    for table, row in rows_of(name, architectures()[name]):
        assert "| " + " | ".join(row) + " |" in written(table).splitlines()


def test_families_of_the_table_have_variants_of_the_same_model_type():
    assert model_table.families(["falcon"])[0] == "falcon"
    assert "falcon_new" in model_table.families(["falcon"])
