"""All of the hostile input to keys, tenants, budgets and bills, thousands of bad keys, and keys that end under load."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from crowd import Told, listen, rss_bytes
from hostile import KINDS
from hostile_ground import SETTINGS, Ground
from server_process import Node, eventually, http_bytes

pytestmark = pytest.mark.bars

LEAST_ATTACKS = 200
Bar = Callable[[str], None]
NewNode = Callable[..., Node]


def test_nothing_that_is_sent_breaks_or_opens_anything(new_node: NewNode, bar: Bar) -> None:
    ground = Ground(new_node(SETTINGS).start()).prepare()
    statuses: Counter[int | None] = Counter()

    for make in KINDS.values():
        foreign = ground.foreign_rows()
        for attack in make(ground):
            statuses[ground.fire(attack).status] += 1
        assert ground.foreign_rows() == foreign
        ground.check()

    entries = ground.node.verified()["entries"]
    ground.node.kill()
    ground.node.start()
    ground.check()
    bar(
        f"{ground.sent} hostile requests of {len(KINDS)} kinds: no 500, nothing of another's, no secret in"
        f" answers, log, metrics or files; answers {dict(sorted(statuses.items(), key=str))}, {entries} entries whole"
    )
    assert ground.sent > LEAST_ATTACKS


# ------------------------------------------------------------ strangers

STRANGERS = 1000
A_MINUTE = 30


def test_a_thousand_bad_keys_are_looked_at_thirty_times(new_node: NewNode, bar: Bar) -> None:
    node = new_node(SETTINGS.replace("failed_auth_per_minute = 0", "")).start()
    good = node.create_key("acme")["key"]
    body = {"model": "echo", "prompt": "x", "max_tokens": 1}

    def ask(bearer: str) -> Any:
        return node.post("/v1/completions", body, headers={"authorization": f"Bearer {bearer}"})

    assert ask(good).status_code == 200
    before_bytes = rss_bytes(node.pid)
    began = time.monotonic()
    answers = [ask(f"{good[:-1]}{'~' if i % 2 else chr(65 + i % 26)}{i}") for i in range(STRANGERS)]
    minutes = (time.monotonic() - began) / 60
    statuses = Counter(answer.status_code for answer in answers)

    assert set(statuses) == {401, 429}
    assert A_MINUTE <= statuses[401] <= A_MINUTE * (1 + minutes) + 1
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    assert ask(good).status_code == 200  # who was at work already is not shut out
    assert node.admin("GET", "/keys").status_code == 200
    assert node.get("/health").status_code == 200
    grown = rss_bytes(node.pid) - before_bytes
    bar(
        f"{STRANGERS} bad keys in {minutes * 60:.1f} s: {dict(statuses)}, {grown / 2**20:.1f} MiB more"
    )
    assert good not in node.log()
    assert "~" not in node.log()
    assert grown < 30 * 2**20


# ------------------------------------------------------------ keys that end under load

ASKERS = 8
RUNNING = 8
RUNS_TOKENS = 150
LATER_S = 1.0


@dataclass
class Load:
    """Requests of one key, again and again, and when each was sent."""

    port: int
    key: str
    asked: list[tuple[float, Told]] = field(default_factory=list)
    is_over: bool = False

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    async def ask(self) -> None:
        body = {"model": "echo", "prompt": "x", "max_tokens": 2}
        while not self.is_over:
            sent = time.monotonic()
            told = await listen(self.port, "/v1/completions", body, self.headers)
            self.asked.append((sent, told))

    async def run_long(self) -> Told:
        body = {"model": "slow", "prompt": "x", "max_tokens": RUNS_TOKENS}
        return await listen(self.port, "/v1/completions", body, self.headers)


def revoke(node: Node, key_id: str) -> None:
    node.admin("DELETE", f"/keys/{key_id}").raise_for_status()


def disable(node: Node, key_id: str) -> None:
    node.admin("PATCH", f"/keys/{key_id}", {"disabled": True}).raise_for_status()


def rotate(node: Node, key_id: str) -> None:
    node.admin("POST", f"/keys/{key_id}/rotate", {"overlap_s": 0}).raise_for_status()


def archive(node: Node, _: str) -> None:
    node.admin("DELETE", "/teams/acme/red").raise_for_status()


def disable_org(node: Node, _: str) -> None:
    node.admin("PATCH", "/orgs/acme", {"disabled": True}).raise_for_status()


def expire(node: Node, key_id: str) -> None:
    """At the next second but one; the answer's time does not matter here, so that is waited for."""
    soon = int(time.time()) + 2
    node.admin("PATCH", f"/keys/{key_id}", {"expires_at": soon}).raise_for_status()
    while time.time() < soon:
        time.sleep(0.05)  # the second that is meant


def demote(node: Node, key_id: str) -> None:
    node.admin("PATCH", f"/keys/{key_id}", {"role": "billing"}).raise_for_status()


def forbid(node: Node, key_id: str) -> None:
    node.admin("PATCH", f"/keys/{key_id}", {"models": ["slow"]}).raise_for_status()


WAYS: dict[str, tuple[Callable[[Node, str], None], int]] = {
    "revoked": (revoke, 401),
    "disabled": (disable, 401),
    "rotated": (rotate, 401),
    "team archived": (archive, 401),
    "org disabled": (disable_org, 401),
    "expired": (expire, 401),
    "made a biller": (demote, 403),
    "model taken away": (forbid, 403),
}


async def _under_load(node: Node, load: Load, end: Callable[[], None]) -> tuple[float, list[Told]]:
    """When the key had ended, and what became of the streams that were running."""
    running = [asyncio.create_task(load.run_long()) for _ in range(RUNNING)]
    askers = [asyncio.create_task(load.ask()) for _ in range(ASKERS)]
    is_busy = lambda: node.loaded("slow")["running"] == RUNNING and len(load.asked) > 20  # noqa: E731
    await asyncio.to_thread(eventually, is_busy, "there is no load")
    await asyncio.to_thread(end)
    ended = time.monotonic()
    await asyncio.sleep(LATER_S + 0.2)  # in which no request may be let in
    load.is_over = True
    await asyncio.gather(*askers)
    return ended, list(await asyncio.gather(*running))


@pytest.mark.parametrize("way", WAYS)
def test_a_key_that_ends_under_load_is_let_in_no_more_and_its_streams_end_well(
    new_node: NewNode, bar: Bar, way: str
) -> None:
    node = new_node(SETTINGS).start()
    made = node.create_key("acme", team="red")
    end, refused = WAYS[way]
    load = Load(node.port, made["key"])

    ended, running = asyncio.run(_under_load(node, load, lambda: end(node, made["id"])))

    before = [told for sent, told in load.asked if sent < ended]
    after = [(sent - ended, told) for sent, told in load.asked if sent >= ended]
    let_in = [late for late, told in after if told.status != refused]
    assert {told.status for told in before} <= {200, refused}
    assert len(after) > 20
    assert not let_in, f"let in {max(let_in):.3f} s after the end"
    assert all(told.is_done for told in running), [told.status for told in running]
    entries = {entry["request_id"]: entry for entry in node.entries()}
    answered = [told for _, told in load.asked if told.status == 200]
    assert all(entries[told.request_id]["outcome"] == "answered" for told in answered + running)
    assert all(entries[told.request_id]["tokens"]["output"] == RUNS_TOKENS for told in running)
    paid = {i: entry for i, entry in entries.items() if entry["amount_nano"]}
    assert set(paid) == {told.request_id for told in answered + running}
    assert node.verified()["ok"]
    assert "Traceback" not in node.log()
    assert made["key"] not in node.log()
    bar(
        f"a key {way} under load: {len(before)} asked before, {len(after)} after, 0 let in;"
        f" {len(running)} running streams ended well"
    )


# ------------------------------------------------------------ limits that change under load


async def _while_limits_change(node: Node, load: Load, key_id: str) -> None:
    askers = [asyncio.create_task(load.ask()) for _ in range(ASKERS)]
    changes: list[dict[str, Any]] = [
        {"max_concurrency": 1, "output_tokens_per_minute": 10**6},
        {"max_concurrency": None, "input_tokens_per_minute": 10**9},
        {"max_concurrency": 3, "output_tokens_per_minute": None, "requests_per_minute": 10**9},
        {"max_concurrency": 100, "input_tokens_per_minute": None, "requests_per_minute": None},
    ]
    for turn in range(60):
        change = changes[turn % len(changes)]
        for path in (f"/keys/{key_id}", "/teams/acme/red", "/orgs/acme"):
            answer = await asyncio.to_thread(node.admin, "PATCH", path, change)
            assert answer.status_code == 200, answer.text
    load.is_over = True
    await asyncio.gather(*askers)


def test_limits_that_change_while_requests_hold_some_leave_nothing_behind(
    new_node: NewNode, bar: Bar
) -> None:
    node = new_node(SETTINGS).start()
    made = node.create_key("acme", team="red")
    load = Load(node.port, made["key"])

    asyncio.run(_while_limits_change(node, load, made["id"]))

    statuses = Counter(told.status for _, told in load.asked)
    assert set(statuses) <= {200, 429}
    assert statuses[200] > 100
    for path in (f"/keys/{made['id']}", "/teams/acme/red", "/orgs/acme"):
        node.admin("PATCH", path, {"max_concurrency": 1}).raise_for_status()
    body = {"model": "echo", "prompt": "x", "max_tokens": 1}
    for _ in range(5):  # a place that was never given back would be missed now
        answer = node.post("/v1/completions", body, headers=load.headers)
        assert answer.status_code == 200, answer.text
    assert node.metric("llmhost_limit_waiting") == 0
    assert node.verified()["ok"]
    assert "Traceback" not in node.log()
    bar(f"180 changes of limits under load: {dict(statuses)}, no place left behind")


async def _while_books_change(node: Node, load: Load, budget_id: str) -> None:
    askers = [asyncio.create_task(load.ask()) for _ in range(ASKERS)]

    async def act(method: str, path: str, body: Any = None) -> Any:
        answer = await asyncio.to_thread(node.admin, method, path, body)
        assert answer.status_code < 300, (path, answer.text)
        return answer.json()

    for turn in range(20):
        rates = {"input": f"1.{turn:02d}", "output": "2.00", "cached_input": "0.50"}
        rerating = {"model": "echo", "org": "acme", "since": "2020-01-01", **rates, "apply": True}
        await act("POST", "/ledger/rerate", rerating)
        await act("POST", "/ledger/rebuild")
        assert (await act("GET", "/ledger/check"))["ok"]
        await act("PATCH", f"/budgets/{budget_id}", {"usd": f"{100 + turn}"})
        await act("POST", "/prices", {"model": "echo", **rates, "confirm": True})
        assert (await act("GET", "/ledger/verify"))["ok"]
    load.is_over = True
    await asyncio.gather(*askers)


def test_books_that_are_rated_again_and_rebuilt_under_load_add_up(
    new_node: NewNode, bar: Bar
) -> None:
    node = new_node(SETTINGS).start()
    made = node.create_key("acme", team="red")
    wish = {"org": "acme", "period": "total", "usd": "100"}
    budget_id = node.admin("POST", "/budgets", wish).json()["id"]
    load = Load(node.port, made["key"])

    asyncio.run(_while_books_change(node, load, budget_id))

    assert {told.status for _, told in load.asked} == {200}

    def facts() -> tuple[Any, ...]:
        budget = node.admin("GET", f"/budgets/{budget_id}").json()
        (usage,) = node.admin("GET", "/usage", by="org").json()["data"]
        paid_nano = sum(e["amount_nano"] for e in node.entries() if e["org"] == "acme")
        checks = [node.admin("GET", f"/ledger/{what}").json()["ok"] for what in ("verify", "check")]
        return checks, budget["held_usd"], budget["spent_usd"], usage["amount_nano"], paid_nano

    before = facts()
    checks, held, spent, used_nano, paid_nano = before
    assert (checks, held) == ([True, True], "0.00")
    assert used_nano == paid_nano == round(float(spent) * 10**9)
    node.kill()
    node.start()
    assert facts() == before
    assert "Traceback" not in node.log()
    bar(
        f"20 times rated again, rebuilt, checked and priced anew under {len(load.asked)} requests: ledger, usage and"
        " budget say the same, and after a kill again"
    )


def test_requests_cut_off_at_every_byte_of_their_head_and_body_hold_nothing(
    new_node: NewNode, bar: Bar
) -> None:
    node = new_node(SETTINGS).start()
    made = node.create_key("acme", max_concurrency=1)
    headers = {"authorization": f"Bearer {made['key']}"}
    body = {"model": "slow", "prompt": "x", "max_tokens": 1}
    request = http_bytes("/v1/completions", body, headers=headers)

    for length in range(0, len(request), 3):
        with node.raw() as connection:
            connection.sendall(request[:length])

    assert node.post("/v1/completions", body, headers=headers).status_code == 200
    assert node.metric("llmhost_limit_waiting") == 0
    assert "Traceback" not in node.log()
    bar(f"{len(request) // 3} requests cut off at as many places: nothing held")
