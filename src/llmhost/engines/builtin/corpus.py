"""What the tiny model knows: the texts in `answers/`, parsed, and the exact answers tests rely on.

The texts are plain files that anyone can read and extend. Knows nothing of tokens, tensors or
training: see `variety.py` for how a text becomes many prompts, and `train.py` for the rest.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ANSWERS = Path(__file__).parent / "answers"
TOPICS = ("running", "models", "money", "engine", "inside", "smalltalk")
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You are the assistant of llmhost.",
    "Answer briefly.",
    "Be kind and short.",
    "You are a test.",
    "Answer in plain words. Do not invent facts.",
)

Message = dict[str, Any]
Tool = dict[str, Any]


class CorpusError(Exception):
    """A text in `answers/` does not follow the format; names the file and the line."""


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A conversation, in the shape of an OpenAI request, and the exact text that must follow.

    `answer` is what the model writes before `<|im_end|>`; a call of a tool is its markup.
    """

    messages: list[Message]
    tools: list[Tool] | None
    answer: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One answer and the questions that lead to it; the first question is the canonical one."""

    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool and the text that the tool gave back."""

    name: str
    arguments: dict[str, Any]
    response: str


@dataclass(frozen=True, slots=True)
class ToolDialogue:
    """A question, the calls it leads to (made in one turn), and the answer from their results."""

    tools: tuple[str, ...]
    questions: tuple[str, ...]
    preface: str
    calls: tuple[Call, ...]
    answer: str


@cache
def pairs() -> tuple[Pair, ...]:
    """All questions with one turn, in the order of the files."""
    return tuple(
        Pair(tuple(record["Q"]), record["A"][0])
        for topic in TOPICS
        for record in _records(ANSWERS / f"{topic}.txt")
    )


@cache
def unknown() -> tuple[Pair, ...]:
    """Questions from elsewhere; all have the same answer, which admits it."""
    answer, questions = _records(ANSWERS / "unknown.txt")
    return tuple(Pair((question,), answer["A"][0]) for question in questions["Q"])


@cache
def rewordings() -> tuple[tuple[str, str], ...]:
    """(question, the same in other words): what the embedder is measured by, and never trained on."""
    return tuple((record["Q"][0], record["R"][0]) for record in _records(ANSWERS / "reworded.txt"))


@cache
def tool_dialogues() -> tuple[ToolDialogue, ...]:
    """All conversations in which tools are called."""
    return tuple(
        ToolDialogue(
            tools=tuple(record["T"][0].split()),
            questions=tuple(record["Q"]),
            preface=record.get("S", [""])[0],
            calls=tuple(
                Call(call.partition(" ")[0], json.loads(call.partition(" ")[2]), response)
                for call, response in zip(record["C"], record["R"], strict=True)
            ),
            answer=record["A"][0],
        )
        for record in _records(ANSWERS / "tools.txt")
    )


@cache
def tools() -> Mapping[str, Tool]:
    """The tools of the tool conversations, by name, as an OpenAI request lists them."""
    listed: list[Tool] = json.loads((ANSWERS / "tools.json").read_text("utf-8"))
    return {tool["function"]["name"]: tool for tool in listed}


def known_answers() -> list[KnownAnswer]:
    """Every conversation whose answer is fixed, in a stable order.

    Single questions come first, then unknown ones, tool calls, answers from tool results, plain
    questions with tools on offer, questions with a system message, and longer conversations.
    """
    plain = pairs()
    single = [_known([pair], None, None) for pair in (*plain, *unknown())]
    calls = [_before_call(dialogue) for dialogue in tool_dialogues()]
    results = [_after_call(dialogue) for dialogue in tool_dialogues()]
    names = sorted(tools())
    offered = [
        _known([pair], None, [tools()[names[i % 8]], tools()[names[(i + 3) % 8]]])
        for i, pair in enumerate(plain[5::40])
    ]
    with_system = [
        _known([pair], SYSTEM_MESSAGES[i % len(SYSTEM_MESSAGES)], None)
        for i, pair in enumerate(plain[3::16])
    ]
    # Fixed strides that share no factor with the corpus walk far apart through all topics.
    longer = [
        _known([plain[(i * 61 + turn * 173) % len(plain)] for turn in range(2 + i % 3)], None, None)
        for i in range(45)
    ]
    return [*single, *calls, *results, *offered, *with_system, *longer]


def assistant_calls(dialogue: ToolDialogue) -> Message:
    """The assistant message that holds the calls, as an OpenAI client would send it back."""
    return {
        "role": "assistant",
        "content": dialogue.preface or None,
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for number, call in enumerate(dialogue.calls, 1)
        ],
    }


def tool_results(dialogue: ToolDialogue) -> list[Message]:
    """The tool messages that answer `assistant_calls`."""
    return [
        {"role": "tool", "tool_call_id": f"call_{number}", "content": call.response}
        for number, call in enumerate(dialogue.calls, 1)
    ]


def call_text(dialogue: ToolDialogue) -> str:
    """The exact text with which the model makes the calls."""
    calls = (
        "<tool_call>\n"
        + json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        + "\n</tool_call>"
        for call in dialogue.calls
    )
    return "\n".join(filter(None, (dialogue.preface, *calls)))


def _known(turns: list[Pair], system: str | None, offered: list[Tool] | None) -> KnownAnswer:
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for pair in turns:
        messages.append({"role": "user", "content": pair.questions[0]})
        messages.append({"role": "assistant", "content": pair.answer})
    return KnownAnswer(messages[:-1], offered, turns[-1].answer)


def _before_call(dialogue: ToolDialogue) -> KnownAnswer:
    question = {"role": "user", "content": dialogue.questions[0]}
    return KnownAnswer([question], [tools()[n] for n in dialogue.tools], call_text(dialogue))


def _after_call(dialogue: ToolDialogue) -> KnownAnswer:
    messages = [
        {"role": "user", "content": dialogue.questions[0]},
        assistant_calls(dialogue),
        *tool_results(dialogue),
    ]
    return KnownAnswer(messages, [tools()[n] for n in dialogue.tools], dialogue.answer)


def _records(path: Path) -> Iterator[dict[str, list[str]]]:
    """Blocks of `X: text` lines, parted by empty lines; `#` begins a comment.

    An indented line goes on with the text before it. An indented line that begins with `|` is a
    line of its own, as in answers that have several.
    """
    record: dict[str, list[str]] = {}
    texts: list[str] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if line.startswith("#"):
            continue
        if not line.strip():
            if record:
                yield record
            record = {}
        elif line.startswith("  ") and record:
            texts[-1] = _continued(texts[-1], line.strip())
        elif line[1:2] == ":" and line[0].isupper():
            texts = record.setdefault(line[0], [])
            texts.append(line[2:].strip())
        else:
            raise CorpusError(f"{path.name}:{number}: expected `Q: ...` or an indented line")
    if record:
        yield record


def _continued(text: str, line: str) -> str:
    if line.startswith("|"):
        row = line[1:].removeprefix(" ")
        return f"{text}\n{row}" if text else row
    return f"{text} {line}"
