"""The OpenAPI document against the server that serves it: 2,000 requests that nobody wrote, and a linter's word."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from installed import python, run
from server_process import Node
from truth import MODELS, Truth

pytestmark = [pytest.mark.bars, pytest.mark.filterwarnings("ignore")]  # of the generator's own

ASKED = 2_000


def test_2000_requests_from_the_document_are_answered_as_it_says(
    new_node: Callable[..., Node], bar: Callable[[str], None]
) -> None:
    truth = Truth(new_node(MODELS).start(), at=1)
    operations = list(truth.operations())
    bodies = [operation for operation in operations if operation.body]
    for operation in operations:
        truth.ask(operation, 16)
    while (asked := sum(truth.asked_all().values())) < ASKED:
        share = max(2, (ASKED - asked) // len(bodies) + 1)
        truth.at += 1
        for operation in bodies:
            truth.ask(operation, share)

    statuses: Counter[int] = truth.asked_all()
    failures = len(truth.failures)
    bar(
        f"OpenAPI: {sum(statuses.values())} requests to {len(truth.asked)} operations,"
        f" {statuses[200] + statuses[201]} answered, {failures} not as described"
    )
    assert truth.failures == []
    assert not any(status >= 500 for status in statuses)
    assert "Traceback" not in truth.node.log()


def test_a_linter_finds_nothing_to_say_of_the_document(
    new_node: Callable[..., Node], tmp_path: Path, bar: Callable[[str], None]
) -> None:
    (tmp_path / "schema.json").write_text(new_node(MODELS).start().get("/schema").text)
    ran = run([str(python("lint")), "-m", "openapi_spec_validator", "schema.json"], tmp_path, {})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    bar("OpenAPI: openapi-spec-validator finds nothing")
