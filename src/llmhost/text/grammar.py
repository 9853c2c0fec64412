"""Grammars that answers are held to, for any vocabulary whose tokens stand for bytes.

llguidance keeps each sequence's place in its grammar and says which tokens may follow, as packed bits. A grammar is
read once in a child process (`grammar_child`), compiled once per vocabulary and kept; a sequence gets a copy of the
compiled one. Masks are filled without Python's lock.

A model that thinks first is held from the end of its thoughts on.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher

from llmhost.core.errors import BadRequest, InvalidGrammar, InvalidSchema, InvalidTool
from llmhost.core.grammar import GrammarSpec
from llmhost.core.step import GrammarState
from llmhost.text.answer import Answer, Closing, Compiled, fill_masks
from llmhost.text.grammar_calls import with_tokens
from llmhost.text.grammar_child import READER, Died
from llmhost.text.grammar_source import LIMITS, MAX_SPEC_BYTES, Unreadable, in_our_words
from llmhost.text.grammar_template import form_of
from llmhost.text.held_calls import CallsAnswer, CompiledCalls
from llmhost.text.vocabulary import Masks, Thinking, Vocabulary

__all__ = ["Closing", "Grammars", "Masks", "Thinking", "Vocabulary", "fill_masks"]

KEPT_GRAMMARS = 128
PROBED_TOKENS = 3
KEPT_BYTES = 4 * 1024 * 1024
"""Compiled grammars kept for one vocabulary, by number and by the length of their texts."""


class Grammars:
    """The grammars of one vocabulary. Any thread may use it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._kept: OrderedDict[GrammarSpec, Compiled | CompiledCalls | Unreadable] = OrderedDict()
        self._size = 0

    def compile(self, spec: GrammarSpec) -> None:
        """Make `spec` ready for `state`. Raises BadRequest."""
        self._compiled(spec)

    def state(self, spec: GrammarSpec, prompt: Sequence[int] = ()) -> GrammarState:
        compiled = self._compiled(spec)
        if isinstance(compiled, CompiledCalls):
            return CallsAnswer(self._vocabulary, compiled, prompt)
        return Answer(self._vocabulary, compiled, prompt)

    def _compiled(self, spec: GrammarSpec) -> Compiled | CompiledCalls:
        with self._lock:
            found = self._kept.get(spec)
            if found is not None:
                self._kept.move_to_end(spec)
        if found is None:
            found = self._compile(spec)
            self._keep(spec, found)
        if isinstance(found, Unreadable):
            raise refusal(spec, found)
        return found

    def _compile(self, spec: GrammarSpec) -> Compiled | CompiledCalls | Unreadable:
        try:
            return _compile(spec, self._vocabulary)
        except Unreadable as fault:
            return fault

    def _keep(self, spec: GrammarSpec, found: Compiled | CompiledCalls | Unreadable) -> None:
        """Refusals too: what takes a second to refuse is refused once."""
        with self._lock:
            if spec not in self._kept:
                self._kept[spec] = found
                self._size += len(spec.text)
            while len(self._kept) > KEPT_GRAMMARS or self._size > KEPT_BYTES:
                dropped, _ = self._kept.popitem(last=False)
                self._size -= len(dropped.text)


def refusal(spec: GrammarSpec, fault: Unreadable) -> BadRequest:
    """What a caller hears of a grammar that can't be used."""
    param = None if spec.param is None else spec.param + fault.place
    if spec.kind in ("tool_calls", "auto_calls"):
        return InvalidTool(f"A tool's parameters can't be enforced: {fault.message}.", param=param)
    if spec.kind == "json_schema":
        return InvalidSchema(f"The JSON schema can't be enforced: {fault.message}.", param=param)
    return InvalidGrammar(f"The {spec.kind} can't be enforced: {fault.message}.", param=param)


def _compile(spec: GrammarSpec, vocabulary: Vocabulary) -> Compiled | CompiledCalls:
    """Raises Unreadable."""
    if (size := len(spec.text.encode(errors="replace"))) > MAX_SPEC_BYTES:
        raise Unreadable(f"its text is {size} bytes long, and {MAX_SPEC_BYTES} are taken")
    try:
        told = READER.ask({"kind": spec.kind, "text": spec.text, "is_strict": spec.is_strict})
    except Died as death:
        raise Unreadable(str(death)) from None
    if "fault" in told:
        raise Unreadable(told["fault"], told["place"])
    if spec.kind == "auto_calls":
        wish = json.loads(spec.text)
        grammar = with_tokens(told["grammar"], vocabulary.specials)
        form, matcher = form_of(wish), _matcher(grammar, vocabulary)
        names = [tool["name"] for tool in wish["tools"]]
        return CompiledCalls.of(matcher, form, vocabulary, names, many=wish["many"])
    if vocabulary.words:
        only = _matcher(_in_words(told["grammar"], vocabulary.words), vocabulary)
        return Compiled(only, only)
    is_json = spec.kind in ("json_schema", "json_object", "tool_calls")
    later = _matcher(told["grammar"], vocabulary)
    if not vocabulary.drops_space:
        return Compiled(later, later, is_json)
    # JSON may come with or without the space that its text will lack; anything else could begin with a space itself.
    space = '" "?' if is_json else '" "'
    return Compiled(_matcher(_after(space, told["grammar"]), vocabulary), later, is_json)


def _after(space: str, grammar: str) -> str:
    """The grammar with a space before it."""
    parts = (
        json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]
    )
    body = {**parts[0], "name": "body"}
    return json.dumps({"grammars": [{"lark_grammar": f"start: {space} @body"}, body, *parts[1:]]})


def _in_words(grammar: str, words: Sequence[str]) -> str:
    """A regex or a choice, narrowed down to what is said in `words`, so that no answer comes to a dead end."""
    lark = (
        json.loads(grammar)["grammars"][0]["lark_grammar"] if grammar.startswith("{") else grammar
    )
    body = lark.removeprefix("start: ")
    said = "|".join(words)
    return f'start: ANSWER\nANSWER: (" " (BODY)) & /( ({said}))*/\nBODY: {body}'


def _matcher(grammar: str, vocabulary: Vocabulary) -> LLMatcher:
    """Compiled, with its first mask made, so that a copy begins warm. Raises Unreadable."""
    matcher = LLMatcher(vocabulary.engine, grammar, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        may = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        if not may[: len(vocabulary.known)].any():
            raise Unreadable("there is no answer to it that this model's vocabulary can spell")
        _probe(matcher, len(vocabulary.known))
    if matcher.is_error():
        raise Unreadable(in_our_words(matcher.get_error()))
    return matcher


def _probe(matcher: LLMatcher, size: int) -> None:
    """Go a few tokens into an answer: some grammars can be read and are too complex to follow. Raises Unreadable."""
    ahead = matcher.deep_copy()
    for _ in range(PROBED_TOKENS):
        if ahead.is_stopped():
            return
        may = np.unpackbits(np.frombuffer(ahead.compute_bitmask(), np.uint8), bitorder="little")
        if ahead.is_error():
            raise Unreadable(in_our_words(ahead.get_error()))
        tokens = may[:size].nonzero()[0]
        if not len(tokens):
            return
        ahead.consume_token(int(tokens[-1]))
        if ahead.is_error():
            raise Unreadable(in_our_words(ahead.get_error()))
