"""How one text becomes many prompts: the conversations of one epoch of training.

The model shall know an answer however the question is put: in lower case, with a greeting, after
other questions, below a system message, with tools on offer. Tool values are also drawn at random,
so that the model copies them from the prompt and does not only remember them.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from llmhost.engines.builtin import corpus
from llmhost.engines.builtin.corpus import Call, Message, Pair, Tool, ToolDialogue

T = TypeVar("T")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


GREETINGS = ("Hi, ", "hello, ", "Hey, ", "Please, ", "please tell me: ", "Can you tell me: ")
ENDINGS = (" please", ", please", " Thanks!", "!", "??", " ")
CITIES = _words(
    "Paris, London, Rome, Berlin, Madrid, Oslo, Tokyo, Cairo, Vienna, Lima, Sydney, Delhi, "
    "Boston, Chicago, Lisbon, Prague, Warsaw, Athens, Dublin, Seoul, Bangkok, Nairobi, Toronto, "
    "Helsinki, Geneva, Milan, Munich, Hamburg, Kyoto, Havana, Denver, Seattle, Austin, Porto, "
    "Lyon, Turin, Bergen, Quito"
)
SKIES = _words("cloudy, rainy, sunny, windy, snowy, foggy")
ASKED = _words("Who invented, How do I repair, What is the history of, Explain, Who wrote about")
ASKED_OF = _words(
    "the violin, a car, the Roman empire, black holes, my roof, football, cheese, the ocean, "
    "ballet, gravity, my phone, volcanoes, chess, a garden, the Silk Road, dinosaurs, whales, "
    "the piano, tax law, a broken heart, jazz, the telescope, glaciers, coffee, the human brain, "
    "a sailing boat, opera"
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that end with an assistant's; every assistant message is to be learnt."""

    messages: list[Message]
    tools: list[Tool] | None = None


def epoch(rng: random.Random) -> list[Conversation]:
    """Every pair and every tool dialogue at least once, plus inventions; about 45,000 tokens."""
    turns = [_turn(pair, rng) for pair in _shuffled((*corpus.pairs(), *corpus.unknown()), rng)]
    turns += [_turn(_invented_unknown(rng), rng) for _ in range(20)]
    rng.shuffle(turns)
    conversations: list[Conversation] = []
    while turns:
        length = rng.choice((1, 1, 1, 1, 2, 2, 3, 4))
        taken, turns = turns[:length], turns[length:]
        offered = _tools(rng, ()) if rng.random() < 0.06 else None
        conversations.append(Conversation(_headed([m for t in taken for m in t], rng), offered))
    dialogues = [*corpus.tool_dialogues(), *(_invented_dialogue(rng) for _ in range(24))]
    return conversations + [_with_tools(dialogue, rng) for dialogue in dialogues]


def exact() -> list[Conversation]:
    """The known answers, word for word."""
    return [
        Conversation([*known.messages, {"role": "assistant", "content": known.answer}], known.tools)
        for known in corpus.known_answers()
    ]


def reworded(question: str, rng: random.Random) -> str:
    """The question as a hurried, a polite or a careless person would type it."""
    text = question
    if rng.random() < 0.4:
        text = text.rstrip("?")
    if rng.random() < 0.4:
        text = text[:1].lower() + text[1:] if rng.random() < 0.5 else text.lower()
    if rng.random() < 0.2:
        text = rng.choice(GREETINGS) + text
    if rng.random() < 0.15:
        text += rng.choice(ENDINGS)
    return text


def _turn(pair: Pair, rng: random.Random) -> list[Message]:
    first = rng.random() < 0.4
    question = pair.questions[0] if first else reworded(rng.choice(pair.questions), rng)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": pair.answer},
    ]


def _headed(messages: list[Message], rng: random.Random) -> list[Message]:
    if rng.random() > 0.25:
        return messages
    return [{"role": "system", "content": rng.choice(corpus.SYSTEM_MESSAGES)}, *messages]


def _with_tools(dialogue: ToolDialogue, rng: random.Random) -> Conversation:
    first = rng.random() < 0.5
    asked = dialogue.questions[0] if first else reworded(rng.choice(dialogue.questions), rng)
    messages: list[Message] = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": corpus.call_text(dialogue)},
        *corpus.tool_results(dialogue),
        {"role": "assistant", "content": dialogue.answer},
    ]
    if rng.random() < 0.15:
        messages = _turn(rng.choice(corpus.pairs()), rng) + messages
    if rng.random() < 0.15:
        messages = messages + _turn(rng.choice(corpus.pairs()), rng)
    exactly = [corpus.tools()[name] for name in dialogue.tools]
    tools = exactly if rng.random() < 0.6 else _tools(rng, {c.name for c in dialogue.calls})
    return Conversation(_headed(messages, rng) if rng.random() < 0.5 else messages, tools)


def _tools(rng: random.Random, needed: Sequence[str] | set[str]) -> list[Tool]:
    """The needed tools and up to two others, in any order, sometimes written by another client."""
    others = [name for name in corpus.tools() if name not in needed]
    least = 0 if needed else 1
    names = [*sorted(needed), *rng.sample(others, rng.randint(least, 2))]
    tools = [corpus.tools()[name] for name in _shuffled(names, rng)]
    if rng.random() < 0.3:  # some clients, and jinja2's own tojson, sort the keys
        tools = [json.loads(json.dumps(tool, sort_keys=True)) for tool in tools]
    return tools


def _invented_unknown(rng: random.Random) -> Pair:
    question = f"{rng.choice(ASKED)} {rng.choice(ASKED_OF)}?"
    return Pair((question,), corpus.unknown()[0].answer)


def _invented_dialogue(rng: random.Random) -> ToolDialogue:
    """A corpus dialogue with other cities and numbers in the same words."""
    kind = rng.choice((_weather, _time, _sum, _product, _timer))
    question, call, answer = kind(rng)
    like = next(d for d in corpus.tool_dialogues() if d.calls[0].name == call.name)
    return replace(
        like, tools=(call.name,), questions=(question,), preface="", calls=(call,), answer=answer
    )


def _weather(rng: random.Random) -> tuple[str, Call, str]:
    city, degrees, sky = rng.choice(CITIES), rng.randint(-9, 39), rng.choice(SKIES)
    response = json.dumps({"city": city, "temp_c": degrees, "sky": sky})
    return (
        f"What is the weather in {city}?",
        Call("get_weather", {"city": city}, response),
        f"It is {degrees} degrees and {sky} in {city}.",
    )


def _time(rng: random.Random) -> tuple[str, Call, str]:
    city, time = rng.choice(CITIES), f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    response = json.dumps({"city": city, "time": time})
    return (
        f"What time is it in {city}?",
        Call("get_time", {"city": city}, response),
        f"It is {time} in {city}.",
    )


def _sum(rng: random.Random) -> tuple[str, Call, str]:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    call = Call("add", {"a": a, "b": b}, json.dumps({"sum": a + b}))
    return f"Add {a} and {b}", call, f"The sum of {a} and {b} is {a + b}."


def _product(rng: random.Random) -> tuple[str, Call, str]:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    call = Call("multiply", {"a": a, "b": b}, json.dumps({"product": a * b}))
    return f"Multiply {a} by {b}", call, f"{a} times {b} is {a * b}."


def _timer(rng: random.Random) -> tuple[str, Call, str]:
    minutes = rng.randint(1, 99)
    call = Call("set_timer", {"minutes": minutes}, json.dumps({"ok": True}))
    return f"Set a timer for {minutes} minutes", call, f"The timer is set to {minutes} minutes."


def _shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    return rng.sample(items, len(items))
