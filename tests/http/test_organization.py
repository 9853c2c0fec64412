"""OpenAI's own routes for usage and costs, asked with OpenAI's client: they say what the ledger says."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI
from server_process import Node, chat_body

SETTINGS = """
[models.echo]
engine = "fake"
[models.echo.price]
input = "0.1500001"
output = "0.6000001"
request = "0.000001"
[models.vectors]
engine = "fake"
options = { task = "embed" }
[models.vectors.price]
input = "1"
output = "1"
"""
LATER = 86_400


@dataclass
class Shop:
    node: Node
    keys: dict[str, dict[str, Any]]
    entries: list[dict[str, Any]]

    @property
    def start(self) -> int:
        """Midnight (UTC) of the day of the first entry."""
        return int(self.entries[0]["utc_ns"]) // 10**9 // LATER * LATER

    def client(self, who: str) -> Any:
        key = self.node.admin_token if who == "operator" else self.keys[who]["key"]
        base = f"{self.node.url}/v1"
        return OpenAI(api_key="none", admin_api_key=key, base_url=base).admin.organization.usage

    def ask(self, who: str, path: str, **query: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[who]['key']}"}
        return self.node.http.get(f"{self.node.url}{path}", params=query, headers=headers)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    node = Node(tmp_path_factory.mktemp("shop"), SETTINGS).start()
    try:
        keys = {role: node.create_key("own", role=role) for role in ("billing", "member")}
        keys["red"] = node.create_key("own", team="red", role="admin")
        keys["other"] = node.create_key("zq-foreign", role="admin")
        for who in ("member", "red", "other", "red", "other"):
            body = chat_body(model="echo", max_tokens=7)
            assert _post(node, keys[who], "/v1/chat/completions", body).status_code == 200
        embed = {"model": "vectors", "input": ["a b c", "d"]}
        assert _post(node, keys["red"], "/v1/embeddings", embed).status_code == 200
        assert _post(node, keys["red"], "/v1/embeddings", {"model": "x"}).status_code >= 400
        decide = {
            "model": "echo",
            "input": "a b",
            "questions": [{"type": "predicate", "instructions": "c"}],
        }
        assert _post(node, keys["red"], "/v1/decisions", decide).status_code == 200
        entries = [json.loads(line) for line in node.cli("ledger", "export").stdout.splitlines()]
        yield Shop(node, keys, entries)
        assert "Traceback" not in node.log()
    finally:
        node.close()


def _post(node: Node, key: dict[str, Any], path: str, body: Any) -> httpx.Response:
    return node.post(path, body, headers={"authorization": f"Bearer {key['key']}"})


def results(page: Any) -> list[Any]:
    return list(itertools.chain.from_iterable(bucket.results for bucket in page.data))


def test_openai_s_client_reads_completions_of_all_organisations(shop: Shop) -> None:
    page = shop.client("operator").completions(
        start_time=shop.start, group_by=["model", "project_id", "api_key_id"]
    )

    assert (page.object, page.has_more, page.next_page) == ("page", False, None)
    found = {(one.project_id, one.api_key_id, one.model): one for one in results(page)}
    red = found["own/red", shop.keys["red"]["id"], "echo@1"]
    assert (red.num_model_requests, red.input_tokens, red.output_tokens) == (2, 8, 14)
    assert red.object == "organization.usage.completions.result"
    assert red.input_cached_tokens == 0
    assert {project for project, _, _ in found} == {"own", "own/red", "zq-foreign"}


def test_embeddings_are_told_apart(shop: Shop) -> None:
    (one,) = results(shop.client("billing").embeddings(start_time=shop.start))

    assert (one.object, one.num_model_requests) == ("organization.usage.embeddings.result", 1)
    tokens = sum(entry["tokens"].get("embedding", 0) for entry in shop.entries)
    assert one.input_tokens == tokens > 0


def test_costs_are_the_ledger_s_to_the_last_place(shop: Shop) -> None:
    own = sum(entry["amount_nano"] for entry in shop.entries if entry["org"] == "own")

    (whole,) = results(shop.client("billing").costs(start_time=shop.start))
    items = results(shop.client("billing").costs(start_time=shop.start, group_by=["line_item"]))

    assert whole.amount.currency == "usd"
    assert whole.amount.value == own / 10**9
    assert femto(whole) == own * 10**6
    assert sum(map(femto, items)) == own * 10**6
    named = {one.line_item: one for one in items}
    assert named["echo@1, output_tokens"].quantity == 21
    assert "echo@1, input_tokens" in named
    assert "vectors@1, embedding_tokens" in named


def femto(result: Any) -> int:
    whole, places = result.amount.exact.lstrip("-").split(".")
    value = int(whole) * 10**15 + int(places.ljust(15, "0"))
    return -value if result.amount.exact.startswith("-") else value


def test_filters_keep_to_what_they_name(shop: Shop) -> None:
    usage = shop.client("operator")

    def requests(**filters: Any) -> int:
        page = usage.completions(start_time=shop.start, **filters)
        return sum(one.num_model_requests for one in results(page))

    assert requests() == 5
    assert requests(project_ids=["own/red"]) == 2
    assert requests(project_ids=["zq-foreign"]) == 2
    assert requests(api_key_ids=[shop.keys["member"]["id"]]) == 1
    assert requests(models=["echo"]) == 5
    assert requests(models=["echo@1", "nothing"]) == 5
    assert requests(user_ids=["somebody"]) == 0
    assert requests(end_time=shop.start + 1) == 0


def test_decisions_are_told_apart(shop: Shop) -> None:
    (one,) = results(shop.client("billing").decisions(start_time=shop.start, group_by=["model"]))

    (entry,) = [entry for entry in shop.entries if entry["task"] == "decisions"]
    tokens = entry["tokens"]
    assert (one.object, one.model) == ("organization.usage.decisions.result", "echo@1")
    assert (one.num_model_requests, one.output_tokens) == (1, 0)
    assert one.input_tokens == tokens["fresh_input"] + tokens["cached_input"] > 0


def test_what_this_server_has_not_was_never_used(shop: Shop) -> None:
    usage = shop.client("billing")

    for kind in ("moderations", "images", "audio_speeches", "vector_stores"):
        page = getattr(usage, kind)(start_time=shop.start, limit=1)
        assert [bucket.results for bucket in page.data] == [[]]
    path = "/v1/organization/usage/dreams"
    assert shop.ask("billing", path, start_time=shop.start).status_code == 404


def test_pages_follow_one_another_and_have_every_bucket_once(shop: Shop) -> None:
    usage, start, end = shop.client("billing"), shop.start - LATER + 90, shop.start + 2 * LATER
    query: dict[str, Any] = {"start_time": start, "end_time": end, "bucket_width": "1h"}
    buckets: list[Any] = []
    page = usage.completions(**query, limit=5)
    buckets += page.data
    while page.has_more:
        page = usage.completions(**query, limit=5, page=page.next_page)
        buckets += page.data

    assert buckets[0].start_time == start
    assert buckets[-1].end_time == end
    assert all(a.end_time == b.start_time for a, b in itertools.pairwise(buckets))
    assert len(buckets) == 72
    own = itertools.chain.from_iterable(bucket.results for bucket in buckets)
    assert sum(one.num_model_requests for one in own) == 3


def test_nobody_sees_another_s_usage(shop: Shop) -> None:
    groups = {"group_by[]": ["project_id", "api_key_id"], "start_time": shop.start}
    for path in ("usage/completions", "usage/embeddings", "costs", f"invoices/{_month(shop)}"):
        whole = f"/v1/organization/{path}"

        status = {who: shop.ask(who, whole, **groups).status_code for who in shop.keys}

        assert status == {"billing": 200, "member": 403, "red": 200, "other": 200}
        assert "zq-foreign" not in shop.ask("billing", whole, **groups).text
        asked = {**groups, "project_ids[]": "zq-foreign"}
        assert "zq-foreign" not in shop.ask("billing", whole, **asked).text
    foreign = f"/v1/organization/invoices/{_month(shop)}"
    assert shop.ask("billing", foreign, org="zq-foreign").status_code == 404
    assert shop.node.http.get(f"{shop.node.url}/v1/organization/costs").status_code == 401


def _month(shop: Shop) -> str:
    return str(shop.node.admin("GET", "/usage", by="month").json()["data"][0]["month"])


def test_a_member_sees_its_own_usage_and_no_more(shop: Shop) -> None:
    (own,) = shop.ask("member", "/v1/usage", by="key").json()["data"]
    others = shop.ask("member", "/v1/usage", by="key", key=shop.keys["red"]["id"])

    assert (own["key"], own["requests"]) == (shop.keys["member"]["id"], 1)
    assert others.json()["data"] == []
    assert len(shop.ask("billing", "/v1/usage", by="key").json()["data"]) == 2


NUMBERS = st.one_of(st.integers(-(10**20), 10**20).map(str), st.text(max_size=8))
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "start_time": NUMBERS,
        "end_time": NUMBERS,
        "limit": NUMBERS,
        "bucket_width": st.one_of(st.sampled_from(["1m", "1h", "1d"]), st.text(max_size=5)),
        "group_by[]": st.one_of(st.sampled_from(["model", "line_item"]), st.text(max_size=9)),
        "page": st.text(max_size=30),
        "models[]": st.text(max_size=20),
        "project_ids[]": st.text(max_size=20),
    },
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(path=st.sampled_from(["usage/completions", "usage/embeddings", "costs"]), query=QUERIES)
def test_any_question_is_answered_or_refused(shop: Shop, path: str, query: dict[str, str]) -> None:
    answer = shop.ask("billing", f"/v1/organization/{path}", **query)

    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["type"] == "invalid_request_error"


TIMES = st.one_of(
    st.sampled_from(["2026-11-01", "0001-01-01", "9999-12-31T23:59:59+14:00", "24h", ""]),
    st.text(max_size=12),
)
REPORTS = st.fixed_dictionaries(
    {},
    optional={
        "by": st.one_of(
            st.sampled_from(
                ["", "org,day", "minute", "hour,run,adapter,cache", "price,outcome,kind"]
            ),
            st.text(max_size=12),
        ),
        "since": TIMES,
        "until": TIMES,
        "month": st.one_of(st.sampled_from(["2026-11", "1970-01", "9999-12"]), st.text(max_size=8)),
        "timezone": st.one_of(
            st.sampled_from(
                ["Europe/Berlin", "Africa/Monrovia", "posixrules", "UTC", "Etc/GMT+12"]
            ),
            st.text(max_size=12),
        ),
        "org": st.one_of(st.sampled_from(["own", "zq-foreign"]), st.text(max_size=8)),
        "team": st.text(max_size=8),
        "key": st.text(max_size=8),
        "model": st.one_of(st.sampled_from(["echo", "@", "%"]), st.text(max_size=8)),
        "limit": NUMBERS,
        "after": st.text(max_size=8),
    },
)
PATHS = (
    "/v1/usage",
    "/admin/v1/usage",
    "/admin/v1/usage/focus",
    "/admin/v1/ledger/entries",
    "/admin/v1/invoices/own",
    "/admin/v1/costs",
)


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(PATHS), query=REPORTS, who=st.sampled_from(["red", "operator"]))
def test_any_report_is_made_or_refused(
    shop: Shop, path: str, query: dict[str, str], who: str
) -> None:
    key = shop.node.admin_token if who == "operator" else shop.keys[who]["key"]
    headers = {"authorization": f"Bearer {key}"}

    answer = shop.node.http.get(f"{shop.node.url}{path}", params=query, headers=headers)

    assert answer.status_code in (200, 400, 403, 404), answer.text
    if who != "operator" and answer.status_code == 200:
        assert "zq-foreign" not in answer.text
