"""Answers that are held to a form: whatever is drawn among the allowed tokens, the answer has it."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmhost.core.errors import BadRequest, InvalidGrammar, InvalidSchema, InvalidTool
from llmhost.core.grammar import GrammarSpec
from llmhost.core.ports import Tokenizer
from llmhost.core.step import GrammarState
from llmhost.text.grammar import fill_masks
from llmhost.text.grammar_child import READER
from llmhost.text.words import WordTokenizer

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "name": "get_weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Rome", "Oslo"]}},
        },
    },
    {"name": "now", "strict": False, "parameters": {"type": "object", "properties": {}}},
]


def schema(content: Any, **rest: Any) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(content), **rest)


def choice(*choices: str) -> GrammarSpec:
    return GrammarSpec("choice", json.dumps(choices))


def allowed(state: GrammarState, vocab: int) -> list[int]:
    line = np.zeros((1, (vocab + 31) // 32), np.int32)
    fill_masks([state], line)
    return ids_of(line[0])


def ids_of(line: Any) -> list[int]:
    return [int(i) for i in np.flatnonzero(np.unpackbits(line.view(np.uint8), bitorder="little"))]


def draw(
    tokenizer: Tokenizer, spec: GrammarSpec, seed: int, most: int = 400
) -> tuple[str | None, list[int]]:
    """An answer drawn evenly among what is allowed, as the engine would; None when it came to no end."""
    tokenizer.compile_grammar(spec)
    state, chance, tokens = tokenizer.grammar(spec), np.random.default_rng(seed), list[int]()
    while not state.is_ended:
        token = int(chance.choice(allowed(state, tokenizer.vocab_size)))
        if token in tokenizer.eos_ids:
            break
        state.accept(token)
        tokens.append(token)
        if len(tokens) == most:
            return None, tokens
    watch = tokenizer.watch()
    return "".join(map(watch.push, tokens)) + watch.flush(), tokens


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "no end"])
def tokenizer(request: pytest.FixtureRequest, load: Callable[..., Tokenizer]) -> Tokenizer:
    match request.param:
        case "byte-level":
            return load("byte-level", generation_config={"eos_token_id": [0, 1]})
        case "sentencepiece":
            return load("sentencepiece", generation_config={"eos_token_id": 2})
        case _:
            return load("byte-level")


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_kept(tokenizer: Tokenizer, seed: int) -> None:
    text, _ = draw(tokenizer, schema(PERSON), seed)

    assert text is not None
    person = json.loads(text)
    assert list(person) == ["name", "age", "tags"]
    assert len(person["name"]) <= 8
    assert 0 <= person["age"] <= 150
    assert len(person["tags"]) <= 3
    assert text == json.dumps(person, separators=(",", ":"), ensure_ascii=False) or "\\" in text


@pytest.mark.parametrize("seed", range(3))
def test_calls_name_a_tool_and_keep_its_own_schema(tokenizer: Tokenizer, seed: int) -> None:
    spec = GrammarSpec("tool_calls", json.dumps({"tools": TOOLS[:1], "many": True}))

    text, _ = draw(tokenizer, spec, seed)

    assert text is not None
    for call in json.loads(text):
        assert call["name"] == "get_weather"
        assert call["arguments"] in ({"city": "Rome"}, {"city": "Oslo"})


def test_a_tool_that_takes_nothing_is_given_nothing(tokenizer: Tokenizer) -> None:
    nothing = {"type": "object", "properties": {}}
    wish = {"tools": [{"name": "now", "parameters": nothing, "strict": False}], "many": False}

    text, _ = draw(tokenizer, GrammarSpec("tool_calls", json.dumps(wish)), 0)

    assert text is not None
    assert json.loads(text) == {"name": "now", "arguments": {}}


@pytest.mark.parametrize(
    ("spec", "form"),
    [
        (GrammarSpec("regex", r"[a-c]{2}-\d{1,3}"), r"[a-c]{2}-\d{1,3}"),
        (GrammarSpec("regex", r" ?é/\\n"), r" ?é/\\n"),
        (GrammarSpec("lark", 'start: "a" b~1..3\nb: "c" | / d/'), r"a(c| d){1,3}"),
        (GrammarSpec("gbnf", 'root ::= "a" b\nb ::= [c-e] | " f"'), r"a([c-e]| f)"),
        (choice("yes", "yesterday", "no"), "yes|yesterday|no"),
        (choice(" a", "  a", ""), " a|  a|"),
    ],
)
def test_other_forms_are_kept(tokenizer: Tokenizer, spec: GrammarSpec, form: str) -> None:
    for seed in range(6):
        text, _ = draw(tokenizer, spec, seed)

        assert text is not None
        assert re.fullmatch(form, text)


@settings(deadline=None, max_examples=15)
@given(choices=st.lists(st.text(max_size=6), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_any_text_can_be_a_choice(tokenizer: Tokenizer, choices: list[str], seed: int) -> None:
    if not tokenizer.eos_ids and not any(choices):
        return  # nothing can end an answer that says nothing

    text, _ = draw(tokenizer, choice(*choices), seed)

    assert text in choices


TAG = {
    "trigger": "<f=",
    "begin": "<f=get>",
    "end": "</f>",
    "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}


@pytest.mark.parametrize(
    ("said", "is_taken"),
    [
        ("free < text", True),
        ('so <f=get>{"a":3}</f> and <f=get>{"a":4}</f>.', True),
        ('so <f=get>{"b":3}', False),
        ("so <f=set>", False),
    ],
)
def test_text_is_free_but_for_the_tags_in_it(
    load: Callable[..., Tokenizer], said: str, is_taken: bool
) -> None:
    tokenizer, spec = load("byte-level"), GrammarSpec("structural_tag", json.dumps([TAG]))
    tokenizer.compile_grammar(spec)
    state = tokenizer.grammar(spec)
    fits = []
    for token in tokenizer.encode(said, add_special_tokens=False):
        fits.append(token in allowed(state, tokenizer.vocab_size))
        if not fits[-1]:
            break
        state.accept(token)

    assert all(fits) is is_taken


def test_a_tag_whose_schema_can_not_be_enforced_is_named(load: Callable[..., Tokenizer]) -> None:
    tags = [TAG, {**TAG, "schema": {"not": {}}}]
    spec = GrammarSpec("structural_tag", json.dumps(tags), param="structural_tag")

    with pytest.raises(InvalidGrammar) as refused:
        load("byte-level").compile_grammar(spec)
    assert refused.value.param == "structural_tag[1]"


def test_an_answer_ends_by_itself_where_nothing_may_follow(tokenizer: Tokenizer) -> None:
    spec = choice("yes", "no")
    tokenizer.compile_grammar(spec)
    state = tokenizer.grammar(spec)

    assert not state.is_ended
    for token in tokenizer.encode("yes", add_special_tokens=False):
        assert not state.is_ended
        state.accept(token)
    assert state.is_ended


def test_the_end_is_allowed_where_the_form_is_complete(load: Callable[..., Tokenizer]) -> None:
    tokenizer = load("byte-level", generation_config={"eos_token_id": [0, 1]})
    spec = GrammarSpec("regex", "a+")
    tokenizer.compile_grammar(spec)
    state = tokenizer.grammar(spec)

    assert not {0, 1} & set(allowed(state, tokenizer.vocab_size))
    state.accept(tokenizer.encode("a")[0])
    assert {0, 1} < set(allowed(state, tokenizer.vocab_size))
    state.accept(1)
    assert state.is_ended


@pytest.mark.parametrize("words", [13, 12, 40])
def test_a_mask_is_as_wide_as_the_model_has_it(load: Callable[..., Tokenizer], words: int) -> None:
    """Models have more rows than their tokenizer has ids, or, in a mask of whole words, fewer."""
    tokenizer = load("byte-level", generation_config={"eos_token_id": [0, 1]})
    assert tokenizer.vocab_size == 413
    spec = GrammarSpec("regex", "[a-z]+")
    tokenizer.compile_grammar(spec)
    out = np.full((2, words), -1, np.int32)

    fill_masks([tokenizer.grammar(spec), tokenizer.grammar(spec)], out)

    known = [i for i in allowed(tokenizer.grammar(spec), 413) if i < words * 32]
    assert ids_of(out[0]) == ids_of(out[1]) == known


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_masks_after_guesses_are_those_of_the_places(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    vocab, spec = tokenizer.vocab_size, schema(PERSON)
    _, right = draw(tokenizer, spec, data.draw(st.integers(0, 9)))
    cut = data.draw(st.integers(0, len(right)))
    wrong = data.draw(st.lists(st.integers(0, vocab - 1), max_size=2))
    guesses = [*right[cut : cut + 5], *wrong]
    state, other = tokenizer.grammar(spec), tokenizer.grammar(schema(True))
    step = tokenizer.grammar(spec)
    for token in right[:cut]:
        state.accept(token)
        step.accept(token)
    out = np.zeros((len(guesses) + 2, (vocab + 31) // 32), np.int32)

    fill_masks([state, other], out, [guesses, []])

    assert ids_of(out[-1]) == allowed(other, vocab)
    valid = 0
    for place, token in enumerate([*guesses, None]):
        expected = allowed(step, vocab)
        assert ids_of(out[place]) == expected
        if token not in expected or token in tokenizer.eos_ids:
            assert not out[place + 2 : -1].any()
            break
        step.accept(token)
        valid += 1
    assert state.valid_prefix(guesses) >= valid
    assert allowed(state, vocab) == ids_of(out[0])


def closings(state: GrammarState, vocab: int, guesses: Sequence[int] = ()) -> dict[int, int]:
    out = np.zeros((len(guesses) + 1, (vocab + 31) // 32), np.int32)
    found = fill_masks([state], out, [guesses])
    assert all(closing.token in ids_of(out[closing.line]) for closing in found)
    assert all(not set(closing.ends) & set(ids_of(out[closing.line])) for closing in found)
    return {closing.line: closing.token for closing in found}


def test_a_wish_to_end_closes_what_is_open(load: Callable[..., Tokenizer]) -> None:
    tokenizer = load("byte-level", generation_config={"eos_token_id": [0, 1]})
    spec = schema({"type": "object"})
    tokenizer.compile_grammar(spec)
    said = tokenizer.encode('{"a":[1,"b"')
    spelt = [tokenizer.token_bytes(token) for token in said]
    state = tokenizer.grammar(spec)

    found = closings(state, tokenizer.vocab_size, said)

    nearest = {line: tokenizer.token_bytes(token) for line, token in found.items()}
    assert spelt == [b"{", b'"', b"a", b'"', b":", b"[", b"1", b",", b'"', b"b", b'"']
    assert nearest == {1: b"}", 2: b'"', 3: b'"', 6: b"]", 7: b"]", 9: b'"', 10: b'"', 11: b"]"}
    for token in tokenizer.encode('{"a":1'):
        state.accept(token)
    closing = closings(state, tokenizer.vocab_size)[0]
    assert tokenizer.token_bytes(closing) == b"}"
    state.accept(closing)
    assert closings(state, tokenizer.vocab_size) == {}


@pytest.mark.parametrize(
    ("asked", "text", "most"),
    [
        ({"type": "integer"}, "1" * 30, 20),
        ({"type": "number"}, "0." + "1" * 30, 21),
        ({"type": "number"}, "1e308", 4),
        ({"type": "number", "minimum": 1e-24, "maximum": 2e-24}, "0." + "0" * 23 + "1" * 9, 26),
        ({"type": "string", "maxLength": 40}, '"' + "1" * 30 + '"', 32),
    ],
)
def test_numbers_are_no_longer_than_they_need_be(
    load: Callable[..., Tokenizer], asked: Any, text: str, most: int
) -> None:
    tokenizer = load("byte-level", generation_config={"eos_token_id": [0]})
    spec = schema(asked)
    tokenizer.compile_grammar(spec)
    state, said = tokenizer.grammar(spec), tokenizer.encode(text)
    out = np.zeros((len(said) + 1, (tokenizer.vocab_size + 31) // 32), np.int32)
    fill_masks([state], out, [said])

    may = [token in ids_of(line) for token, line in zip(said, out, strict=False)]

    cut = said[: may.index(False)] if False in may else said
    assert len(tokenizer.decode(cut)) == most


THINK = "<think> so then</think>"


def thinker(load: Callable[..., Tokenizer], make: Callable[[str], Any], template: str) -> Tokenizer:
    made = make("byte-level")
    made.add_tokens(["</think>"])
    config = {"chat_template": template}
    return load(made, generation_config={"eos_token_id": [1]}, tokenizer_config=config)


def think_after(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[GrammarState, list[int]]:
    spec = choice("yes", "no")
    tokenizer.compile_grammar(spec)
    return tokenizer.grammar(spec, tokenizer.encode(prompt)), tokenizer.encode(answer)


def takes(state: GrammarState, tokens: Sequence[int]) -> bool:
    return state.valid_prefix(tokens) == len(tokens)


@pytest.mark.parametrize(
    ("prompt", "thoughts"),
    [
        (
            "<|begin|>hello<|end|><|begin|><think>\n",
            [" so then</think>", "<think> so then</think>"],
        ),
        ("<|begin|>hello<|end|><|begin|>", ["", "<think> so then</think>"]),
        ("<|begin|>what is <think><|end|><|begin|>", ["", "<think> so then</think>"]),
        ("<|begin|>hello<|end|><|begin|><think>\n\n</think>\n\n", [""]),
        ("<|begin|><think>a</think>b<|end|><|begin|>", ["", "<think> so then</think>"]),
    ],
)
def test_the_form_begins_after_the_thoughts(
    load: Callable[..., Tokenizer],
    make_tokenizer: Callable[[str], Any],
    prompt: str,
    thoughts: list[str],
) -> None:
    tokenizer = thinker(load, make_tokenizer, "{{ '<think>' }}")
    every = ["", " so then</think>", "<think> so then</think>"]

    for thought in every:
        state, tokens = think_after(tokenizer, prompt, thought + "yes")
        out = np.zeros((len(tokens) + 1, (tokenizer.vocab_size + 31) // 32), np.int32)
        fill_masks([state], out, [tokens])
        may = [token in ids_of(line) for token, line in zip(tokens, out, strict=False)]
        assert takes(state, tokens) == all(may)
        for place, token in enumerate(tokens if all(may) else ()):
            assert not state.is_ended
            assert allowed(state, tokenizer.vocab_size) == ids_of(out[place])
            assert 1 not in ids_of(out[place])
            state.accept(token)
        assert state.is_ended == (thought in thoughts)
        assert (ids_of(out[-1]) == [1]) == (thought in thoughts)
        assert not takes(state, tokenizer.encode(thought + "maybe")) or not thought


def test_a_model_whose_template_has_no_thoughts_does_not_begin_to_think(
    load: Callable[..., Tokenizer], make_tokenizer: Callable[[str], Any]
) -> None:
    tokenizer = thinker(load, make_tokenizer, "plain")

    state, tokens = think_after(tokenizer, "<|begin|>", THINK + "yes")
    assert state.valid_prefix(tokens) == 0
    state, tokens = think_after(tokenizer, "<|begin|><think>", "so</think>yes")
    assert takes(state, tokens)


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        (schema({"not": {"type": "string"}}), InvalidSchema, '"not"'),
        (schema({"type": "array", "uniqueItems": True}), InvalidSchema, '"uniqueItems"'),
        (schema({"oneOf": [{"type": "string"}, {"minLength": 5}]}), InvalidSchema, "use anyOf"),
        (schema({"type": "string", "format": "colour"}), InvalidSchema, "colour"),
        (schema({"type": "string", "pattern": "a(b"}), InvalidSchema, "unclosed group"),
        (schema({"$ref": "http://localhost/x"}), InvalidSchema, "http://localhost/x"),
        (schema([1]), InvalidSchema, "object or a boolean"),
        (GrammarSpec("json_schema", "{"), InvalidSchema, "not valid JSON"),
        (GrammarSpec("regex", "(?=a)b"), InvalidGrammar, "look-around"),
        (GrammarSpec("lark", "start: nothing"), InvalidGrammar, "unknown name"),
        (GrammarSpec("gbnf", "root ::= ("), InvalidGrammar, "GBNF"),
        (GrammarSpec("gbnf", "root ::= " + "(" * 2000), InvalidGrammar, "GBNF"),
        (GrammarSpec("choice", '["a", 1]'), InvalidGrammar, "list of strings"),
        (choice(), InvalidGrammar, "nothing to choose from"),
        (schema("\ud800"), InvalidSchema, ""),
        (GrammarSpec("regex", "\ud800"), InvalidGrammar, ""),
        (GrammarSpec("regex", "a" * 300_000), InvalidGrammar, "262144"),
        # bombs
        (schema({"type": "integer", "multipleOf": 9_999_991}), InvalidSchema, "processor time"),
        (GrammarSpec("json_schema", '{"items":' * 5000), InvalidSchema, "nested too deeply"),
        (GrammarSpec("regex", "(((a{1,1000}){1,1000}){1,1000}b){1,1000}"), None, ""),
        (GrammarSpec("regex", "(" * 3000 + "a" + ")*" * 3000), InvalidGrammar, ""),
    ],
)
def test_what_can_not_be_enforced_is_refused_by_name(
    load: Callable[..., Tokenizer], spec: GrammarSpec, error: type[BadRequest] | None, said: str
) -> None:
    tokenizer = load("byte-level", generation_config={"eos_token_id": [0]})
    if error is None:
        tokenizer.compile_grammar(spec)
        return

    with pytest.raises(error) as refused:
        tokenizer.compile_grammar(spec)

    assert said in refused.value.message


@pytest.mark.parametrize(
    "content",
    [
        {
            "$ref": "#/$defs/a",
            "$defs": {
                name: {
                    "type": "object",
                    "properties": {"p0": {"$ref": "#/$defs/a"}, "p1": {"$ref": "#/$defs/b"}},
                    "required": ["p0"],
                }
                for name in "ab"
            },
        },
        {"type": "string", "pattern": "^" + "a?" * 300 + "a" * 300 + "$"},
    ],
)
def test_a_form_that_can_be_read_and_not_followed_is_refused_at_once(
    load: Callable[..., Tokenizer], content: Any
) -> None:
    with pytest.raises(InvalidSchema, match="too complex"):
        load("byte-level").compile_grammar(schema(content))


def test_a_chain_of_references_does_not_take_the_server_down(
    load: Callable[..., Tokenizer],
) -> None:
    links = {f"l{i}": {"items": {"$ref": f"#/$defs/l{i + 1}"}} for i in range(3000)}
    spec = schema({"$ref": "#/$defs/l0", "$defs": {**links, "l3000": {"type": "string"}}})

    with pytest.raises(InvalidSchema, match="nested too deeply"):
        load("byte-level").compile_grammar(spec)

    load("byte-level").compile_grammar(
        schema(PERSON)
    )  # another child has taken the dead one's place


def test_a_schema_that_is_not_strict_is_kept_as_far_as_it_can_be(
    load: Callable[..., Tokenizer],
) -> None:
    loose = schema({"oneOf": [{"const": 7}, {"const": 8, "not": {"const": 9}}]}, is_strict=False)

    text, _ = draw(load("byte-level"), loose, 0)

    assert text in ("7", "8")


def test_a_schema_can_not_switch_on_what_it_was_not_given(load: Callable[..., Tokenizer]) -> None:
    own = {"lenient": True, "coerce_one_of": True, "whitespace_flexible": True}

    with pytest.raises(InvalidSchema):
        load("byte-level").compile_grammar(schema({"not": {}, "x-guidance": own}))


def test_the_tool_that_is_wrong_is_named(load: Callable[..., Tokenizer]) -> None:
    wrong = {"name": "b", "strict": True, "parameters": {"type": "object", "minProperties": "x"}}
    wish = json.dumps({"tools": [*TOOLS, wrong], "many": False})

    with pytest.raises(InvalidTool) as refused:
        load("byte-level").compile_grammar(GrammarSpec("tool_calls", wish, param="tools"))

    assert refused.value.param == "tools[2].function.parameters"


def test_a_refusal_is_remembered_but_names_the_field_of_its_own_request(
    load: Callable[..., Tokenizer],
) -> None:
    tokenizer = load("byte-level")

    for param in ("response_format", "structured_outputs"):
        with pytest.raises(InvalidSchema) as refused:
            tokenizer.compile_grammar(schema({"not": {}}, param=param))
        assert refused.value.param == param


def test_tokens_that_depend_on_their_neighbours_are_refused(load: Callable[..., Tokenizer]) -> None:
    with pytest.raises(BadRequest, match="neighbours"):
        load("word-piece").compile_grammar(choice("a"))


def test_words_can_be_held_to_what_they_can_say() -> None:
    words = WordTokenizer(4096)

    for seed in range(5):
        assert draw(words, choice("baba", "baba babe", "bobo"), seed)[0] in (
            "baba",
            "baba babe",
            "bobo",
        )
        text, _ = draw(words, GrammarSpec("regex", "(ba[a-z]+ ){2}[jx]o(ba|[0-9])"), seed)
        assert text is not None
        assert re.fullmatch("(ba[a-z]{2} ){2}joba", text)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (choice("baba", "hello"), "hello"),
        (GrammarSpec("regex", "[0-9]+"), "can spell"),
        (GrammarSpec("json_object", ""), "fake engine"),
        (schema(PERSON), "fake engine"),
    ],
)
def test_words_refuse_what_they_can_not_say(spec: GrammarSpec, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        WordTokenizer(4096).compile_grammar(spec)


@pytest.fixture(scope="module", autouse=True)
def _close_reader() -> Any:
    yield
    READER.close()
