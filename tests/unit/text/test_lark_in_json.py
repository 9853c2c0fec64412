"""Grammars of texts, rewritten for texts within strings of JSON: just the escaped form of what the grammar takes."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tests.unit.text.test_grammar_tagged import PATCH

from llmhost.text.grammar_source import fault_of, matcher_of
from llmhost.text.grammar_tagged import Unspeakable
from llmhost.text.lark_in_json import escaped_lark


def lets(lark: str, text: str) -> bool:
    matcher = matcher_of(LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    said = text.encode()
    return matcher.try_consume_tokens(list(said)) == len(said) and matcher.is_accepting()


def escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


PATTERNS = [
    r"[^\n]+",
    r"(.+)",
    r"(?s:.)*",
    r"(?s).*",
    r"(?s:.{2})x?",
    r"\w+ \d{2}",
    r"\s*[a-z]+\s?",
    r"[^a-z]*",
    r"\"[^\"\n]*\"",
    r"[\t\n]x?",
    r"\x22\u{5c}é*",
    r"(a|b)+(?i:X)",
    r"\W\S\D",
    r"a[^a]{1,3}",
]
TEXTS = st.text('a"\\\n\té B7x/\x00\x7f', max_size=6)


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=TEXTS)
@example(text='"\\é')
@settings(max_examples=40)
def test_what_a_pattern_takes_is_taken_escaped_and_nothing_else(pattern: str, text: str) -> None:
    lark = f"start: /{pattern}/"

    assert lets(escaped_lark(lark), escaped(text)) == lets(lark, text)


GRAMMARS = [
    'start: "a\\"b" | "\\n"+ "x"i',
    'start: "a".."c" " ".."#" ("\\t".."\\n")?',
    "%import common.WS_INLINE -> GAP\n%import common.INT\nstart: INT GAP INT // and no more\n",
    'start: pair ("\\n" pair)*\npair: "(" start? ")"\n%ignore /\\s+/',
    'start: /x+/i "\\""',
    'start: "a" "b"\nGAP: /[ \\n]+/  // between\n%ignore GAP\n',
    'start: "a" "b"\n%import common.WS\n%ignore WS',
    'start: line+\nline: "x\\"" REST\nREST: /[^\\n]*/ END\nEND: "\\n"\nA: "a" | "b"',
    'start: ("a\\n" | /[a-z]+/)+ -> all',
]


@pytest.mark.parametrize("lark", GRAMMARS)
@given(text=st.text('a"\\\n\tb 3x()X', max_size=7))
@example(text='"a\\"b"')
@example(text="(())\n()")
@example(text='a"b')
@example(text='X"')
@settings(max_examples=60)
def test_what_a_grammar_takes_is_taken_escaped_and_nothing_else(lark: str, text: str) -> None:
    assert lets(escaped_lark(lark), escaped(text)) == lets(lark, text)


def test_a_patch_is_taken() -> None:
    patch = '*** Begin Patch\n*** Add File: a "b".py\n+x = "\\n"\n*** End Patch'

    assert lets(escaped_lark(PATCH), escaped(patch))
    assert not lets(escaped_lark(PATCH), patch)
    assert not lets(escaped_lark(PATCH), escaped(patch.replace("Begin", "Start")))


@pytest.mark.parametrize(
    ("lark", "why"),
    [
        ('start: %json {"type": "object"}', "'%json'"),
        ("start: <|end|>", "'<|end|>'"),
        ("start: @other", "'@other'"),
        ("start: A\nA: /a/ & /b/", "'&'"),
        (r"start: /[a-z&&[^b]]/", "&&"),
        (r"start: /\p{Cc}/", "\\p"),
        (r"start: /(a\n|b)+/", "the pattern (a\\n|b)+"),
        (r"start: /[^\n]*x/", "where [^\\n] ends"),
        (r"start: /a\nb/i", "the flags i"),
        ('start[stop="x"]: /a/', '[stop="x"]'),
        ("start: /a/\n%ignore /x\\n/", "can't be ignored"),
        ('start: /a/\nGAP: "x" | "\\n"\n%ignore GAP', "%ignore GAP"),
        (r'start: "\q"', "no string as JSON has them"),
        ('start: "a\\"b"\n%ignore / +/', "kept from what is ignored"),
        ("start: /[^a]+/\n%ignore / +/", "kept from what is ignored"),
        ('start: A\nA: "x" "\\n"\n%ignore / +/', "A can't be kept"),
        ('%ignore / +/\nstart: A\nA: "\\n"+', "A can't be kept"),
        ("%import common.ESCAPED_STRING\nstart: ESCAPED_STRING\n%ignore / +/", "kept from what"),
    ],
)
def test_what_can_not_be_rewritten_is_refused_by_name(lark: str, why: str) -> None:
    with pytest.raises(Unspeakable) as refused:
        escaped_lark(lark)
    assert why in str(refused.value)


@given(pattern=st.text(r"ab.[]^\"()|*+?{}ns1,-$:<>", max_size=12), text=TEXTS)
@settings(max_examples=100)
def test_a_pattern_that_the_library_takes_is_rewritten_or_refused(pattern: str, text: str) -> None:
    lark = f"start: /{pattern}/"
    if fault_of(LLMatcher.grammar_from_lark(lark)):
        return
    try:
        made = escaped_lark(lark)
    except Unspeakable:
        return
    assert lets(made, escaped(text)) == lets(lark, text), made
