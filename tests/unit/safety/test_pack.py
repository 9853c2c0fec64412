"""The rules that come with the program: what each finds, and what it leaves alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.safety.pack_samples import AROUND, FOUND, OTHER

from llmhost.config.schema.safety import SafetySettings
from llmhost.core.errors import ConfigError
from llmhost.safety.defaults import NodePolicy
from llmhost.safety.pack.numbers import IBAN_CHARS, luhn
from llmhost.safety.pack.pack import CATEGORIES, RULES, Pack
from llmhost.safety.rules import PIECE_CHARS, Rules
from llmhost.safety.verdict import Direction

ALL = Rules(SafetySettings(), (), Pack(CATEGORIES, Direction.INPUT))


def finds(text: str) -> dict[str, str]:
    return {found.rule: text[found.start : found.end] for found in ALL.judge(text)}


def test_every_rule_has_a_sample():
    assert FOUND.keys() == RULES.keys()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("place", ["{}", "so {} is it", "({})", '"{}",', "line\n{}\nline"])
def test_a_rule_finds_its_sample_wherever_it_stands(rule, place):
    before, after = AROUND.get(rule, ("", ""))

    found = finds(place.format(before + FOUND[rule] + after))

    assert found[rule].startswith(FOUND[rule])
    assert set(found) <= {rule, "pii.email"}, "an address is in a link with a password, too"


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.startswith("injection")])
def test_a_rule_finds_its_sample_behind_an_escape_of_json(rule):
    before, after = AROUND.get(rule, ("", ""))

    assert rule in finds(rf'{{"text": "a line\n{before}{FOUND[rule]}{after}\nand another"}}')


def test_digits_that_are_escaped_are_found_at_their_place():
    text = r'{"card": "\u0034111 1111 1111 111\u0031"}'

    assert finds(text)["pii.card"] == r"\u0034111 1111 1111 111\u0031"


@pytest.mark.parametrize("what", OTHER)
def test_what_only_looks_like_it_is_not_found(what):
    assert finds(OTHER[what]) == {}


def test_a_card_is_found_among_other_numbers():
    assert finds("1234 4111 1111 1111 1111 99")["pii.card"] == "4111 1111 1111 1111"


def test_nothing_is_looked_for_that_nobody_asks_for():
    one = Rules(SafetySettings(), (), Pack(("pii.card",), Direction.INPUT))

    found = [f.rule for f in one.judge(" ".join(FOUND.values()))]

    assert found == ["pii.card"]
    assert not Pack((), Direction.INPUT)


def test_an_answer_may_speak_of_injections():
    assert not Pack(("injection",), Direction.OUTPUT)


@given(st.text(st.sampled_from("0123456789"), min_size=13, max_size=18))
def test_one_wrong_digit_is_never_a_card(digits):
    valid = next(digits + last for last in "0123456789" if luhn(digits + last))

    for place, digit in enumerate(valid):
        other = str((int(digit) + 1) % 10)
        assert not luhn(valid[:place] + other + valid[place + 1 :])


@given(st.sampled_from(sorted(IBAN_CHARS)), st.randoms(use_true_random=False))
def test_an_iban_of_any_country_is_found_by_its_remainder(country, random):
    account = "".join(random.choices("0123456789", k=IBAN_CHARS[country] - 4))
    letters = "".join(str(int(letter, 36)) for letter in account + country + "00")
    iban = f"{country}{98 - int(letters) % 97:02d}{account}"

    assert finds(f"pay {iban}, please")["pii.iban"] == iban


@pytest.mark.parametrize("rule", [rule for rule in RULES if not rule.startswith("injection")])
def test_a_sample_is_found_across_the_pieces_of_a_long_text(rule):
    before, after = AROUND.get(rule, ("", ""))
    sample = f" {before}{FOUND[rule]}{after} "
    for place in (PIECE_CHARS - len(sample) // 2, PIECE_CHARS - 130):
        text = ("word " * 2000)[:place] + sample + "word " * 2000

        assert rule in finds(text)


def test_the_rules_of_the_file_decide_with_a_rules_own_name_first():
    policy = NodePolicy(SafetySettings(block=("secret",), redact=("pii",), warn=("pii.email",)))
    rules = Rules(SafetySettings(), (), Pack(policy.looks_for(Direction.INPUT), Direction.INPUT))

    def decided(text: str) -> str:
        return policy.decide(rules.judge(text), Direction.INPUT).action.name

    assert decided("a@example.org") == "WARN"
    assert decided("a@example.org 4111 1111 1111 1111") == "REDACT"
    assert decided("4111 1111 1111 1111 " + FOUND["secret.github_token"]) == "BLOCK"
    assert decided("nothing") == "ALLOW"


def test_a_rule_that_there_is_not_fails_the_start_and_the_nearest_is_named():
    with pytest.raises(ConfigError, match=r"redact has 'pii.cards'.*'pii.card'"):
        NodePolicy(SafetySettings(redact=("pii.cards",)))
