"""A running node's admin API over HTTP."""

from collections.abc import Iterator, Mapping
from typing import Any, Self
from urllib.parse import quote

import httpx

from llmhost.cli.http import Asked, Http, Refused, Row, message_of, parsed
from llmhost.cli.node import Node

_CURE = "Set LLMHOST_ADMIN_TOKEN to the admin token in server.json of the node's data dir."


class HttpAdmin:
    """The admin API of one node, and what only a running node can tell."""

    def __init__(self, node: Node, transport: httpx.BaseTransport | None = None) -> None:
        self._http = Http(node, node.admin_token, _CURE, transport)

    def create_org(self, name: str, **facts: Any) -> Row:
        return self._http.one("POST", "/admin/v1/orgs", json={"name": name, **facts})

    def orgs(self) -> list[Row]:
        return self._http.all("/admin/v1/orgs")

    def org(self, name: str) -> Row:
        return self._http.one("GET", _path("orgs", name))

    def update_org(self, name: str, **changes: Any) -> Row:
        return self._http.one("PATCH", _path("orgs", name), json=changes)

    def create_team(self, org: str, name: str, **facts: Any) -> Row:
        return self._http.one("POST", "/admin/v1/teams", json={"org": org, "name": name, **facts})

    def teams(self, *, org: str | None = None) -> list[Row]:
        return self._http.all("/admin/v1/teams", org=org)

    def team(self, org: str, name: str) -> Row:
        return self._http.one("GET", _path("teams", org, name))

    def update_team(self, org: str, name: str, **changes: Any) -> Row:
        return self._http.one("PATCH", _path("teams", org, name), json=changes)

    def archive_team(self, org: str, name: str) -> Row:
        return self._http.one("DELETE", _path("teams", org, name))

    def create_key(self, **facts: Any) -> Row:
        return self._http.one("POST", "/admin/v1/keys", json=facts)

    def keys(self, *, org: str | None = None, team: str | None = None) -> list[Row]:
        return self._http.all("/admin/v1/keys", org=org, team=team)

    def key(self, key_id: str) -> Row:
        return self._http.one("GET", _path("keys", key_id))

    def update_key(self, key_id: str, **changes: Any) -> Row:
        return self._http.one("PATCH", _path("keys", key_id), json=changes)

    def rotate_key(self, key_id: str, *, overlap_s: int) -> Row:
        path = f"{_path('keys', key_id)}/rotate"
        return self._http.one("POST", path, json={"overlap_s": overlap_s})

    def revoke_key(self, key_id: str) -> Row:
        return self._http.one("DELETE", _path("keys", key_id))

    def create_budget(self, **facts: Any) -> Row:
        return self._http.one("POST", "/admin/v1/budgets", json=facts)

    def budgets(
        self,
        *,
        org: str | None = None,
        team: str | None = None,
        key: str | None = None,
        active: bool = False,
    ) -> list[Row]:
        only = "true" if active else None
        return self._http.all("/admin/v1/budgets", org=org, team=team, key=key, active=only)

    def budget(self, budget_id: str) -> Row:
        return self._http.one("GET", _path("budgets", budget_id))

    def update_budget(self, budget_id: str, **changes: Any) -> Row:
        return self._http.one("PATCH", _path("budgets", budget_id), json=changes)

    def end_budget(self, budget_id: str) -> Row:
        return self._http.one("DELETE", _path("budgets", budget_id))

    def add_credit(self, org: str, **facts: Any) -> Row:
        return self._http.one("POST", _path("orgs", org, "credits"), json=facts)

    def credits(self, org: str) -> list[Row]:
        return self._http.all(_path("orgs", org, "credits"))

    def set_price(self, model: str, **facts: Any) -> Row:
        return self._http.one("POST", "/admin/v1/prices", json={"model": model, **facts})

    def prices(
        self, *, model: str | None = None, org: str | None = None, in_force: bool = False
    ) -> list[Row]:
        held = "true" if in_force else None
        return self._http.all("/admin/v1/prices", model=model, org=org, in_force=held)

    def price(self, model: str, *, org: str | None = None) -> Row:
        return self._http.one("GET", _path("prices", "current"), query={"model": model, "org": org})

    def price_version(self, version: str) -> Row:
        return self._http.one("GET", _path("prices", "versions", version))

    def usage(self, **query: Any) -> list[Row]:
        return self._http.all("/admin/v1/usage", limit="1000", **query)

    def costs(self, **query: Any) -> list[Row]:
        return self._http.all("/admin/v1/costs", limit="1000", **query)

    def invoice(self, org: str, *, month: str, timezone: str = "UTC") -> Row:
        query = {"month": month, "timezone": timezone}
        return self._http.one("GET", _path("invoices", org), read_s=None, query=query)

    def statement_key(self) -> Row:
        return self._http.one("GET", "/v1/billing/public-key")

    def focus(self, **query: Any) -> list[Row]:
        return list(self._lines("/admin/v1/usage/focus", query))

    def entries(self, **query: Any) -> Iterator[Row]:
        return self._lines("/admin/v1/ledger/entries", query)

    def _lines(self, path: str, query: Mapping[str, Asked]) -> Iterator[Row]:
        with self._http.open("GET", path, query=query) as answer:
            for line in answer.iter_lines():
                if line:
                    yield parsed(line)

    def device_costs(self, *, since: str | None = None, until: str | None = None) -> list[Row]:
        return self._http.all("/admin/v1/costs/devices", since=since, until=until)

    def verify_ledger(self) -> Row:
        return self._http.one("GET", "/admin/v1/ledger/verify", read_s=None)

    def check_sums(self) -> Row:
        return self._http.one("GET", "/admin/v1/ledger/check", read_s=None)

    def rebuild_sums(self) -> Row:
        return self._http.one("POST", "/admin/v1/ledger/rebuild", read_s=None)

    def accounts(self) -> list[Row]:
        return self._http.all("/admin/v1/ledger/accounts")

    def rerate(self, body: Row) -> Row:
        return self._http.one("POST", "/admin/v1/ledger/rerate", json=body, read_s=None)

    def export_ledger(self) -> Iterator[Row]:
        with self._http.open("GET", "/admin/v1/ledger/export") as answer:
            for line in answer.iter_lines():
                if line:
                    yield parsed(line)

    def audit_rows(self, *, limit: int, **wanted: str) -> list[Row]:
        return self._http.many("/admin/v1/audit", limit=str(limit), **wanted)

    def audit_prompt(self, row_id: str) -> Row:
        return self._http.one("GET", f"{_path('audit', row_id)}/prompt")

    def export_audit(self, **wanted: str) -> Iterator[Row]:
        return self._lines("/admin/v1/audit/export", wanted)

    def verify_audit(self, *, head: str | None = None) -> Row:
        query = {"head": head}
        return self._http.one("GET", "/admin/v1/audit/verify", read_s=None, query=query)

    def policies(self, org: str) -> list[Row]:
        return self._http.all(_path("orgs", org, "policies"))

    def policy(self, org: str, version: str) -> Row:
        return self._http.one("GET", _path("orgs", org, "policies", version))

    def create_policy(self, org: str, body: Row) -> Row:
        return self._http.one("POST", _path("orgs", org, "policies"), json=body)

    def activate_policy(self, org: str, version: str) -> Row:
        return self._http.one("POST", _path("orgs", org, "policies", version, "activate"))

    def try_policy(self, org: str, body: Row) -> Row:
        path = _path("orgs", org, "policies", "dry-run")
        return self._http.one("POST", path, json=body, read_s=None)

    def backup(self, path: str) -> Iterator[Row]:
        with self._http.open("POST", "/admin/v1/backup", json={"path": path}) as answer:
            for line in answer.iter_lines():
                row = parsed(line)
                if "error" in row:
                    raise Refused(message_of(row) or "The backup failed.")
                yield row

    def cache(self) -> Row:
        return self._http.one("GET", "/admin/v1/cache")

    def cache_stats(self) -> list[Row]:
        return self._http.all("/admin/v1/cache/stats")

    def cache_policies(self) -> list[Row]:
        return self._http.all("/admin/v1/cache/policies")

    def purge_cache(self, *, everything: bool = False, **names: Any) -> Row:
        body = {"everything": everything, **names}
        return self._http.one("POST", "/admin/v1/cache/purge", json=body)

    def batches(self, *, org: str | None = None) -> list[Row]:
        return self._http.all("/admin/v1/batches", org=org)

    def batch(self, batch_id: str) -> Row:
        return self._http.one("GET", _path("batches", batch_id))

    def cancel_batch(self, batch_id: str) -> Row:
        return self._http.one("POST", f"{_path('batches', batch_id)}/cancel")

    def files(self, *, org: str | None = None) -> list[Row]:
        return self._http.all("/admin/v1/files", org=org)

    def delete_file(self, file_id: str) -> Row:
        return self._http.one("DELETE", _path("files", file_id))

    def reviews(
        self, *, org: str | None = None, state: str = "pending", category: str | None = None
    ) -> list[Row]:
        query = {"org": org, "state": state, "category": category}
        return self._http.all("/admin/v1/reviews", limit="1000", **query)

    def review(self, review_id: str) -> Row:
        return self._http.one("GET", _path("reviews", review_id))

    def review_original(self, review_id: str) -> Row:
        return self._http.one("GET", _path("reviews", review_id, "original"))

    def claim_review(self, review_id: str | None, *, org: str | None = None) -> Row:
        path = _path("reviews", *([] if review_id is None else [review_id]), "claim")
        return self._http.one("POST", path, query={"org": org})

    def release_review(self, review_id: str) -> Row:
        return self._http.one("POST", _path("reviews", review_id, "release"))

    def decide_review(self, review_id: str, *, decision: str, note: str | None = None) -> Row:
        body = {"decision": decision, "note": note}
        return self._http.one("POST", _path("reviews", review_id, "decide"), json=body)

    def escalate_review(self, review_id: str, *, note: str | None = None) -> Row:
        return self._http.one("POST", _path("reviews", review_id, "escalate"), json={"note": note})

    def review_stats(self, *, org: str | None = None, since: str | None = None) -> Row:
        query = {"org": org, "since": since}
        return self._http.one("GET", _path("reviews", "stats"), query=query)

    def review_webhook(self) -> Row:
        return self._http.one("GET", _path("reviews", "webhook"))

    def models(self) -> list[Row]:
        return self._http.all("/admin/v1/models")

    def ps(self) -> list[Row]:
        return self._http.all("/admin/v1/ps")

    def load(self, model: str) -> Row:
        return self._turn(model, "load")

    def unload(self, model: str) -> Row:
        return self._turn(model, "unload")

    def sleep(self, model: str) -> Row:
        return self._turn(model, "sleep")

    def wake(self, model: str) -> Row:
        return self._turn(model, "wake")

    def adapters(self) -> list[Row]:
        return self._http.all("/admin/v1/adapters")

    def load_adapter(self, adapter: str, source: str | None) -> Row:
        body = {"adapter": adapter, "source": source}
        return self._http.one("POST", "/admin/v1/adapters/load", json=body, read_s=None)

    def unload_adapter(self, adapter: str) -> Row:
        body = {"adapter": adapter}
        return self._http.one("POST", "/admin/v1/adapters/unload", json=body, read_s=None)

    def plugins(self) -> list[Row]:
        return self._http.many("/admin/v1/plugins")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _turn(self, model: str, verb: str) -> Row:
        # Loading takes as long as it takes; a slash in a model's name stays part of the name.
        return self._http.one(
            "POST", f"/admin/v1/models/{quote(model, safe='')}/{verb}", read_s=None
        )


def _path(*parts: str) -> str:
    """Below /admin/v1; a slash in a name stays part of the name."""
    return "/".join(("/admin/v1", *(quote(part, safe="") for part in parts)))
