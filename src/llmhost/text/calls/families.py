"""Which way of writing calls and thoughts a model has, found in its chat template, and the reader for each.

A family is a format, and not a maker: many models of many makers write calls as Hermes did.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from llmhost.text.calls.harmony import Harmony
from llmhost.text.calls.json_calls import Between, Llama, Mistral, Sectioned
from llmhost.text.calls.pieces import Piece, Reader, Steps
from llmhost.text.calls.pythonic import Pythonic
from llmhost.text.calls.tagged import GLM, MINIMAX, QWEN, SEED, Schemas, Tagged
from llmhost.text.calls.thoughts import Thoughts


@dataclass(frozen=True, slots=True)
class Family:
    """A format of calls."""

    name: str
    """As `tool_format` in models.toml names it."""
    make: Callable[[Schemas], Reader]
    signs: tuple[str, ...]
    """All of these in a chat template say that a model writes calls so."""
    openers: tuple[str, ...] = ()
    """What calls begin with: such tokens must not be left out of the text."""
    knows_thoughts: bool = False
    """Its reader tells thoughts from content by itself."""
    thoughts: tuple[str, str] | None = None
    """What they stand between then."""
    has_calls: bool = True
    template: str | None = None
    """The template of answers that it follows, in the model's own files."""


def _special(words: str) -> str:
    """DeepSeek's special tokens, in their wide bars and low blocks."""
    return "<\uff5c" + words.replace(" ", "\u2581") + "\uff5c>"


def _deepseek(fence: str | None, before_name: str | None) -> Callable[[Schemas], Reader]:
    def make(schemas: Schemas) -> Reader:
        return Sectioned(
            (_special("tool calls begin"), _special("tool calls end")),
            (_special("tool call begin"), _special("tool call end")),
            before_arguments="\n" if fence else _special("tool sep"),
            before_name=before_name,
            fence=fence,
        )

    return make


def _kimi(schemas: Schemas) -> Reader:
    return Sectioned(
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        ("<|tool_call_begin|>", "<|tool_call_end|>"),
        before_arguments="<|tool_call_argument_begin|>",
    )


_DEEPSEEK = (
    _special("tool calls begin"),
    _special("tool call begin"),
    _special("tool sep"),
    _special("tool call end"),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "harmony",
        lambda schemas: Harmony(),
        ("<|channel|>", "<|message|>"),
        ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>"),
        knows_thoughts=True,
        thoughts=("<|channel|>analysis<|message|>", "<|end|>"),
    ),
    Family(
        "kimi_k2",
        _kimi,
        ("<|tool_calls_section_begin|>",),
        (
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ),
    ),
    Family(
        "deepseek_v3",
        _deepseek("```json\n", _special("tool sep")),
        (_special("tool calls begin"), "```json"),
        (*_DEEPSEEK, _special("tool calls end")),
    ),
    Family(
        "deepseek_v31",
        _deepseek(None, None),
        (_special("tool calls begin"),),
        (*_DEEPSEEK, _special("tool calls end")),
    ),
    Family(
        "seed_oss",
        lambda schemas: Tagged(SEED, schemas),
        ("<seed:tool_call>",),
        ("<seed:tool_call>", "</seed:tool_call>"),
    ),
    Family(
        "minimax",
        lambda schemas: Tagged(MINIMAX, schemas),
        ("<minimax:tool_call>",),
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    Family(
        "qwen3_coder",
        lambda schemas: Tagged(QWEN, schemas),
        ("<tool_call>", "<function="),
        ("<tool_call>", "</tool_call>"),
    ),
    Family(
        "glm",
        lambda schemas: Tagged(GLM, schemas),
        ("<tool_call>", "<arg_key>"),
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    Family(
        "mistral",
        lambda schemas: Mistral(),
        ("[TOOL_CALLS]",),
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    ),
    Family(
        "lfm2",
        lambda schemas: Pythonic("<|tool_call_start|>", "<|tool_call_end|>"),
        ("<|tool_call_start|>",),
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    Family(
        "olmo3",
        lambda schemas: Pythonic("<function_calls>", "</function_calls>"),
        ("<function_calls>",),
        ("<function_calls>", "</function_calls>"),
    ),
    Family(
        "llama4_pythonic",
        lambda schemas: Pythonic("<|python_start|>", "<|python_end|>"),
        ("<|python_start|>",),
        ("<|python_start|>", "<|python_end|>"),
    ),
    Family("phi4_mini", lambda schemas: Between("functools", None), ("functools",), ()),
    Family(
        "granite",
        lambda schemas: Between("<|tool_call|>", None),
        ("<|tool_call|>",),
        ("<|tool_call|>",),
    ),
    Family(
        "hermes",
        lambda schemas: Between("<tool_call>", "</tool_call>"),
        ("<tool_call>",),
        ("<tool_call>", "</tool_call>"),
    ),
    Family("llama3_json", lambda schemas: Llama(), ("Environment: ipython",), ("<|python_tag|>",)),
    Family("llama3_json", lambda schemas: Llama(), ("<|python_tag|>",), ("<|python_tag|>",)),
    Family("pythonic", lambda schemas: Pythonic(), ("[func_name1(params_name1",), ()),
)
"""The most particular first: the first whose signs are all there is meant."""

BY_NAME: Mapping[str, Family] = {family.name: family for family in reversed(FAMILIES)}

THOUGHTS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
)
"""What thoughts stand between."""


def family_of(template: str) -> Family | None:
    """The format of calls that a chat template tells of; None where it tells of none that is known."""
    for family in FAMILIES:
        if all(sign in template for sign in family.signs):
            return family
    return None


def reader_of(
    family: Family | None,
    schemas: Schemas,
    *,
    thoughts: Iterable[tuple[str, str]] = (),
    begun: bool = False,
) -> Reader:
    """A reader for one choice. `begun`: the prompt ends amid thoughts already."""
    inner = family.make(schemas) if family is not None else Plain()
    marks = tuple(thoughts)
    if not marks or (family is not None and family.knows_thoughts):
        return inner
    return Thoughts(inner, marks[0], begun=begun)


def reader_of_text(thoughts: tuple[str, str] | None, *, begun: bool = False) -> Reader:
    """For a choice that is one text, held to a grammar, and thoughts before it."""
    return Text() if thoughts is None else Thoughts(Text(), thoughts, begun=begun)


class Plain(Reader):
    """All of it is content."""

    def read(self) -> Steps[None]:
        yield from self.say_rest()


class Text(Plain):
    """All of it is content, and once it has begun so are marks that come in it: a JSON string may hold any."""

    def push(self, text: str) -> list[Piece]:
        self.is_within_call = self.is_within_call or bool(text.strip())
        return super().push(text)
