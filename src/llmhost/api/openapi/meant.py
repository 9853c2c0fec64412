"""What fields mean beyond what their structs say: those that are kept as text until it is known what they are for, and
those whose limits are checked, and told, in words of our own.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta

from llmhost.api.bodies import ChatBody, GenerationBody, WireMessage, WirePart
from llmhost.api.decision_wire import (
    MAX_CHOICES,
    MAX_ITEMS,
    MAX_QUESTIONS,
    DecisionBody,
    DecisionChoice,
    DecisionItem,
    DecisionLevel,
    DecisionPart,
    DecisionQuestion,
)
from llmhost.api.messages_bodies import MessagesBody, WireBlock, WireOutputFormat, WireTurn
from llmhost.api.messages_bodies import WireTool as MessagesTool
from llmhost.api.ollama.bodies import (
    AnswerBody,
    OllamaBody,
    OllamaCall,
    OllamaCalled,
    OllamaChat,
    OllamaGenerate,
    OllamaMessage,
    OllamaOptions,
)
from llmhost.api.openapi.operation import Struct
from llmhost.api.openapi.shapes import FieldTypes
from llmhost.api.pooling_wire import MAX_TEXTS, RerankBody
from llmhost.api.responses.bodies import ResponseBody, WireItem
from llmhost.api.responses.bodies import WireChoice as ResponsesChoice
from llmhost.api.responses.bodies import WireFormat as ResponsesFormat
from llmhost.api.responses.bodies import WireInputFormat as ResponsesInputFormat
from llmhost.api.responses.bodies import WireNamed as ResponsesNamed
from llmhost.api.responses.bodies import WirePart as ResponsesPart
from llmhost.api.responses.bodies import WireTool as ResponsesTool
from llmhost.api.sampling import (
    MAX_ALLOWED_IDS,
    MAX_BAD_WORDS,
    MAX_BIASED,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOPS,
)
from llmhost.api.structured import WireChoice, WireFormat, WireSchema, WireStructured
from llmhost.api.tokenize import DetokenizeBody, TokenizeBody
from llmhost.api.tools import MAX_TOOLS, Name, WireTool

Schema = dict[str, Any] | bool
"""A JSON schema."""
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Biases = Annotated[
    dict[str, Bias],
    Meta(max_length=MAX_BIASED, extra_json_schema={"propertyNames": {"pattern": "^[0-9]{1,9}$"}}),
]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
Stops = Annotated[list[StopText], Meta(max_length=MAX_STOPS)]
HAS_CONTENT = {
    "anyOf": [
        {"properties": {"role": {"const": "assistant"}}},
        {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
    ]
}
"""Only an assistant's message may be without."""
SpokenMessage = Annotated[WireMessage, Meta(extra_json_schema=HAS_CONTENT)]
HAS_TEXT = {
    "oneOf": [
        {
            "properties": {"type": {"const": "refusal"}, "refusal": {"type": "string"}},
            "required": ["refusal"],
        },
        {
            "properties": {"type": {"enum": ["text", "input_text"]}, "text": {"type": "string"}},
            "required": ["text"],
        },
    ]
}
TextPart = Annotated[WirePart, Meta(extra_json_schema=HAS_TEXT)]
Documents = Annotated[list[str | dict[str, str]], Meta(min_length=1, max_length=MAX_TEXTS)]

INPUT_ITEM = {
    "required": ["role", "content"],
    "properties": {
        "type": {"enum": [None, "message"]},
        "role": {"enum": ["user", "assistant", "system", "developer"]},
        "content": {"type": "string", "minLength": 1},
    },
}
"""Other items are in docs/responses.md."""
InputItem = Annotated[WireItem, Meta(extra_json_schema=INPUT_ITEM)]
ResponseTools = Annotated[list[ResponsesTool], Meta(max_length=MAX_TOOLS)]


def _each_has(needed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A schema: of each `type` those fields, which are of such types, must be there."""
    return {
        "oneOf": [
            {
                "properties": {
                    "type": {"const": kind},
                    **{name: {"type": types} for name, types in fields.items()},
                },
                "required": ["type", *fields],
            }
            for kind, fields in needed.items()
        ]
    }


TEXT, CONTENT = "string", ["string", "array"]
CALL = {"call_id": TEXT, "name": TEXT}
OUTPUT = {"call_id": TEXT, "output": CONTENT}
AskedQuestion = Annotated[
    DecisionQuestion,
    Meta(
        extra_json_schema=_each_has(
            {"predicate": {}, "choice": {"choices": "array"}, "score": {"levels": "array"}}
        )
    ),
]
KnownItem = Annotated[
    DecisionItem,
    Meta(
        extra_json_schema=_each_has(
            {
                "message": {"role": TEXT, "content": CONTENT},
                "function_call": {**CALL, "arguments": TEXT},
                "custom_tool_call": {**CALL, "input": TEXT},
                "function_call_output": OUTPUT,
                "custom_tool_call_output": OUTPUT,
            }
        )
    ),
]

MEANT: FieldTypes = {
    (ResponseBody, "input"): Annotated[str, Meta(min_length=1)]
    | Annotated[list[InputItem], Meta(min_length=1)],
    (ResponseBody, "tools"): ResponseTools,
    (ResponseBody, "tool_choice"): Literal["none", "auto", "required"] | ResponsesChoice,
    (ResponseBody, "chat_template_kwargs"): dict[str, Any],
    (ResponsesTool, "type"): Literal["function", "custom"],
    (ResponsesTool, "name"): Name,
    (ResponsesTool, "parameters"): dict[str, Any],
    (ResponsesChoice, "type"): Literal["function", "custom", "allowed_tools"],
    (ResponsesFormat, "type"): Literal["text", "json_object", "json_schema"],
    (ResponsesFormat, "schema"): Schema,
    (GenerationBody, "stop"): StopText | Stops,
    (GenerationBody, "logit_bias"): Biases,
    (GenerationBody, "stop_token_ids"): Annotated[list[TokenId], Meta(max_length=MAX_STOP_IDS)],
    (GenerationBody, "bad_words"): Annotated[list[StopText], Meta(max_length=MAX_BAD_WORDS)],
    (GenerationBody, "allowed_token_ids"): Annotated[
        list[TokenId], Meta(min_length=1, max_length=MAX_ALLOWED_IDS)
    ],
    (GenerationBody, "response_format"): WireFormat,
    (GenerationBody, "structured_outputs"): WireStructured,
    (GenerationBody, "guided_json"): Any,
    (ChatBody, "messages"): Annotated[list[SpokenMessage], Meta(min_length=1)],
    (ChatBody, "tools"): Annotated[list[WireTool], Meta(max_length=MAX_TOOLS)],
    (ChatBody, "tool_choice"): Literal["none", "auto", "required"] | WireChoice,
    (ChatBody, "chat_template_kwargs"): dict[str, Any],
    (ChatBody, "documents"): list[dict[str, Any]],
    (WireMessage, "content"): str | list[TextPart],
    (WirePart, "type"): Literal["text", "input_text", "refusal"],
    (WireFormat, "type"): Literal["text", "json_object", "json_schema"],
    (WireMessage, "tool_calls"): list[dict[str, Any]],
    (WireMessage, "function_call"): dict[str, Any],
    (WireFormat, "schema"): Schema,
    (WireSchema, "schema"): Schema,
    (MessagesBody, "messages"): Annotated[list[WireTurn], Meta(min_length=1)],
    (MessagesBody, "stop_sequences"): Stops,
    (MessagesBody, "tools"): Annotated[list[MessagesTool], Meta(max_length=MAX_TOOLS)],
    (MessagesTool, "name"): Name,
    (MessagesTool, "input_schema"): dict[str, Any],
    (WireBlock, "type"): Literal[
        "text", "tool_use", "tool_result", "thinking", "redacted_thinking"
    ],
    (WireOutputFormat, "type"): Literal["json_schema"],
    (WireBlock, "content"): str | list[dict[str, Any]],
    (WireBlock, "input"): dict[str, Any],
    (WireOutputFormat, "schema"): Schema,
    (RerankBody, "documents"): Documents,
    (DecisionBody, "input"): Annotated[str, Meta(min_length=1)]
    | Annotated[list[KnownItem], Meta(min_length=1, max_length=MAX_ITEMS)],
    (DecisionBody, "questions"): Annotated[
        list[AskedQuestion], Meta(min_length=1, max_length=MAX_QUESTIONS)
    ],
    (DecisionQuestion, "choices"): Annotated[
        list[DecisionChoice], Meta(min_length=2, max_length=MAX_CHOICES)
    ],
    (DecisionQuestion, "levels"): Annotated[
        list[DecisionLevel], Meta(min_length=2, max_length=MAX_CHOICES)
    ],
    (DecisionPart, "type"): Literal["input_text", "output_text", "text", "refusal", "input_json"],
    (DecisionPart, "data"): dict[str, Any] | list[dict[str, Any]],
    (TokenizeBody, "messages"): Annotated[list[SpokenMessage], Meta(min_length=1)],
    (DetokenizeBody, "tokens"): list[TokenId],
    (OllamaBody, "keep_alive"): float | str,
    (AnswerBody, "format"): Literal["", "json"] | dict[str, Any],
    (OllamaChat, "tools"): Annotated[list[WireTool], Meta(max_length=MAX_TOOLS)],
    (OllamaMessage, "tool_calls"): list[OllamaCall],
    (OllamaMessage, "images"): list[str],
    (OllamaCalled, "arguments"): dict[str, Any],
    (OllamaOptions, "stop"): StopText | Stops,
    (OllamaGenerate, "context"): list[int],
    (OllamaGenerate, "images"): list[str],
}
"""A field that is kept as text and is not here may hold anything."""

REQUIRED: dict[Struct, tuple[str, ...]] = {
    MessagesTool: ("name", "input_schema"),
    ResponsesTool: ("name",),
}
"""Fields that may be absent as far as their struct is concerned, and are asked for by name."""

NAMES: dict[Struct, str] = {
    MessagesTool: "MessagesTool",
    WireItem: "ResponsesItem",
    ResponsesPart: "ResponsesPart",
    ResponsesTool: "ResponsesTool",
    ResponsesChoice: "ResponsesChoice",
    ResponsesNamed: "ResponsesNamed",
    ResponsesFormat: "ResponsesFormat",
    ResponsesInputFormat: "ResponsesInputFormat",
    WireOutputFormat: "MessagesOutputFormat",
    WirePart: "ContentPart",
}
"""Of structs whose own names others have as well, or say too little."""
