"""A guard that hangs, breaks down or can't be loaded, on a real server: what it did not judge passes only by policy."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from server_process import Node

SETTINGS = """
[safety]
guard = "hangs"
guard_timeout_ms = 150
[models.echo]
engine = "fake"
[models.hangs]
engine = "fake"
guard = "classifier"
[models.hangs.options]
task = "classify"
labels = ["hate", "violence"]
prefill_delay_ms = 900
[models.breaks]
engine = "fake"
guard = "chat"
[models.breaks.options]
fail_after_tokens = 1
[models.missing]
engine = "torch"
source = "./there-is-no-such-folder"
load = "request"
guard = "classifier"
"""
GUARDS = ("hangs", "breaks", "missing")
ASK = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    node = Node(tmp_path_factory.mktemp("guards"), SETTINGS).start()
    yield node
    node.close()


def client_of(node: Node, org: str, policy: dict[str, Any] | None) -> openai.OpenAI:
    key = node.create_key(org)["key"]
    if policy is not None:
        made = node.admin("POST", f"/orgs/{org}/policies", {"policy": policy})
        assert made.status_code == 201, made.text
    return openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0)


def say(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.with_raw_response.create(
        model="echo",
        messages=ASK,  # type: ignore[arg-type]
        max_tokens=3,
        **more,
    )


def screenings(node: Node, org: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = node.admin("GET", "/audit", kind="screening", org=org).json()[
        "data"
    ]
    return rows


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("fails_open", [False, True])
def test_text_that_a_guard_could_not_judge_passes_only_where_the_policy_says_so(
    node: Node, guard: str, fails_open: bool
):
    org = f"{guard}-{'open' if fails_open else 'closed'}"
    use = {"model": guard, "directions": ["input"], "timeout_ms": 150, "fails_open": fails_open}
    if guard != "hangs":
        use["timeout_ms"] = 20_000
    with client_of(node, org, {"guard": use}) as client:
        if fails_open:
            assert say(client).parse().choices[0].finish_reason == "length"
        else:
            with pytest.raises(openai.APIStatusError) as refused:
                say(client)
            assert (refused.value.status_code, refused.value.code) == (503, "safety_unavailable")
            assert guard in refused.value.message

    [row] = screenings(node, org)
    assert row["action"] == ("allow" if fails_open else "block")
    assert row["detail"]["findings"][-1]["rule"] == f"guard:{guard}"
    assert [entry["amount_nano"] for entry in node.entries() if entry["org"] == org] == [0]


def test_an_answer_that_a_guard_could_not_judge_never_leaves(node: Node):
    use = {"model": "breaks", "directions": ["output"], "timeout_ms": 20_000}
    with client_of(node, "answers", {"guard": use}) as client:
        with pytest.raises(openai.APIStatusError) as refused:
            say(client)
        assert refused.value.code == "safety_unavailable"
        said = ""
        with pytest.raises(openai.APIError) as broken_off:
            for chunk in say(client, stream=True).parse():
                said += chunk.choices[0].delta.content or ""
        assert (broken_off.value.code, said) == ("safety_unavailable", "")


def test_the_nodes_guard_judges_who_has_no_policy_and_nobody_whose_policy_has_none(node: Node):
    with client_of(node, "plain", None) as client, pytest.raises(openai.APIStatusError) as refused:
        say(client)
    assert refused.value.code == "safety_unavailable"
    with client_of(node, "free", {"guard": None}) as client:
        assert say(client).status_code == 200
    assert node.http.get(f"{node.url}/health").status_code == httpx.codes.OK
