"""The seam between commands and a node: over HTTP when it runs, on its data dir when it doesn't."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llmhost.cli.node import find_data_dir, find_node

Row = dict[str, Any]


class Admin(Protocol):
    """Tenants, usage and ledger: what can be asked and changed whether or not the node runs.

    Rows are as in the admin API. `*_at` are Unix seconds. Refusals are raised as LlmhostError.
    """

    def create_org(self, name: str, **facts: Any) -> Row: ...

    def orgs(self) -> list[Row]: ...

    def org(self, name: str) -> Row: ...

    def update_org(self, name: str, **changes: Any) -> Row:
        """What is not named stays, and None takes away; so below."""
        ...

    def create_team(self, org: str, name: str, **facts: Any) -> Row: ...

    def teams(self, *, org: str | None = None) -> list[Row]: ...

    def team(self, org: str, name: str) -> Row: ...

    def update_team(self, org: str, name: str, **changes: Any) -> Row: ...

    def archive_team(self, org: str, name: str) -> Row: ...

    def create_key(self, **facts: Any) -> Row:
        """The row has the key itself in `key`, this once; so has `rotate_key`'s."""
        ...

    def keys(self, *, org: str | None = None, team: str | None = None) -> list[Row]: ...

    def key(self, key_id: str) -> Row: ...

    def update_key(self, key_id: str, **changes: Any) -> Row: ...

    def rotate_key(self, key_id: str, *, overlap_s: int) -> Row: ...

    def revoke_key(self, key_id: str) -> Row: ...

    def create_budget(self, **facts: Any) -> Row:
        """Amounts are dollars as text; so below."""
        ...

    def budgets(
        self,
        *,
        org: str | None = None,
        team: str | None = None,
        key: str | None = None,
        active: bool = False,
    ) -> list[Row]:
        """All of them, or those that have not ended."""
        ...

    def budget(self, budget_id: str) -> Row: ...

    def update_budget(self, budget_id: str, **changes: Any) -> Row: ...

    def end_budget(self, budget_id: str) -> Row: ...

    def add_credit(self, org: str, **facts: Any) -> Row: ...

    def credits(self, org: str) -> list[Row]: ...

    def set_price(self, model: str, **facts: Any) -> Row:
        """Amounts are dollars per million tokens, as text; a time is `effective_at`."""
        ...

    def prices(
        self, *, model: str | None = None, org: str | None = None, in_force: bool = False
    ) -> list[Row]:
        """All versions, or those that hold now."""
        ...

    def price(self, model: str, *, org: str | None = None) -> Row:
        """What holds now for everybody, or for an organisation."""
        ...

    def price_version(self, version: str) -> Row: ...

    def usage(self, **query: Any) -> list[Row]:
        """What was used and charged. `by`, `since`, `until`, `timezone`, `org`, `team`, `key` and `model` are as the
        admin route takes them; `since` counts, `until` does not."""
        ...

    def costs(self, **query: Any) -> list[Row]:
        """What requests cost by pool, what was charged for them, and the margin; as `usage`."""
        ...

    def invoice(self, org: str, *, month: str, timezone: str = "UTC") -> Row:
        """The signed statement of a month."""
        ...

    def statement_key(self) -> Row:
        """What statements are checked with: `algorithm`, `public_key`, `node_id`."""
        ...

    def focus(self, **query: Any) -> list[Row]:
        """Charges in the columns of FOCUS; asked as `entries`."""
        ...

    def entries(self, **query: Any) -> Iterator[Row]:
        """Entries in order of time: of a `month`, or of any time; with `timezone` and filters as in `usage`."""
        ...

    def device_costs(self, *, since: str | None = None, until: str | None = None) -> list[Row]:
        """What the checks of devices' time and its cost found."""
        ...

    def verify_ledger(self) -> Row: ...

    def check_sums(self) -> Row: ...

    def rebuild_sums(self) -> Row: ...

    def accounts(self) -> list[Row]: ...

    def rerate(self, body: Row) -> Row:
        """The body is the admin route's."""
        ...

    def export_ledger(self) -> Iterator[Row]: ...

    def audit_rows(self, *, limit: int, **wanted: str) -> list[Row]:
        """The newest first: `org`, `kind`, `action`, `actor`, `since` and `until` are as the admin route takes them."""
        ...

    def audit_prompt(self, row_id: str) -> Row: ...

    def export_audit(self, **wanted: str) -> Iterator[Row]:
        """The oldest first: by `org`, `kind`, `since` and `until`."""
        ...

    def verify_audit(self, *, head: str | None = None) -> Row: ...

    def policies(self, org: str) -> list[Row]: ...

    def policy(self, org: str, version: str) -> Row:
        """By its number, or `active`."""
        ...

    def create_policy(self, org: str, body: Row) -> Row:
        """The body is the admin route's; so below."""
        ...

    def activate_policy(self, org: str, version: str) -> Row:
        """By its number, or `default`."""
        ...

    def try_policy(self, org: str, body: Row) -> Row: ...

    def backup(self, path: str) -> Iterator[Row]:
        """How far it is, `file`, `bytes` and `of`, and at last the manifest. The path is the node's."""
        ...

    def cache(self) -> Row: ...

    def purge_cache(self, *, everything: bool = False, **names: Any) -> Row: ...

    def batches(self, *, org: str | None = None) -> list[Row]: ...

    def batch(self, batch_id: str) -> Row: ...

    def cancel_batch(self, batch_id: str) -> Row: ...

    def files(self, *, org: str | None = None) -> list[Row]: ...

    def delete_file(self, file_id: str) -> Row: ...

    def reviews(
        self, *, org: str | None = None, state: str = "pending", category: str | None = None
    ) -> list[Row]: ...

    def review(self, review_id: str) -> Row: ...

    def review_original(self, review_id: str) -> Row:
        """Who reads it is written down."""
        ...

    def claim_review(self, review_id: str | None, *, org: str | None = None) -> Row:
        """None claims the one that is due first."""
        ...

    def release_review(self, review_id: str) -> Row: ...

    def decide_review(self, review_id: str, *, decision: str, note: str | None = None) -> Row: ...

    def escalate_review(self, review_id: str, *, note: str | None = None) -> Row: ...

    def review_stats(self, *, org: str | None = None, since: str | None = None) -> Row: ...

    def review_webhook(self) -> Row: ...

    def close(self) -> None: ...


@contextmanager
def open_admin(url: str | None, data_dir: Path | None) -> Iterator[Admin]:
    """A running node's API if there is one, else the data dir itself."""
    admin = _admin(url, data_dir)
    try:
        yield admin
    finally:
        admin.close()


def _admin(url: str | None, data_dir: Path | None) -> Admin:
    node = find_node(url, data_dir)
    if node is not None:
        from llmhost.cli.client import HttpAdmin

        return HttpAdmin(node)
    from llmhost.host import OfflineAdmin

    offline: Admin = OfflineAdmin(find_data_dir(data_dir))
    return offline
