"""docs/models.md, made anew from all language models of transformers."""

from collections.abc import Callable

import pytest
from tests.unit.engines.model_table import survey, written

pytestmark = pytest.mark.bars


def test_the_tables_of_models_are_what_a_survey_finds(bar: Callable[[str], None]) -> None:
    made = survey()
    counts = {name: len(lines.splitlines()) - 2 for name, lines in made.items()}
    bar(f"models: {counts['served']} architectures served, {counts['refused']} lines of refusals")
    assert made == {name: written(name) for name in made}
