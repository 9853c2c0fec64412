"""Each family's way of writing calls, whole and cut at every place."""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmhost.config.schema.models import ToolFormat
from llmhost.text.calls.families import BY_NAME, FAMILIES, family_of, reader_of
from llmhost.text.calls.pieces import Piece
from llmhost.text.calls.response_template import RESPONSE_TEMPLATE

SCHEMAS: dict[str, Any] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "units": {"type": ["string", "null"]},
            "where": {"type": "object"},
            "is_exact": {"type": "boolean"},
        },
    },
    "now": {"type": "object", "properties": {}},
}
PARIS = {"city": "Paris", "days": 3}


@dataclass
class Found:
    content: str = ""
    thoughts: str = ""
    calls: list[list[str]] = field(default_factory=list)

    def add(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.is_thought:
                self.thoughts += piece.text
            elif piece.call is None:
                self.content += piece.text
            elif piece.name is not None:
                assert piece.call == len(self.calls)
                self.calls.append([piece.name, piece.text])
            else:
                self.calls[piece.call][1] += piece.text

    @property
    def read(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def read(
    name: str | None, *parts: str, thoughts: bool = False, begun: bool = False
) -> tuple[Found, bool]:
    family = None if name is None else BY_NAME[name]
    marks = [("<think>", "</think>")] if thoughts else []
    reader, found = reader_of(family, SCHEMAS, thoughts=marks, begun=begun), Found()
    for part in parts:
        found.add(reader.push(part))
    found.add(reader.finish())
    return found, reader.is_complete


DEEPSEEK_V31 = (
    "Sure.<|tool▁calls▁begin|><|tool▁call▁begin|>get_weather<|tool▁sep|>"
    '{"city": "Paris", "days": 3}<|tool▁call▁end|>'
    "<|tool▁call▁begin|>now<|tool▁sep|>{}<|tool▁call▁end|><|tool▁calls▁end|>"
).replace("|", "\uff5c")
DEEPSEEK_V3 = (
    "<|tool▁calls▁begin|><|tool▁call▁begin|>function<|tool▁sep|>get_weather\n```json\n"
    '{"city": "Paris", "days": 3}\n```<|tool▁call▁end|>\n'
    "<|tool▁call▁begin|>function<|tool▁sep|>now\n```json\n{}\n```<|tool▁call▁end|><|tool▁calls▁end|>"
).replace("|", "\uff5c")
KIMI = (
    "Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
    '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}'
    "<|tool_call_end|><|tool_calls_section_end|>"
)
HARMONY = (
    "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    '<|constrain|>json<|message|>{"city": "Paris", "days": 3}<|call|><|start|>assistant<|channel|>commentary'
    " to=functions.now<|message|>{}<|call|>"
)
QWEN = (
    "Sure.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
    "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>"
)
MINIMAX = (
    'Sure.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
    '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>'
)
GLM = (
    "Sure.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>"
)
EXAMPLES: dict[str, str] = {
    "hermes": 'Sure.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    "granite": 'Sure.<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}, '
    '{"name": "now"}]',
    "phi4_mini": 'Sure. functools[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}},'
    '{"name": "now", "arguments": {}}]',
    "mistral": 'Sure.[TOOL_CALLS]get_weather[CALL_ID]abc123456[ARGS]{"city": "Paris", "days": 3}[TOOL_CALLS]now{}',
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}; '
    '{"name": "now", "parameters": {}}',
    "pythonic": '[get_weather(city="Paris", days=3), now()]',
    "llama4_pythonic": 'Sure.<|python_start|>[get_weather(city="Paris", days=3), now()]<|python_end|>',
    "lfm2": "Sure.<|tool_call_start|>[get_weather(city='Paris', days=3), now()]<|tool_call_end|>",
    "olmo3": 'Sure.\n<function_calls>get_weather(city="Paris", days=3)\nnow()</function_calls>',
    "deepseek_v31": DEEPSEEK_V31,
    "deepseek_v3": DEEPSEEK_V3,
    "kimi_k2": KIMI,
    "harmony": HARMONY,
    "qwen3_coder": QWEN,
    "seed_oss": QWEN.replace("<tool_call>", "<seed:tool_call>").replace(
        "</tool_call>", "</seed:tool_call>"
    ),
    "minimax": MINIMAX,
    "glm": GLM,
}
CONTENT = {"llama3_json": "", "pythonic": "", "harmony": "", "deepseek_v3": ""}
OLD_MISTRAL = (
    '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}},'
    ' {"name": "now", "arguments": {}}]'
)


def test_every_family_has_an_example() -> None:
    assert EXAMPLES.keys() == BY_NAME.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_calls_are_found(name: str) -> None:
    found, is_complete = read(name, EXAMPLES[name])
    assert found.read == [("get_weather", PARIS), ("now", {})]
    assert found.content == CONTENT.get(name, "Sure.")
    assert is_complete


@pytest.mark.parametrize("name", EXAMPLES)
def test_calls_are_the_same_wherever_the_text_is_cut(name: str) -> None:
    text = EXAMPLES[name]
    whole = read(name, text)
    for cut in range(1, len(text)):
        assert read(name, text[:cut], text[cut:]) == whole, cut
    assert read(name, *text) == whole


@given(
    name=st.sampled_from(sorted(EXAMPLES)),
    cuts=st.lists(st.integers(0, 400)),
    end=st.integers(0, 400),
)
def test_any_beginning_reads_the_same_in_any_pieces(name: str, cuts: list[int], end: int) -> None:
    text = EXAMPLES[name][:end]
    places = sorted({cut for cut in cuts if cut < len(text)} | {0, len(text)})
    parts = [text[a:b] for a, b in pairwise(places)]
    assert read(name, *parts) == read(name, text)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_cut_off_answer_is_not_complete_and_loses_no_call_that_began(name: str) -> None:
    text = EXAMPLES[name]
    end = text.index("Paris") + 3
    found, is_complete = read(name, text[:end])
    assert not is_complete
    if "ythonic" not in name and name not in (
        "lfm2",
        "olmo3",
    ):  # who tell a call when all of it is there
        assert found.calls[0][0] == "get_weather"
        assert "Par" in found.calls[0][1]


@pytest.mark.parametrize("name", [*EXAMPLES, None])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello, world. ",
        "\n\n 2 < 3 and [1, 2] are {not} calls <tool",
        '{"city": "Paris"}',
        "[1, 2, 3]",
        "<b>bold</b>\n\n",
        "é 漢字 🙂 [x",
    ],
)
def test_an_answer_without_calls_is_content_to_the_letter(name: str | None, text: str) -> None:
    for parts in ([text], list(text)):
        found, is_complete = read(name, *parts)
        assert (found.content.strip(), found.calls) == (text.strip(), [])
        if name != "llama3_json" and name != "pythonic":
            assert found.content == text
        assert not is_complete


@pytest.mark.parametrize("name", EXAMPLES)
@given(text=st.text(alphabet='<|>/[]{}()":,=\\ntool_cals \uff5c▁x1', max_size=60))
def test_no_text_breaks_a_reader(name: str, text: str) -> None:
    whole = read(name, text)
    assert read(name, *text) == whole


def test_mistrals_older_lists_are_read_too() -> None:
    assert read("mistral", OLD_MISTRAL)[0].read == [("get_weather", PARIS), ("now", {})]


@pytest.mark.parametrize("mark", ["", "<|python_tag|>"])
def test_llamas_mark_may_lack(mark: str) -> None:
    assert len(read("llama3_json", mark + EXAMPLES["llama3_json"])[0].calls) == 2


def test_arguments_may_come_before_the_name() -> None:
    text = (
        '<tool_call>{"arguments": {"city": "Paris", "days": 3}, "name": "get_weather"}</tool_call>'
    )
    assert read("hermes", *text)[0].read == [("get_weather", PARIS)]


def test_arguments_may_be_json_within_a_text() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\", \\"days\\": 3}"}</tool_call>'
    assert read("hermes", *text)[0].read == [("get_weather", PARIS)]


def test_marks_and_braces_within_arguments_are_arguments() -> None:
    city = 'x</tool_call>{"}[TOOL_CALLS] \\ " é'
    text = f"<tool_call>{json.dumps({'name': 'get_weather', 'arguments': {'city': city}})}</tool_call> after"
    found, is_complete = read("hermes", *text)
    assert found.read == [("get_weather", {"city": city})]
    assert (found.content.strip(), is_complete) == ("after", True)


def test_what_stands_between_tags_is_what_the_schema_says() -> None:
    text = (
        '<tool_call><function=get_weather><parameter=city>\n12\n\nlines "quoted"\n</parameter>'
        '<parameter=days>12</parameter><parameter=units>metric</parameter><parameter=where>{"x": [1]}</parameter>'
        "<parameter=is_exact>True</parameter><parameter=other>free text</parameter></function></tool_call>"
    )
    found, _ = read("qwen3_coder", *text)
    assert found.read == [
        (
            "get_weather",
            {
                "city": '12\n\nlines "quoted"',
                "days": 12,
                "units": "metric",
                "where": {"x": [1]},
                "is_exact": True,
                "other": "free text",
            },
        )
    ]


def test_python_that_is_no_plain_call_is_content() -> None:
    for text in ("[f(__import__('os'))]", "[f(1)]", "[f(x)]", "[f(a=g())]"):
        found, _ = read("pythonic", *text)
        assert found.calls == []
        assert found.content.startswith("[f(")


def test_python_may_say_true_as_json_does() -> None:
    assert read("pythonic", "[f(a=true, b=[null, False], c={'d': -1.5})]")[0].read == [
        ("f", {"a": True, "b": [None, False], "c": {"d": -1.5}})
    ]


def test_thoughts_are_told_apart_from_content_and_calls() -> None:
    text = "<think>\nHm, <tool_call> is for calls.\n</think>\n\n" + EXAMPLES["hermes"]
    for parts in ([text], list(text)):
        found, is_complete = read("hermes", *parts, thoughts=True)
        assert found.thoughts == "\nHm, <tool_call> is for calls.\n"
        assert found.content == "Sure."
        assert (len(found.calls), is_complete) == (2, True)


def test_thoughts_may_have_begun_in_the_prompt() -> None:
    found, _ = read(None, *"Hm.</think>\nHello", thoughts=True, begun=True)
    assert (found.thoughts, found.content) == ("Hm.", "Hello")


def test_harmony_tells_thoughts_and_its_final_channel() -> None:
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>"
    for parts in ([text], list(text)):
        found, _ = read("harmony", *parts)
        assert (found.thoughts, found.content, found.calls) == ("Hm.", "Hello", [])


def test_a_family_is_known_by_its_template() -> None:
    for family in FAMILIES:
        assert (
            family_of("{{ x }}" + " ".join(family.signs)) == BY_NAME[family.name]
            or family.name == "llama3_json"
        )
    assert family_of("{{ messages }}") is None


def test_models_can_be_configured_with_every_format_and_no_other() -> None:
    assert set(get_args(ToolFormat)) == {"auto", "none", RESPONSE_TEMPLATE, *BY_NAME}


def test_what_the_model_wrote_is_always_json_that_clients_can_read() -> None:
    def refuse(word: str) -> None:
        raise ValueError(word)

    for family, text in (
        ("qwen3_coder", QWEN_CALL % ("days", "NaN")),
        ("qwen3_coder", QWEN_CALL % ("days", "-Infinity")),
        ("lfm2", '<|tool_call_start|>[now(a="\\ud800")]<|tool_call_end|>'),
    ):
        found, _ = read(family, text)
        ((_, arguments),) = found.calls
        json.loads(arguments.encode(), parse_constant=refuse)
    found, _ = read("lfm2", "<|tool_call_start|>[now(a=1e999)]<|tool_call_end|>")
    assert (found.calls, found.content) == (
        [],
        "<|tool_call_start|>[now(a=1e999)]<|tool_call_end|>",
    )


@pytest.mark.parametrize("family", ["hermes", "qwen3_coder", "harmony"])
def test_what_is_nested_without_end_is_no_failure(family: str) -> None:
    deep = "[" * 100_000
    texts = {
        "hermes": '<tool_call>{"name": ' + deep + "]" * 100_000 + "}</tool_call>",
        "qwen3_coder": QWEN_CALL % ("days", deep),
        "harmony": '<|channel|>commentary to=functions.now<|message|>{"a":' + deep + "<|call|>",
    }
    assert read(family, texts[family])[0]


def test_half_a_character_in_a_name_or_in_arguments_is_replaced() -> None:
    call = '<tool_call>{"name": "now\\ud800", "arguments": "{\\"a\\": \\"\\udc00\\"}"}</tool_call>'
    found, _ = read("hermes", call)

    assert found.calls == [["now\ufffd", '{"a": "\ufffd"}']]


QWEN_CALL = "<tool_call><function=get_weather><parameter=%s>%s</parameter></function></tool_call>"


@pytest.mark.parametrize("said", ["12345", "true", "null", "Paris"])
def test_a_text_that_may_be_null_stays_a_text(said: str) -> None:
    found, _ = read("qwen3_coder", QWEN_CALL % ("units", said))

    assert found.read == [("get_weather", {"units": None if said == "null" else said})]


def test_marks_of_thoughts_in_the_arguments_of_a_call_are_of_the_call() -> None:
    code = "a <think> b </think> c"
    texts = {
        "hermes": f'<tool_call>{{"name": "now", "arguments": {{"a": "{code}"}}}}</tool_call>',
        "lfm2": f"<|tool_call_start|>[now(a='{code}')]<|tool_call_end|>",
        "qwen3_coder": "<tool_call><function=now><parameter=a>"
        f"{code}</parameter></function></tool_call>",
    }
    for family, call in texts.items():
        for parts in ([call], list(call)):
            found, is_complete = read(family, "<think>Hm.</think>", *parts, thoughts=True)
            assert (found.thoughts, found.content, is_complete) == ("Hm.", "", True)
            assert found.read == [("now", {"a": code})]


def test_what_is_no_call_keeps_its_spaces_and_its_end() -> None:
    text = 'It is <tool_call>{"a": 1} and then</tool_call> more.'
    for parts in ([text], list(text)):
        assert read("hermes", *parts)[0].content == text


def test_a_call_without_arguments_does_not_take_the_next_one_for_them() -> None:
    first, second = EXAMPLES["deepseek_v31"].split("{", 1)[0], EXAMPLES["deepseek_v31"]
    begin, end = "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<\uff5ctool\u2581call\u2581end\uff5c>"
    text = begin + first.partition(begin)[2] + end + second.partition(begin)[2]
    for parts in ([text], list(text)):
        found, is_complete = read("deepseek_v31", *parts)
        assert found.calls[0][1] == "{}"
        assert is_complete
        assert len(found.calls) == 1 + len(read("deepseek_v31", second)[0].calls)
