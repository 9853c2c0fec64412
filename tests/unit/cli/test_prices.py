"""`llmhost prices`: what is asked of a node, and what is said."""

import json

import pytest

ROW = {"version": "tiny/2", "model": "tiny", "org": None, "input": "0.10", "cached_input": "0.01"}
ROW |= {"output": "0.40", "reasoning": None, "embedding": None, "request": "0.00"}
ROW |= {"withdrawn": False, "origin": "api", "note": None, "in_force": True}
ROW |= {"created_at": 1767225600, "effective_at": 1767225600}


def test_what_is_set_is_sent_as_text_and_said(node, llmhost):
    node.answers["POST /admin/v1/prices"] = ROW

    result = llmhost(
        *("prices", "set", "tiny", "--input", "0.10", "--cached-input", "0.01"),
        *("--output", "0.40", "--org", "acme", "--from", "2026-01-01", "--note", "why", "--yes"),
    )

    assert node.asked[0]["body"] == {
        "model": "tiny",
        "input": "0.10",
        "cached_input": "0.01",
        "output": "0.40",
        "org": "acme",
        "note": "why",
        "effective_at": 1767225600,
        "confirm": True,
    }
    assert result.stdout == (
        "Price tiny/2 for everybody: 0.10 / 0.01 / 0.40 per million tokens, from now\n"
    )


def test_a_time_is_utc_unless_it_says_otherwise(node, llmhost):
    node.answers["POST /admin/v1/prices"] = ROW
    amounts = ("--input", "0", "--output", "0")
    for text in ("2026-12-01", "2026-12-01T00:00Z", "2026-12-01T01:00+01:00"):
        llmhost("prices", "set", "tiny", *amounts, "--from", text)

    assert {asked["body"]["effective_at"] for asked in node.asked} == {1796083200}


def test_a_price_is_withdrawn_and_one_to_come_says_when(node, llmhost):
    node.answers["POST /admin/v1/prices"] = ROW | {"withdrawn": True, "in_force": False}

    result = llmhost("prices", "set", "tiny", "--org", "acme", "--withdraw")

    assert node.asked[0]["body"] == {"model": "tiny", "org": "acme", "withdraw": True}
    assert result.stdout == "Price tiny/2 for everybody: withdrawn, from 2026-01-01 00:00\n"


@pytest.mark.parametrize(
    "args",
    [
        ("tiny",),
        ("tiny", "--input", "1"),
        ("tiny", "--output", "1"),
        ("tiny", "--withdraw", "--input", "1"),
        ("tiny", "--input", "1", "--output", "1", "--from", "soon"),
        ("--input", "1", "--output", "1"),
    ],
)
def test_wrong_usage_asks_nobody(node, llmhost, args: tuple[str, ...]):
    assert llmhost("prices", "set", *args).exit_code == 2
    assert node.asked == []


def test_versions_are_listed_with_origin_and_state(node, llmhost):
    node.answers["GET /admin/v1/prices"] = {
        "data": [
            ROW | {"version": "tiny/1", "origin": "file", "in_force": False, "request": "0.01"},
            ROW | {"org": "acme", "note": "contract"},
            ROW | {"version": "tiny/3", "withdrawn": True, "in_force": False},
        ]
    }

    lines = llmhost("prices", "list", "--model", "tiny", "--in-force").stdout.splitlines()

    assert node.asked[0]["query"] == {"model": "tiny", "in_force": "true"}
    assert lines[0].split() == ["VERSION", "ORG", "PRICE", "ORIGIN", "FROM", "IN", "FORCE", "NOTE"]
    assert "0.10 / 0.01 / 0.40 + 0.01 each  file" in lines[1]
    assert lines[2].split()[-2:] == ["yes", "contract"]
    assert "withdrawn" in lines[3]


def test_one_price_is_shown_by_who_pays_it_or_by_its_number(node, llmhost):
    node.answers["GET /admin/v1/prices/current"] = ROW
    node.answers["GET /admin/v1/prices/versions/org/tiny/2"] = ROW

    shown = llmhost("prices", "show", "tiny", "--org", "acme").stdout
    found = json.loads(llmhost("prices", "show", "org/tiny", "--version", "2", "--json").stdout)

    assert node.asked[0]["query"] == {"model": "tiny", "org": "acme"}
    assert "effective_at  2026-01-01 00:00\n" in shown
    assert found == ROW
    assert llmhost("prices", "show", "tiny", "--org", "a", "--version", "1").exit_code == 2
