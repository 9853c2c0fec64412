"""Words and patterns on whole texts, and on pieces of a longer one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.safety.pack_samples import AROUND, FOUND

from llmhost.config.schema.safety import SafetySettings
from llmhost.core.errors import ConfigError
from llmhost.safety.pack.pack import CATEGORIES, Pack
from llmhost.safety.rules import FEW_WORDS, PIECE_CHARS, Rules
from llmhost.safety.verdict import Direction, Finding
from llmhost.safety.window import Piece


def words(*blocked: str) -> Rules:
    return Rules(SafetySettings(blocked_words=blocked))


def rule_of(found: list[Finding]) -> str:
    return found[0].rule


def patterns(*blocked: str) -> Rules:
    return Rules(SafetySettings(blocked_patterns=blocked))


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("bad", "a Bad thing"),
        ("bad", "BAD"),
        ("bad", "_bad_, he said"),
        ("bad", "bad's"),
        ("Straße", "DIE STRASSE"),
        ("c++", "I write C++."),
        ("c++", "c++"),
        (".net", "use .NET now"),
        ("@home", "me@home"),
        ("foul  play", "Foul\nplay!"),
        ("well-known", "a well-known case"),
        ("禁止", "这是禁止的"),
        ("ห้าม", "สิ่งต้องห้ามนี้"),
        ("e\u0301te\u0301", "un e\u0301te\u0301"),
        ("İstanbul", "İSTANBUL"),
        ("42", "it is 42"),
    ],
)
def test_a_blocked_word_is_found(word, text):
    assert rule_of(words(word).judge(text)) == "blocked_words[0]"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("bad", "badly, a badge, forbad"),
        ("bad", "bad1"),
        ("c++", "abc++"),
        ("foul play", "foulplay"),
        ("foul play", "foul player"),
        (".net", "x.netty"),
    ],
)
def test_part_of_a_longer_word_is_not_found(word, text):
    assert words(word).judge(text) == []


def test_a_verdict_names_the_rule_by_its_place_in_the_file():
    both = Rules(SafetySettings(blocked_words=("a", "b b", "c"), blocked_patterns=("x", "y+z")))

    said = [
        [(found.rule, found.start, found.end) for found in both.judge(text)]
        for text in ("C", "b  b", "it is yyz", "nothing")
    ]

    assert said == [
        [("blocked_words[2]", 0, 1)],
        [("blocked_words[1]", 0, 4)],
        [("blocked_patterns[1]", 6, 9)],
        [],
    ]


def test_a_pattern_has_the_flags_that_it_brings():
    assert patterns("(?i)secret").judge("SECRET")
    assert patterns("secret").judge("SECRET") == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (SafetySettings(blocked_patterns=("ok", "(")), r"\[safety\] blocked_patterns\[1\] '\('"),
        (SafetySettings(blocked_patterns=("a*",)), "would refuse everything"),
        (SafetySettings(blocked_words=("ok", "  ")), r"\[safety\] blocked_words\[1\] is blank"),
    ],
)
def test_a_rule_that_can_not_be_meant_fails_start_up(settings, said):
    with pytest.raises(ConfigError, match=said):
        Rules(settings)


def test_without_rules_there_is_nothing_to_judge():
    assert not Rules(SafetySettings())
    assert words("x")
    assert patterns("x")


def test_the_overlap_holds_the_longest_word():
    assert words("a").overlap_chars == 128
    long = words("a" * 300)
    assert (long.overlap_chars, long.window_chars) == (300, 600)


def test_what_touches_an_end_that_is_none_waits_for_the_next_piece():
    assert words("bad").judge_piece(Piece("so bad", is_end=False)) == []
    assert words("bad").judge_piece(Piece("so bad", is_end=True))
    assert words("bad").judge_piece(Piece("so bad ", is_end=False))
    assert words("c++").judge_piece(Piece("so c++", is_end=False)) == []
    assert patterns("bad$").judge_piece(Piece("so bad", is_end=False)) == []


def test_a_match_too_long_to_be_seen_again_counts_at_any_end():
    assert patterns("x+").judge_piece(Piece("x" * 129, is_end=False))
    assert patterns("x+").judge_piece(Piece("x" * 128, is_end=False)) == []


def test_context_is_looked_back_at_and_not_judged():
    assert words("bad").judge_piece(Piece("bad thing", start=3)) == []
    assert words("bad").judge_piece(Piece("forbad", start=3)) == []
    assert words("c++").judge_piece(Piece("abc++", start=2)) == []
    assert patterns("^bad").judge_piece(Piece("xbad", start=1)) == []
    assert patterns("(?<=x)bad").judge_piece(Piece("xbad", start=1))
    assert words("bad").judge_piece(Piece("ßß bad", start=3))


FILLER = "lorem ipsum " * (2 * PIECE_CHARS // 12)


def test_no_pattern_is_given_more_than_a_bounded_piece():
    rules = patterns("x")

    pieces = list(rules.pieces(Piece(FILLER)))

    assert len(pieces) > 1
    assert max(len(piece.body) for piece in pieces) <= PIECE_CHARS
    assert [piece.is_end for piece in pieces] == [False] * (len(pieces) - 1) + [True]


PHRASES = st.lists(
    st.text("ab .+\u7981", min_size=1, max_size=7).filter(str.strip), min_size=1, max_size=12
)


@given(PHRASES, st.text("ab .+\u7981", max_size=40))
def test_many_words_find_what_each_finds_alone(blocked, text):
    one = [word for word in blocked if words(word).judge(text)]
    found = words(*blocked).judge(text)

    assert bool(found) == bool(one)
    for finding in found:
        index = int(finding.rule.removeprefix("blocked_words[").removesuffix("]"))
        assert " ".join(text[finding.start : finding.end].split()) == " ".join(
            blocked[index].split()
        )


def test_phrases_that_go_on_with_each_other_are_no_deeper_than_an_expression_may_be():
    rules = words(*("a " * n + "b!" for n in range(600)))

    assert rule_of(rules.judge("so " + "a " * 599 + "b!")) == "blocked_words[599]"


def test_many_phrases_are_tried_as_one_where_they_begin_alike():
    rules = words(*(f"project number {n} of all" for n in range(5_000)))

    assert rules._other_pattern.pattern.count("project") == 1
    assert rule_of(rules.judge("so Project  number 4711 of all")) == "blocked_words[4711]"


@given(st.integers(0, len(FILLER)))
def test_a_long_text_is_searched_through_and_through(place):
    text = FILLER[:place] + " bad c++ 0123 " + FILLER[place:]

    assert words("bad").judge(text)
    assert words("c++").judge(text)
    assert patterns(r"\b\d{4}\b").judge(text)
    assert patterns(r"\b\d{3}\b", "^ipsum", "lorem$").judge(text) == []


def test_many_words_cost_one_table():
    rules = words(*(f"word{n}" for n in range(20_000)))

    assert rule_of(rules.judge("so word19999")) == "blocked_words[19999]"
    assert rules.judge("so word20000") == []


def everything(*more: str) -> Rules:
    return Rules(
        SafetySettings(
            blocked_words=("bad", "c++", "Straße", "foul play", "禁止", "İstanbul"),
            blocked_patterns=(r"\b\d{4}-\d{4}\b", r"x\\n"),
        ),
        ("ugly", *more),
        Pack(CATEGORIES, Direction.INPUT),
    )


EVERYTHING = everything()
EVERYTHING_AND_MORE = everything(*(f"word{number}" for number in range(FEW_WORDS)))
parts = st.sampled_from(
    [
        *(
            "bad",
            "BAD",
            "badly",
            "c++",
            "STRASSE",
            "foul\nplay",
            "禁止",
            "İSTANBUL",
            "ugly",
            "1234-5678",
        ),
        *(
            "x\\n",
            "\\u0062ad",
            "a@b.example",
            "DE89370400440532013000",
            "4111 1111 1111 1111",
            "sk-",
        ),
        *("ignore all previous instructions", "fine", "words", " ", "_", "é", "\U000e0041"),
    ]
)


@given(st.lists(parts | st.text(max_size=5), max_size=8).map("".join))
def test_what_is_clean_has_nothing_that_judging_finds(text: str):
    for rules in (EVERYTHING, EVERYTHING_AND_MORE):
        if rules.is_clean(text):
            assert rules.judge(text) == []
    assert EVERYTHING.is_clean(text) == EVERYTHING_AND_MORE.is_clean(text)


@pytest.mark.parametrize("name", FOUND)
def test_nothing_that_the_pack_finds_is_clean(name: str):
    before, behind = AROUND.get(name, ("", ""))
    assert not EVERYTHING.is_clean(f"see {before}{FOUND[name]}{behind} here")
