"""Reports in pages: all pages are of one report, and nobody is given more than he may see."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from llmhost.api.reports import KEPT, ReportDesk, query_of, seen_by
from llmhost.core.caller import Role
from llmhost.core.errors import InvalidValue
from llmhost.cost.query import USED, Query
from llmhost.cost.reports import Line
from llmhost.tenants.roles import OPERATOR, Access


@dataclass
class Growing:
    """A ledger in which every report finds a group more than the one before."""

    count: int = 5
    asked: list[Query] = field(default_factory=list)

    def usage(self, query: Query) -> list[Line]:
        self.asked.append(query)
        self.count += 1
        return [Line((f"org-{one}",), (one,) * len(USED)) for one in range(self.count)]


def desk() -> tuple[ReportDesk, Growing]:
    ledger = Growing()
    reports: Any = ledger
    return ReportDesk(reports), ledger


def test_pages_are_of_one_report_though_the_ledger_grows() -> None:
    made, ledger = desk()
    query = Query()

    pages = [made.usage(query, limit=2)]
    while pages[-1].has_more:
        pages.append(made.usage(query, limit=2, after=pages[-1].last_id))

    assert [row.org for page in pages for row in page.data] == [f"org-{one}" for one in range(6)]
    assert len(ledger.asked) == 1
    assert len(made.usage(query).data) == 7


def test_a_page_whose_report_is_forgotten_is_of_a_new_one() -> None:
    made, _ = desk()
    first = made.usage(Query(), limit=2)
    for one in range(KEPT):
        made.usage(Query(orgs=(str(one),)), limit=2)

    page = made.usage(Query(), limit=2, after=first.last_id)

    assert [row.org for row in page.data] == ["org-2", "org-3"]


def test_one_page_is_never_of_another_s_report() -> None:
    made, ledger = desk()
    own = Access(org="acme", key_id="k", role=Role.MEMBER)
    page = made.usage(Query(), OPERATOR, limit=2)

    made.usage(Query(), own, limit=2, after=page.last_id)

    assert (ledger.asked[1].within_org, ledger.asked[1].within_key) == ("acme", "k")


def test_an_end_that_is_on_no_page_is_refused() -> None:
    made, _ = desk()

    with pytest.raises(InvalidValue, match="after"):
        made.usage(Query(), after="nobody")


def test_an_accountant_sees_the_organisation_and_a_member_its_key() -> None:
    query = Query(orgs=("other",))

    accountant = seen_by(Access(org="acme", key_id="k", role=Role.BILLING), query)
    member = seen_by(Access(org="acme", key_id="k", role=Role.MEMBER), query)

    assert (accountant.within_org, accountant.within_key) == ("acme", None)
    assert (member.within_org, member.within_key) == ("acme", "k")


@pytest.mark.parametrize(
    "asked",
    [
        {"by": "day", "timezone": "Nowhere/Land"},
        {"by": "org", "since": "soon"},
        {"by": "org", "since": "2026-02-01", "until": "2026-01-01"},
        {"by": "a,b"},
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_read(asked: dict[str, str]) -> None:
    with pytest.raises(InvalidValue):
        query_of(**asked)


def test_a_date_is_of_the_zone_that_is_asked_for() -> None:
    query = query_of(by="day", since="2026-11-01", timezone="Asia/Kathmandu")

    assert query.since_ns == query_of(by="day", since="2026-10-31T18:15:00Z").since_ns
