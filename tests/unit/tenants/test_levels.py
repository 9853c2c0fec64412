"""Which limits hold for a request."""

import pytest

from llmhost.config.schema.limits import LimitSettings, ModelLimitSettings
from llmhost.config.schema.models import ModelSpec
from llmhost.core.caller import Caller, Limits
from llmhost.tenants.lengths import KEPT_ANSWERS, AnswerLengths
from llmhost.tenants.levels import Levels

ADA = Caller(key_id="ada", org="acme", team="search")


def dimensions(levels: Levels, caller: Caller, run: str | None = None) -> list[str]:
    return [level.dimension for level in levels.of(caller, "big", run)]


def test_without_any_limit_there_is_no_level() -> None:
    assert Levels(LimitSettings(), {"big": ModelSpec()}).of(ADA, "big", "r") == []


def test_each_level_with_a_limit_is_one() -> None:
    few = Limits(requests_per_minute=1)
    limited = Caller(
        key_id="k", org="acme", team="search", limits=few, team_limits=few, org_limits=few
    )
    models = {"big": ModelSpec(limits=ModelLimitSettings(max_concurrency=2)), "other": ModelSpec()}
    levels = Levels(LimitSettings(run_requests_per_minute=5), models)

    assert dimensions(levels, limited, "r") == ["run", "key", "team", "org", "model"]
    assert dimensions(levels, limited) == ["key", "team", "org", "model"]
    assert dimensions(levels, ADA) == ["model"]
    assert levels.of(ADA, "other") == []


def test_a_key_has_the_defaults_for_what_it_does_not_say() -> None:
    settings = LimitSettings(requests_per_minute=30, max_concurrency=4)
    own = Caller(key_id="k", org="acme", limits=Limits(max_concurrency=9))
    levels = Levels(settings, {})

    [plain], [mixed] = levels.of(ADA, "big"), levels.of(own, "big")

    assert plain.limits == Limits(requests_per_minute=30, max_concurrency=4)
    assert mixed.limits == Limits(requests_per_minute=30, max_concurrency=9)


@pytest.mark.parametrize(
    ("default_rate", "default_burst", "rate", "expected"),
    [
        (30, None, None, 30),
        (30, 5, None, 5),
        (30, 45, None, 45),
        (30, 5, 100, 5),
        (30, 45, 10, 10),
        (None, None, 12, 12),
    ],
)
def test_how_many_requests_may_come_at_once(
    default_rate: int | None, default_burst: int | None, rate: int | None, expected: int
) -> None:
    settings = LimitSettings(requests_per_minute=default_rate, burst_requests=default_burst)
    caller = Caller(key_id="k", org="acme", limits=Limits(requests_per_minute=rate))

    [level] = Levels(settings, {}).of(caller, "big")

    assert [rate.burst for rate in level.rates] == [expected]


def test_what_looks_alike_on_different_levels_is_not_the_same() -> None:
    few = Limits(requests_per_minute=1)
    one = Caller(
        key_id="acme", org="acme", team="acme", limits=few, team_limits=few, org_limits=few
    )
    levels = Levels(LimitSettings(run_requests_per_minute=1), {})

    everybody = [*levels.of(one, "acme", "acme"), *levels.of(ADA, "acme", "acme")]

    assert len({level.who for level in everybody}) == len(everybody)


def test_a_guess_is_what_nine_of_ten_answers_did_not_exceed() -> None:
    lengths = AnswerLengths()
    for tokens in range(1, 11):
        assert lengths.p90("k") is None
        lengths.note("k", tokens)
    assert lengths.p90("k") == 9
    assert lengths.p90("other") is None


def test_old_answers_are_forgotten() -> None:
    lengths = AnswerLengths()
    for _ in range(KEPT_ANSWERS):
        lengths.note("k", 1000)
    for _ in range(KEPT_ANSWERS):
        lengths.note("k", 7)
    assert lengths.p90("k") == 7
