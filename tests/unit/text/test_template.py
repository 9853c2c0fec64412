"""Chat templates: what transformers renders, the words of refusals, and templates that would never end."""

import json
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llmhost.core.errors import BadRequest, ModelUnavailable
from llmhost.text import sandbox
from llmhost.text.template import EACH_MOMENT, ChatTemplate
from llmhost.text.tokenizer import FileTokenizer, load_tokenizer

Load = Callable[..., FileTokenizer]

CHATML_WITH_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.reasoning_content %}
            {{- '\\n<think>' ~ message.reasoning_content ~ '</think>' }}
        {%- endif %}
        {%- if message.content %}
            {%- generation %}{{- '\\n' + message.content }}{% endgeneration %}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set call = tool_call.function %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA_WITH_DATES = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y") %}
    {%- else %}
        {%- set date_string = "2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools is not none %}
    {{- tools | tojson(indent=4) }}
    {{- tools[0] | tojson(separators=(',', ':'), sort_keys=true) }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

LOOPS_AND_MACROS = """\
{% macro say(role, text='') -%}
[{{ role | upper }}] {{ text }}{{ caller() if caller else '' }}
{%- endmacro %}
{% set ns = namespace(turns=0, last='', odd=false) %}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% set ns.turns = ns.turns + 1 %}
    {% set ns.last = ns.last ~ message.role[:1] %}
    {% if message.content is string %}
        {{ say(message.role, message.content) }}
    {% else %}
        {% for part in message['content'] or [] %}
            {% if part.type == 'text' %}{{ say(message.role, part.text) }}{% else %}<{{ part.type }}>{% endif %}
        {% endfor %}
    {% endif %}
    {% if loop.index > 40 %}{% break %}{% endif %}
    {{ loop.length }}/{{ loop.revindex }}/{{ loop.cycle('a', 'b') }}/{{ loop.nextitem.role if loop.nextitem }}
{% endfor %}
{% call say('note') %}{{ ns.turns }} {{ ns.last }}{% endcall %}
{% for key, value in {'b': 1, 'a': [2, 'ü<']}.items() | sort %}
{{ key }}={{ value | tojson }};
{% endfor %}
{% for a in [1, 2] if a > 1 recursive %}{{ a }}{{ loop([]) }}{% else %}none{% endfor %}
{{ range(3) | join('-') }} {{ 'x' * 3 }} {{ 2 ** 3 }} {{ 7 % 4 }} {{ '%03d' % 5 }} {{ '{:>4}'.format(1) }}
{{ messages | map(attribute='role') | unique | join(',') }} {{ undefined_name }}
{{ eos_token }}{{ pad_token }}{{ image_token }}
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": "für <Städte>",
            "parameters": {"b": 1, "a": 2},
        },
    }
]
PLAIN = [
    {"role": "system", "content": "  be brief "},
    {"role": "user", "content": "Grüße & <b>你好</b> "},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "again\n"},
]
WITH_CALLS = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "look it up",
        "tool_calls": [{"function": {"name": "wetter", "arguments": {"ort": "Köln"}}}],
    },
    {"role": "tool", "content": "sunny"},
    {"role": "tool", "content": "warm"},
]
WITH_PARTS = [
    {"role": "system", "content": "skip me"},
    {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]},
    {"role": "assistant", "content": None},
]
CASES: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    (CHATML_WITH_TOOLS, PLAIN, {}),
    (CHATML_WITH_TOOLS, PLAIN, {"tools": TOOLS}),
    (CHATML_WITH_TOOLS, WITH_CALLS, {"tools": TOOLS}),
    (CHATML_WITH_TOOLS, WITH_CALLS, {"add_generation_prompt": False}),
    (CHATML_WITH_TOOLS, PLAIN, {"enable_thinking": False}),
    (LLAMA_WITH_DATES, PLAIN, {}),
    (LLAMA_WITH_DATES, PLAIN[1:], {"tools": TOOLS, "date_string": "26 Jul 2024"}),
    (LOOPS_AND_MACROS, PLAIN, {}),
    (LOOPS_AND_MACROS, WITH_PARTS, {"add_generation_prompt": False}),
]
NAMES = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|begin|>",
    "eos_token": "<|end|>",
    "image_token": "<think>",
}


@pytest.mark.parametrize(("source", "messages", "options"), CASES)
def test_a_chat_reads_as_transformers_renders_it(
    make_model: Callable[..., Path],
    source: str,
    messages: list[dict[str, Any]],
    options: dict[str, Any],
) -> None:
    from transformers import AutoTokenizer
    from transformers.utils import chat_template_utils

    folder = make_model("byte-level", tokenizer_config={**NAMES, "chat_template": source})
    given = {"add_generation_prompt": True, **options}

    ours = load_tokenizer(folder).render_chat(messages, **given)

    theirs = AutoTokenizer.from_pretrained(folder)
    if not hasattr(
        chat_template_utils, "_REASONING_FIELDS"
    ):  # those that know one name for thoughts
        messages = [{**each, "reasoning_content": each.get("reasoning")} for each in messages]
    assert ours == theirs.apply_chat_template(messages, tokenize=False, **given)


def render(source: str, messages: list[dict[str, Any]] | None = None, **kwargs: Any) -> str:
    return ChatTemplate({"default": source}).render(messages or [], **kwargs)


def refusal(source: str, messages: list[dict[str, Any]] | None = None, **kwargs: Any) -> str:
    """What the caller is told."""
    with pytest.raises(BadRequest) as caught:
        render(source, messages, **kwargs)
    assert caught.value.param == "messages"
    return caught.value.message


# --- which template ------------------------------------------------------------------------------

HI = [{"role": "user", "content": "hi"}]


def test_the_template_s_own_file_wins(make_model: Callable[..., Path]) -> None:
    folder = make_model("byte-level", tokenizer_config={"chat_template": "from the config"})
    assert load_tokenizer(folder).render_chat(HI) == "from the config"

    (folder / "chat_template.json").write_text('{"chat_template": "from the JSON"}')
    assert load_tokenizer(folder).render_chat(HI) == "from the JSON"

    (folder / "chat_template.jinja").write_text("from its own file: ü", encoding="utf-8")
    assert load_tokenizer(folder).render_chat(HI) == "from its own file: ü"

    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert load_tokenizer(folder).render_chat(HI) == "from its own file: ü"
    assert load_tokenizer(folder).render_chat(HI, tools=TOOLS) == "with tools"


def test_tools_have_a_template_of_their_own(load: Load) -> None:
    named = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "with {{ tools | length }}"},
        {"name": "rag", "template": "with documents"},
    ]
    tokenizer = load("byte-level", tokenizer_config={"chat_template": named})

    assert tokenizer.render_chat(HI) == "plain"
    assert tokenizer.render_chat(HI, tools=[]) == "plain"
    assert tokenizer.render_chat(HI, tools=TOOLS) == "with 1"


def test_templates_without_a_default_are_refused_by_name(load: Load) -> None:
    tokenizer = load(
        "byte-level", tokenizer_config={"chat_template": [{"name": "rag", "template": ""}]}
    )

    with pytest.raises(BadRequest, match="no template named 'default' among rag"):
        tokenizer.render_chat(HI)


def test_a_broken_chat_template_json_is_named(make_model: Callable[..., Path]) -> None:
    folder = make_model("byte-level")
    (folder / "chat_template.json").write_text("{")

    with pytest.raises(ModelUnavailable, match=r"chat_template\.json is not a JSON object"):
        load_tokenizer(folder)


# --- what templates see ---------------------------------------------------------------------------


def test_the_date_is_the_clock_s() -> None:
    template = ChatTemplate(
        {"default": "{{ strftime_now('%d %b %Y') }}"},
        now=lambda: datetime(2024, 7, 26),  # noqa: DTZ001  # only its day is read
    )

    assert template.render([]) == "26 Jul 2024"


@pytest.mark.parametrize(
    ("source", "times"),
    [
        ("{{ messages }}", ()),
        (
            "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}",
            ("%d %b %Y",),
        ),
        ("{{ strftime_now( \"%H\" ) }}{{ strftime_now('%Y') }}", ("%H", "%Y")),
        ("{{ strftime_now(form) }}", (EACH_MOMENT,)),
        ("{% set now = strftime_now %}{{ now('%Y') }}", (EACH_MOMENT,)),
    ],
)
def test_a_template_says_in_which_forms_it_tells_the_time(
    source: str, times: tuple[str, ...]
) -> None:
    assert ChatTemplate({"default": source}).times == times


def test_a_moment_is_over_when_the_template_would_tell_another_time() -> None:
    days = [datetime(2024, 7, 26, 9), datetime(2024, 7, 26, 23), datetime(2024, 7, 27)]  # noqa: DTZ001
    template = ChatTemplate({"default": "{{ strftime_now('%d %b') }}"}, now=lambda: days.pop(0))

    assert [template.moment() for _ in range(3)] == ["26 Jul", "26 Jul", "27 Jul"]


def test_no_tools_are_none_and_not_an_empty_list() -> None:
    assert render("{{ tools is none }} {{ documents is none }}", tools=[]) == "True True"


def test_switches_reach_the_template_but_never_replace_the_chat() -> None:
    source = "{{ depth }} {{ messages[0].content }} {{ add_generation_prompt }}"

    assert render(source, HI, depth=3) == "3 hi True"
    template = ChatTemplate({"default": source})
    sly: Mapping[str, Any] = {"depth": 1}
    assert template.render(HI, **sly, add_generation_prompt=False) == "1 hi False"


def test_text_parts_are_one_text_for_a_template_that_reads_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}, "c"]
    messages = [{"role": "user", "content": parts}]

    assert render("{% for m in messages %}{{ m.content }}{% endfor %}", messages) == "a bc"
    assert parts[0] == {"type": "text", "text": "a "}


@pytest.mark.parametrize(
    "loop",
    [
        "message.content",
        "message['content']",
        "content",
        "message.content | list",
        "message.content or []",
        "(message.content if message.content is iterable else [])",
    ],
)
def test_parts_stay_parts_for_a_template_that_reads_them(loop: str) -> None:
    source = (
        "{% set message = messages[0] %}{% set content = message.content %}"
        f"{{% for part in {loop} %}}[{{{{ part.type }}}}]{{% endfor %}}"
    )
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]

    assert render(source, messages) == "[text][image]"


def test_an_image_is_refused_by_a_template_that_reads_text() -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]

    told = refusal("{{ messages[0].content }}", messages)

    assert "takes text only, and a content part is of type 'image_url'" in told


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ('{"a": "ü"}', '{"a": "ü"}'),
        ({"a": 1}, '{"a": 1}'),
        ("{broken", '"{broken"'),
        ("[1]", '"[1]"'),
        (r'{"a": "\ud83d\ude00"}', '{"a": "\U0001f600"}'),
        (r'{"a": "\uD83D", "\udc00": "\ud83dx"}', '{"a": "\ufffd", "\ufffd": "\ufffdx"}'),
        (r'{"a": "\\ud83d"}', r'{"a": "\\ud83d"}'),
        (r'{"a": "\\\ud83d"}', '{"a": "\\\\\ufffd"}'),
        (r'{"a": "\ud83d\ud83d\ude00"}', '{"a": "\ufffd\U0001f600"}'),
    ],
)
def test_a_tool_call_s_arguments_are_an_object_where_they_can_be(arguments: Any, seen: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    before = json.dumps(messages)

    told = render("{{ messages[0].tool_calls[0].function.arguments | tojson }}", messages)

    assert told == seen
    assert json.dumps(messages) == before


@pytest.mark.parametrize("arguments", ['{"a":"ü"}', {"a": "ü"}])
@pytest.mark.parametrize(
    "way",
    [
        "{{ call.arguments }}",
        "{{ '' + call.arguments }}",
        "{{ call.arguments + '' }}",
        "{{ '' ~ call.arguments }}",
        "{{ call.arguments if call.arguments is string else call.arguments | tojson }}",
        "{{ call.arguments | string }}",
        '{% for k, v in call.arguments.items() %}{"{{ k }}": "{{ v }}"}{% endfor %}',
        '{% for k in call.arguments %}{"{{ k }}": "{{ call.arguments[k] }}"}{% endfor %}',
    ],
)
def test_arguments_are_json_however_a_template_writes_them(arguments: Any, way: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]

    told = render("{% set call = messages[0].tool_calls[0].function %}" + way, messages)

    assert json.loads(told) == {"a": "ü"}


@pytest.mark.parametrize("sent", ["reasoning", "reasoning_content", "thinking"])
@pytest.mark.parametrize("read", ["reasoning", "reasoning_content", "thinking"])
def test_thoughts_are_found_by_each_name_that_templates_know(sent: str, read: str) -> None:
    messages = [{"role": "assistant", "content": "Yes.", sent: "So."}]

    assert render("{{ messages[0]." + read + " }}", messages) == "So."


def test_a_template_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    real = sandbox.Sandbox.from_string

    def counted(self: sandbox.Sandbox, source: str, *args: Any) -> Any:
        compiled.append(source)
        return real(self, source, *args)

    monkeypatch.setattr(sandbox.Sandbox, "from_string", counted)
    template = ChatTemplate({"default": "{{ messages[0].content }}"})

    assert {template.render(HI) for _ in range(5)} == {"hi"}
    assert len(compiled) == 1


# --- refusals -------------------------------------------------------------------------------------


def test_the_caller_reads_the_template_s_own_words() -> None:
    source = "{{ raise_exception('Roles must alternate, and not ' + messages[0].role) }}"

    assert refusal(source, HI) == "Roles must alternate, and not user"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ messages[9].content.x }}",
        "{{ messages | tojson | int / 0 }}",
        "{% for x in none %}{% endfor %}",
        "{{ nothing.of.this }}",
        "{{ messages[0].missing() }}",
        "{{ 'a' | unknown_filter }}",
        "{% if %}",
        "{% include 'other' %}",
        "{{ '%d' % 'x' }}",
        "{{ {}['a']['b'] }}",
        "{{ messages[0].nothing | tojson }}",
    ],
)
def test_whatever_goes_wrong_in_a_template_is_a_bad_request(source: str) -> None:
    assert refusal(source, HI).startswith("This model's chat template can't render")


def test_a_template_that_does_not_compile_says_where() -> None:
    assert "line 2 of the template" in refusal("ok\n{% if %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__call__ = 1 %}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_a_template_does_not_get_out_of_its_sandbox(source: str) -> None:
    assert "can't render" in refusal(source, HI)


@pytest.mark.parametrize(
    "source", ["{{ raise_exception.__globals__ }}", "{{ '{0.__class__}'.format(1) }}"]
)
def test_private_names_read_as_nothing(source: str) -> None:
    assert render(source) == ""


# --- templates that would never end ---------------------------------------------------------------

HEAVY = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop over another's items": (
        "{% for a in range(99999) %}{% for b in messages | map('upper') %}{% endfor %}"
        "{% for c in range(99999) | select %}{% endfor %}{% endfor %}"
    ),
    "loops over lists that are there": (
        "{% for a in many %}{% for b in many %}{% for c in many %}{% endfor %}{% endfor %}{% endfor %}"
    ),
    "loops over filters' items": (
        "{% for a in many | select %}{% for b in many | select %}{% for c in many | select %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "macros that call themselves without arithmetic": (
        "{% macro f(m) %}{% if m %}{{ f(m[1:]) }}{{ f(m[1:]) }}{% endif %}{% endmacro %}{{ f(many[:60]) }}"
    ),
    "macros that call themselves twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a loop that calls itself": ("{% for a in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}"),
    "too long a range": "{% for a in range(10 ** 9) %}{% endfor %}",
    "text that doubles by ~": (
        "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
    ),
    "text that doubles by +": (
        "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
    ),
    "lists that double": (
        "{% set ns = namespace(s=[1]) %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"
    ),
    "text times a number": "{{ 'x' * 10 ** 12 }}",
    "a number times text": "{{ 10 ** 12 * 'x' }}",
    "a list times a number": "{{ ([1] * 10 ** 12) | length }}",
    "a tower of powers": "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "numbers that square": (
        "{% set ns = namespace(n=9) %}{% for a in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}"
    ),
    "a wide centre": "{{ 'x' | center(10 ** 12) }}",
    "a wide method": "{{ 'x'.ljust(10 ** 12) }}",
    "a wide indent": "{{ 'x' | indent(width=10 ** 12, first=true) }}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a wide format method": "{{ '{:>999999999}'.format(1) }}",
    "a wide format while compiling": "{{ 'x' | center(999999999999) }}",
}


@pytest.mark.parametrize("source", HEAVY.values(), ids=HEAVY.keys())
def test_a_template_that_would_not_end_is_refused(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "CPU_S", 0.05)

    assert "can't render" in refusal(source, HI, many=[1] * 2000)


def test_a_long_chat_is_not_a_heavy_one() -> None:
    messages = [{"role": "user", "content": "x" * 5000}] * 1000

    assert len(render(CHATML_WITH_TOOLS, messages)) > 5_000_000


def test_each_rendering_has_a_meter_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CPU_S", 0.05)
    template = ChatTemplate(
        {"default": "{% for a in range(n) %}{% for b in range(n) %}{% endfor %}{% endfor %}done"}
    )
    told: list[str] = []

    def heavy() -> None:
        with pytest.raises(BadRequest) as caught:
            template.render([], n=99999)
        told.append(caught.value.message)

    threads = [threading.Thread(target=heavy) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert template.render([], n=10) == "done"
    for thread in threads:
        thread.join()

    assert len(told) == 3
    assert template.render([], n=10) == "done"
