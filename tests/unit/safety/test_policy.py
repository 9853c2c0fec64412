"""What a policy makes of what was found: pure, and the same for every order of the findings."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config.schema.safety import SafetySettings
from llmhost.core.errors import ConfigError, InvalidValue
from llmhost.safety.defaults import NodePolicy
from llmhost.safety.policy import OrgPolicy, PolicyBody, check_policy
from llmhost.safety.verdict import (
    Action,
    Direction,
    Finding,
    GuardUse,
    KeepPrompts,
    ReviewMode,
    Tier,
)

IN, OUT = Direction.INPUT, Direction.OUTPUT


def policy(**body: object) -> OrgPolicy:
    return OrgPolicy("acme", 3, msgspec.convert(body, PolicyBody), NodePolicy())


def found(category: str, score: float = 1.0, rule: str | None = None) -> Finding:
    return Finding(category, rule or f"{category}.x", Tier.RULES, score)


VIOLENCE = {"violence": {"warn": 0.3, "review": 0.6, "block": 0.9}}


@pytest.mark.parametrize(
    ("score", "action"),
    [
        (0.29, "ALLOW"),
        (0.3, "WARN"),
        (0.6, "REVIEW"),
        (0.89, "REVIEW"),
        (0.9, "BLOCK"),
        (1, "BLOCK"),
    ],
)
def test_a_score_takes_the_strictest_action_that_it_reaches(score: float, action: str):
    one = policy(input=VIOLENCE)

    decision = one.decide((found("violence", score),), IN)

    assert (decision.action, decision.policy) == (Action[action], "acme@3")
    assert decision.finding is not None


def test_a_rule_goes_before_its_category_and_that_before_the_rest():
    one = policy(input={"pii": "redact", "pii.email": "allow", "*": "warn"})

    for finding, action in (
        (found("pii", rule="pii.card"), Action.REDACT),
        (found("pii", rule="pii.email"), Action.ALLOW),
        (found("secret"), Action.WARN),
    ):
        assert one.decide((finding,), IN).action is action


def test_what_a_policy_does_not_mention_is_as_the_node_has_it():
    one = policy(input={"pii": "warn"})

    assert one.decide((found("secret"),), IN).action is Action.BLOCK
    assert one.decide((found("pii"),), OUT).action is Action.BLOCK
    assert one.decide((found("pii"),), IN).action is Action.WARN
    assert one.decide((), IN).action is Action.ALLOW


def test_only_what_is_acted_on_is_looked_for():
    one = policy(input={"pii": "redact", "secret": "allow", "*": "block", "jwt": {"warn": 0.2}})

    assert one.looks_for(IN) == ("pii", "jwt")
    assert one.looks_for(IN) is one.looks_for(IN)
    assert one.looks_for(OUT) == ()


def test_a_guard_judges_the_directions_that_it_is_for():
    one = policy(guard={"model": "g", "directions": ["output"], "fails_open": True})

    assert one.guard(IN) is None
    assert (one.guard(OUT).model, one.guard(OUT).fails_open) == ("g", True)
    assert policy(guard=None).guard(IN) is None


def test_the_rest_of_a_policy_is_as_it_was_given():
    one = policy(words=["a b"], review_mode="hold", audit_days=3)

    assert (one.words, one.review_mode) == (("a b",), ReviewMode.HOLD)
    assert policy().review_mode is ReviewMode.BLOCK


FINDINGS = st.lists(
    st.builds(
        found, st.sampled_from(["pii", "violence", "other"]), st.sampled_from([0.1, 0.4, 0.7, 1.0])
    ),
    min_size=1,
    max_size=5,
)


@given(FINDINGS, st.randoms())
def test_the_strictest_wins_whatever_the_order(findings: list[Finding], chance):
    one = policy(input={**VIOLENCE, "pii": "redact", "*": "allow"})
    alone = [one.decide((finding,), IN).action for finding in findings]
    shuffled = chance.sample(findings, len(findings))

    decision = one.decide(shuffled, IN)

    assert decision.action == max(alone)
    assert one.decide((decision.finding,), IN).action == max(alone)


@pytest.mark.parametrize(
    "body",
    [
        {"input": {"pii": "explode"}},
        {"input": {"pii": {"block": 1.5}}},
        {"inptu": {}},
        {"guard": {}},
        {"guard": {"model": "g", "timeout_ms": 0}},
        {"review_mode": "sometimes"},
        {"audit_days": 0},
        {"keep_prompts": True},
    ],
)
def test_what_is_no_policy_is_no_policy(body: dict):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(body, PolicyBody)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"words": ["ok", "  "]}, "policy.words[1]"),
        ({"words": ["x" * 201]}, "policy.words[0]"),
        ({"output": {"pii": {}}}, "policy.output.pii"),
        ({"input": {"secrets": "block"}}, "policy.input.secrets"),
        ({"input": {"": "block"}}, "policy.input"),
        ({"input": {f"c{n}": "block" for n in range(501)}}, "policy.input"),
    ],
)
def test_what_a_policy_can_not_say_is_refused_by_name(body: dict, param: str):
    with pytest.raises(InvalidValue) as refused:
        check_policy(msgspec.convert(body, PolicyBody))

    assert refused.value.param == param


def node(**settings: object) -> NodePolicy:
    return NodePolicy(msgspec.convert(settings, SafetySettings))


def test_the_nodes_guard_judges_for_all_whose_policy_says_nothing_else():
    whole = node(guard="g", guard_directions=["input"], guard_timeout_ms=70, warn=["violence"])
    use = GuardUse("g", 70)
    theirs = {"guard": {"model": "other"}}

    assert (whole.guard(IN), whole.guard(OUT)) == (use, None)
    assert OrgPolicy("acme", 1, PolicyBody(), whole).guard(IN) == use
    assert OrgPolicy("acme", 1, msgspec.convert(theirs, PolicyBody), whole).guard(OUT) is not None
    assert OrgPolicy("acme", 1, PolicyBody(guard=None), whole).guard(IN) is None
    assert whole.decide((found("violence"),), IN).action is Action.WARN
    assert whole.decide((found("hate"),), IN).action is Action.BLOCK


def test_lists_of_the_node_take_a_guards_categories_where_there_is_one():
    with pytest.raises(ConfigError, match="no rule and no category"):
        node(warn=["violence"])
    with pytest.raises(ConfigError, match=r"pii\.card"):
        node(guard="g", warn=["pii.cart"])


def test_windows_and_kept_prompts_are_the_policys_or_the_nodes():
    whole = node(keep_prompts="found", prompt_days=9)

    assert OrgPolicy("acme", 1, PolicyBody(), whole).keep_prompts == KeepPrompts("found", 9)
    own = OrgPolicy("acme", 1, PolicyBody(keep_prompts="never", window_chars=32), whole)
    assert (own.keep_prompts, own.window_chars) == (KeepPrompts("never", 9), 32)
    assert OrgPolicy("acme", 1, PolicyBody(), whole).window_chars is None
