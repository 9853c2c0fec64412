"""Invented conversations that teach the tiny model to copy: numbers, names and keys out of the prompt.

What it has to say in them can't be known by heart, since numbers, names, tools and arguments are drawn afresh every
time (`draw.py`).
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llmhost.engines.builtin import corpus, variety
from llmhost.engines.builtin import draw as values
from llmhost.engines.builtin.corpus import KnownAnswer, Message, Tool
from llmhost.engines.builtin.draw import Draw
from llmhost.engines.builtin.variety import Conversation


@dataclass(frozen=True, slots=True)
class Drill:
    """A conversation and the skill that it is for, a key of `KINDS`."""

    kind: str
    conversation: Conversation

    def asked(self) -> list[KnownAnswer]:
        """Each point at which the assistant speaks, with what it has to say there."""
        messages, tools = self.conversation.messages, self.conversation.tools
        return [
            KnownAnswer(messages[:place], tools, message["content"])
            for place, message in enumerate(messages)
            if message["role"] == "assistant"
        ]


def epoch(rng: random.Random, count: int, kinds: Sequence[str] = ()) -> list[Conversation]:
    """`count` conversations of these kinds, or of all."""
    return [drill.conversation for drill in drawn(Draw(rng), count, kinds)]


def measured(seed: int, count: int) -> list[Drill]:
    """`count` drills with values that training never saw."""
    return drawn(Draw(random.Random(seed), measured=True), count)


def drawn(draw: Draw, count: int, kinds: Sequence[str] = ()) -> list[Drill]:
    kinds = kinds or tuple(KINDS)
    chosen = draw.rng.choices(kinds, [KINDS[kind][0] for kind in kinds], k=count)
    return [Drill(kind, KINDS[kind][1](draw)) for kind in chosen]


# Kinds


def _repeat(draw: Draw) -> Conversation:
    """Short and dense: what stands in the question is the answer, as it is or in JSON."""
    messages: list[Message] = []
    for _ in range(draw.rng.randint(1, 4)):
        question, answer = draw.rng.choice((_say, _say_numbers, _quoted, _applied, _introduced))(
            draw
        )
        messages += [_user(question), _assistant(answer)]
    return Conversation(messages)


def _say(draw: Draw) -> tuple[str, str]:
    words = " ".join(draw.name() for _ in range(draw.rng.randint(1, 4)))
    return f"{draw.rng.choice(('Repeat', 'Say', 'Copy'))}: {words}", words


def _say_numbers(draw: Draw) -> tuple[str, str]:
    numbers = " ".join(str(draw.number()) for _ in range(draw.rng.randint(1, 6)))
    return f"{draw.rng.choice(('Repeat', 'Say', 'Copy'))}: {numbers}", numbers


def _quoted(draw: Draw) -> tuple[str, str]:
    key, name = draw.rng.choice(values.KEYS), draw.name()
    return f"Write {_quote(draw, name)} as JSON with the key {_quote(draw, key)}.", _json(
        {key: name}
    )


def _applied(draw: Draw) -> tuple[str, str]:
    key, number = draw.identifier(values.QUALITIES, values.WORKINGS), draw.number()
    return f"Write {key}({number}) as JSON.", _json({key: number})


def _introduced(draw: Draw) -> tuple[str, str]:
    name, age = draw.name(), draw.number()
    keys = draw.rng.sample(("name", "age", "who", "years", "person", "old"), 2)
    question = f"{name} is {age} years old. Return a JSON with '{keys[0]}' and '{keys[1]}'."
    return question, _json({keys[0]: name, keys[1]: age})


def _computed(draw: Draw) -> Conversation:
    """A tool of one number or two, named as a function in the question; its result comes back."""
    name = draw.identifier(values.QUALITIES, values.WORKINGS)
    inputs = draw.rng.sample(values.INPUTS, 1 if draw.rng.random() < 0.75 else 2)
    numbers = [draw.number() for _ in inputs]
    told = ", ".join(map(str, numbers))
    question = draw.rng.choice(
        (
            f"What is the value of {name}({told})? Use the tool.",
            f"What is {name}({told})?",
            f"Call {name} with {' and '.join(map(str, numbers))}.",
            f"Use the tool {name} on {told}",
            f"What does {name} give for {told}?",
        )
    )
    kind = draw.rng.choice(("integer", "integer", "number"))
    spoken = name.replace("_", " ")
    about = draw.rng.choice(
        (f"Apply a {spoken} to an {inputs[0]}.", f"Calculate the {spoken}.", f"The {spoken}.")
    )
    tool = _tool(draw, name, about, dict.fromkeys(inputs, kind))
    result = draw.number()
    given = draw.rng.choice((str(result), _json({"result": result})))
    answer = f"The result is {result}."
    return _called(draw, question, tool, dict(zip(inputs, numbers, strict=True)), given, answer)


def _without_arguments(draw: Draw) -> Conversation:
    name = draw.identifier(values.QUALITIES, values.WORKINGS)
    if draw.rng.random() < 0.5:
        name += draw.rng.choice(("_no_args", "_now", "_only", "_of_today"))
    question = draw.rng.choice(
        (
            f"What is the value of {name}()? Use the tool.",
            f"Call {name}.",
            f"What is {name}()?",
            f"Run {name}()",
        )
    )
    tool = _tool(draw, name, f"Calculate a {name.replace('_', ' ')}.", {})
    result = draw.number()
    return _called(draw, question, tool, {}, str(result), f"The result is {result}.")


def _placed(draw: Draw) -> Conversation:
    """Something is asked of a place, and there is a tool for it."""
    name, key, place = (
        draw.identifier(values.GETS, values.KNOWN_OF_PLACES),
        draw.rng.choice(values.PLACES),
        draw.place(),
    )
    noun = name.partition("_")[2]
    question = draw.rng.choice(
        (
            f"What is the {noun} in {place}?",
            f"What is the {noun} in {place}?",
            f"How is the {noun} in {place}?",
            f"Tell me the {noun} in {place}",
            f"{noun} in {place}?",
        )
    )
    about = draw.rng.choice(
        (
            f"Get the {noun} at a {key}.",
            f"The {noun} of a {key}.",
            f"Look up the {noun} in a {key}",
            f"Get {noun}.",
        )
    )
    state = draw.rng.choice(values.STATES)
    said, answer = draw.rng.choice(
        (
            (f"It's {state}.", f"It's {state}."),
            (f"The {noun} is {state} today.", f"The {noun} is {state} today."),
            (_json({noun: state}), f"The {noun} in {place} is {state}."),
        )
    )
    return _called(
        draw, question, _tool(draw, name, about, {key: "string"}), {key: place}, said, answer
    )


def _registered(draw: Draw) -> Conversation:
    """Something with a name and a description is made, in many languages."""
    tool_name, name = (
        draw.identifier(draw.rng.choice((values.MAKES, values.QUALITIES)), values.THINGS),
        draw.name(),
    )
    thing = tool_name.partition("_")[2]
    keys = [draw.rng.choice(values.NAMED), draw.rng.choice(values.DETAILS)]
    detail = f"{draw.rng.choice(values.SORTS)} {draw.rng.choice(values.THINGS)}"
    verb = draw.rng.choice(("Create", "Add", "Register", "Open", "Make"))
    gloss = f" ({values.two_words(draw.rng)})" if draw.rng.random() < 0.4 else ""
    word = draw.rng.choice(("named", "named", "called"))
    question = f"{verb} a {thing} {word} {_quote(draw, name)}{gloss}"
    arguments = {keys[0]: name}
    if draw.rng.random() < 0.7:
        question += f" {draw.rng.choice(('-', 'as', ':'))} a {detail}"
        arguments[keys[1]] = f"a {detail}"
    about = draw.rng.choice(
        (
            f"Create a {thing}.",
            f"Tool for creating a {thing} with a name.\n\n    Args:\n        {keys[0]}: The name of the {thing}.",
            f"Add a {thing} to the list",
        )
    )
    tool = _tool(draw, tool_name, about, dict.fromkeys(arguments, "string"))
    done = f"Created {thing}: {name}"
    return _called(draw, question, tool, arguments, done, done)


def _sought(draw: Draw) -> Conversation:
    """A search for some words, perhaps with a number of hits."""
    words = " ".join(draw.latin() for _ in range(draw.rng.randint(1, 3)))
    keys = [draw.rng.choice(options) for options in (values.SOUGHT, values.MOST)]
    name = draw.identifier(("search", "find", "lookup"), values.THINGS)
    arguments: dict[str, str | int] = {keys[0]: words}
    question = f"{draw.rng.choice(('Search for', 'Find', 'Look up'))} {words}"
    if draw.rng.random() < 0.4:
        arguments[keys[1]] = draw.number()
        question += f", at most {arguments[keys[1]]}"
    kinds = {
        key: "string" if isinstance(value, str) else "integer" for key, value in arguments.items()
    }
    tool = _tool(draw, name, f"Search {name.split('_')[1]}s by words.", kinds)
    hits = draw.number()
    return _called(
        draw, question, tool, arguments, _json({"found": hits}), f"The result is {hits}."
    )


def _no_call(draw: Draw) -> Conversation:
    """Tools are on offer, and the question needs none of them."""
    pair = draw.rng.choice((*corpus.pairs(), *corpus.unknown()))
    question = variety.reworded(draw.rng.choice(pair.questions), draw.rng)
    tools = [_other_tool(draw) for _ in range(draw.rng.randint(1, 2))]
    return Conversation([_user(question), _assistant(pair.answer)], tools)


def _as_json(draw: Draw) -> Conversation:
    """The keys are named in the question."""
    topic, tell = draw.rng.choice(values.TOPICS), draw.rng.choice(values.TELLS)
    keys = draw.rng.sample(values.KEYS, draw.rng.choice((1, 2, 2, 3)))
    quoted = [_quote(draw, key) for key in keys]
    listed = " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))
    verb = draw.rng.choice(("Tell me", "Write", "Give me"))
    how = draw.rng.choice(
        (
            f"Return the result as a JSON with {listed} keys. Return nothing other than JSON.",
            f"Return JSON with the keys {listed}.",
            f"Answer as a JSON object with {listed}.",
        )
    )
    answer = _json({key: f"The {key} of a {tell} about {topic}." for key in keys})
    return Conversation([_user(f"{verb} a {tell} about {topic}. {how}"), _assistant(answer)])


KINDS: dict[str, tuple[float, Callable[[Draw], Conversation]]] = {
    "repeat": (6, _repeat),
    "number": (4, _computed),
    "place": (4, _placed),
    "name": (4, _registered),
    "search": (1.5, _sought),
    "no arguments": (1, _without_arguments),
    "no call": (1.5, _no_call),
    "json": (2, _as_json),
}
"""How often each kind is drawn, and what draws it."""


# Parts


def _called(
    draw: Draw,
    question: str,
    tool: Tool,
    arguments: Mapping[str, object],
    given: str,
    answer: str,
) -> Conversation:
    """The question, the call, in most cases its result and the answer; other tools may be on offer too."""
    call = _json({"name": tool["function"]["name"], "arguments": arguments})
    messages = [_user(question), _assistant(f"<tool_call>\n{call}\n</tool_call>")]
    if draw.rng.random() < 0.5:
        messages += [{"role": "tool", "content": given}, _assistant(answer)]
    tools = [tool]
    if draw.rng.random() < 0.25:
        tools.insert(draw.rng.randint(0, 1), _other_tool(draw))
    if draw.rng.random() < 0.1:
        messages.insert(0, {"role": "system", "content": draw.rng.choice(corpus.SYSTEM_MESSAGES)})
    return Conversation(messages, tools)


def _other_tool(draw: Draw) -> Tool:
    """One that no question of these drills is for."""
    if draw.rng.random() < 0.4:
        return draw.rng.choice(list(corpus.tools().values()))
    verb, thing = (
        draw.rng.choice(("delete", "send", "rename", "move", "print")),
        draw.rng.choice(values.THINGS),
    )
    return _tool(
        draw,
        f"{verb}_{thing}",
        f"{verb.capitalize()} a {thing}.",
        {draw.rng.choice(values.INPUTS): "string"},
    )


def _tool(draw: Draw, name: str, about: str, kinds: dict[str, str]) -> Tool:
    """A tool as this or that client describes it."""
    properties: dict[str, dict[str, object]] = {key: {"type": kind} for key, kind in kinds.items()}
    for key, schema in properties.items():
        if draw.rng.random() < 0.2:
            schema["description"] = f"The {key}."
        if schema["type"] == "integer" and draw.rng.random() < 0.3:
            schema |= {"minimum": 0, "maximum": draw.rng.choice((10, 100, 1000))}
    shape: dict[str, object] = {"type": "object", "properties": properties, "required": list(kinds)}
    if not kinds:
        del shape["required"]
    if draw.rng.random() < 0.5:  # some clients sort the keys
        shape = json.loads(json.dumps(shape, sort_keys=True))
    if draw.rng.random() < 0.2:
        shape["additionalProperties"] = False
    return {
        "type": "function",
        "function": {"name": name, "description": about, "parameters": shape},
    }


def _quote(draw: Draw, text: str) -> str:
    left, right = draw.rng.choice(("''", "''", '""', "''"))
    return f"{left}{text}{right}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}
