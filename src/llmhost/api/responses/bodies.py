"""Bodies of the Responses API as they are sent: every field that this server knows, with its type and its range.

What fields mean together is `wire`'s, and what items mean `turns`'s. Every field may be null, which means absent.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from llmhost.api.bodies import Count, Effort, GenerationBody, TopLogprobs
from llmhost.api.loose import NULL, Raw
from llmhost.core.errors import InvalidValue

MAX_ITEMS = 10_000
"""Of one input."""
MAX_LOOSE_SIGNS = 200_000
"""Of `{`, `[` and `,` in items and tools: a bound to what is made of them."""

Positive = Annotated[int, Meta(ge=1)]
Name64 = Annotated[str, Meta(max_length=64)]
Metadata = Annotated[dict[Name64, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)]


class WirePart(msgspec.Struct, frozen=True):
    """One part of an item's content; what other types of part hold is skipped."""

    type: str
    text: str | None = None
    refusal: str | None = None
    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None
    file_url: str | None = None


class WireItem(msgspec.Struct, frozen=True):
    """One item of an input; one without a type is a message."""

    type: str | None = None
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[WirePart] | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None
    output: str | list[WirePart] | None = None
    summary: list[WirePart] | None = None
    encrypted_content: str | None = None


class WireInputFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a custom tool takes."""

    type: Literal["text", "grammar"]
    syntax: Literal["lark", "regex"] | None = None
    definition: str | None = None


class WireOwnTool(msgspec.Struct, frozen=True):
    """A tool, with its name beside its type."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Raw = NULL
    strict: bool | None = None
    format: WireInputFormat | None = None


class WireTool(WireOwnTool, frozen=True):
    """One of a request's."""

    tools: list[WireOwnTool] | None = None
    """Of a namespace."""


class WireNamed(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    namespace: str | None = None


class WireChoice(WireNamed, frozen=True):
    """`tool_choice` where it is an object."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[WireNamed] | None = None


class WireFormat(msgspec.Struct, frozen=True):
    """`text.format`."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: Raw = NULL
    strict: bool | None = None


class WireTextForm(msgspec.Struct, frozen=True):
    format: WireFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class WireReasoning(msgspec.Struct, frozen=True):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class WireBackground(msgspec.Struct, frozen=True):
    """`background_options`; what relates requests to each other changes nothing here."""

    completion_window: Literal["soonest", "2h", "8h"] | None = None


class WireConversation(msgspec.Struct, frozen=True):
    id: str


class ResponseBody(GenerationBody, frozen=True, kw_only=True):
    """POST /v1/responses."""

    input: Raw = NULL
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | WireConversation | None = None
    store: bool | None = None
    background: bool | None = None
    background_options: Raw = NULL
    max_output_tokens: Positive | None = None
    max_tool_calls: Count | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Raw = NULL
    tool_choice: Raw = NULL
    parallel_tool_calls: bool | None = None
    text: WireTextForm | None = None
    reasoning: WireReasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[str] | None = None
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt: Raw = NULL
    context_management: Raw = NULL
    moderation: Raw = NULL
    personality: Raw = NULL
    chat_template_kwargs: Raw = NULL


def check_signs(raws: Sequence[Raw], param: str) -> None:
    """Raises InvalidValue for more than can be read without keeping others waiting."""
    signs = sum(bytes(raw).count(sign) for raw in raws for sign in (b"{", b"[", b","))
    if signs > MAX_LOOSE_SIGNS:
        what = "'input' and 'tools' together have" if param == "input" else f"'{param}' has"
        raise InvalidValue(
            f"{what} {signs} braces, brackets and commas; this server takes {MAX_LOOSE_SIGNS}.",
            param=param,
        )
