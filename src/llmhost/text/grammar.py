"""Grammars that answers are held to, for any vocabulary whose tokens stand for bytes.

llguidance keeps each sequence's place in its grammar and says which tokens may follow, as packed bits. A grammar is
read once in a child process (`grammar_child`), compiled once per vocabulary and kept; a sequence gets a copy of the
compiled one. Masks are filled without Python's lock.

A model that thinks first is held from the end of its thoughts on.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from llmhost.core.errors import BadRequest, InvalidGrammar, InvalidSchema, InvalidTool
from llmhost.core.request import GrammarSpec
from llmhost.core.step import GrammarState
from llmhost.text.grammar_child import READER, Died
from llmhost.text.grammar_source import LIMITS, MAX_SPEC_BYTES, Unreadable, in_our_words

Masks = NDArray[np.int32]
"""A line per place where a token is drawn, a bit per token id, the lowest id in the lowest bit."""

KEPT_GRAMMARS = 128
KEPT_BYTES = 4 * 1024 * 1024
"""Compiled grammars kept for one vocabulary, by number and by the length of their texts."""


class Thinking(NamedTuple):
    """The tokens around a model's thoughts."""

    begin: int
    end: int
    is_free: bool
    """The model may begin to think without having been told to by its prompt."""


@dataclass(frozen=True)
class Vocabulary:
    """What a grammar must know of a model's tokens."""

    tokens: Callable[[], Sequence[bytes]]
    """Each id's bytes, empty for ids that stand for no text. Called once, when the first grammar comes."""
    eos_ids: frozenset[int]
    encode: Callable[[str], list[int]]
    thinking: Thinking | None = None
    controls: frozenset[int] = frozenset()
    """Ids that part a prompt's turns, among others."""
    drops_space: bool = False
    """The text of an answer lacks the space that its first token begins with."""
    words: Sequence[str] = ()
    """Set where tokens are a space and one of these words, which can't spell everything that a grammar may ask for."""

    @cached_property
    def known(self) -> tuple[bytes, ...]:
        return tuple(self.tokens())

    @cached_property
    def ends(self) -> list[int]:
        """The end ids that there are tokens for."""
        return sorted(token for token in self.eos_ids if token < len(self.known))

    @cached_property
    def extended(self) -> tuple[bytes, ...]:
        """What llguidance takes for granted is added after the last id, and never drawn: every byte, and an end."""
        missing = {bytes([byte]) for byte in range(256)}.difference(self.known)
        return (*self.known, *sorted(missing), *([] if self.ends else [b""]))

    @cached_property
    def engine(self) -> LLTokenizer:
        """llguidance's view. Making it holds Python's lock for half a second when there are 150,000 tokens."""
        ends = self.ends or [len(self.extended) - 1]
        speller = TokenizerWrapper(_Speller(self, ends[0]))
        return LLTokenizer(speller, n_vocab=len(self.extended), eos_token=ends)

    @cached_property
    def width(self) -> int:
        """Words of a mask."""
        return _words(len(self.known))

    @cached_property
    def _every(self) -> Masks:
        return self._line(())

    @cached_property
    def _but_ends(self) -> Masks:
        return self._line(self.ends)

    def _line(self, barred: Collection[int]) -> Masks:
        may = np.zeros(self.width * 32, np.bool_)
        may[: len(self.known)] = True
        may[list(barred)] = False
        return np.packbits(may, bitorder="little").view(np.int32)

    def is_thinking_after(self, prompt: Sequence[int]) -> bool | None:
        """Whether an answer begins amid thoughts; None when it may begin with them.

        What the last turn of the prompt has of their marks decides. A turn begins with a control token, so that a mark
        in somebody's message is none of ours.
        """
        if self.thinking is None:
            return False
        begin, end, is_free = self.thinking
        for token in reversed(prompt):
            if token in (begin, end):
                return token == begin
            if token in self.controls:
                break
        return None if is_free else False

    def write(self, sheet: "Sheet", out: Masks) -> None:
        """Fill `out`, which is all zeros, as `sheet` says."""
        width = _words(self.engine.vocab_size)
        direct = out.shape[1] == width and len(self.extended) == len(self.known)
        masks = out if direct else np.zeros((len(out), width), np.int32)
        room = (masks.ctypes.data, width * 4, len(masks))
        if plain := [(matcher, line) for matcher, line, ahead in sheet.wanted if not ahead]:
            _executor().unsafe_compute_mask_ptr(plain, *room)
        if drafted := [want for want in sheet.wanted if want[2]]:
            _executor().unsafe_compute_mask_ptr_with_draft_token(drafted, *room)
        for matcher, line, ahead in sheet.wanted:
            if matcher.is_error():
                masks[line : line + 1 + len(ahead)] = 0
        shared = min(self.width, out.shape[1])
        if not direct:
            out[:, :shared] = masks[:, :shared] & self._every[:shared]
        out[sheet.free, :shared] = self._but_ends[:shared]
        if sheet.openings:
            assert self.thinking is not None
            begin = self.thinking.begin
            out.view(np.uint32)[sheet.openings, begin >> 5] |= np.uint32(1 << (begin & 31))


class _Speller:
    """A vocabulary as llguidance asks for it. Called for texts that the grammar leaves no choice about."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, end: int) -> None:
        self.tokens = vocabulary.extended
        self.eos_token_id = end
        self.special_token_ids = [token for token, text in enumerate(self.tokens) if not text]
        self._encode = vocabulary.encode
        self._longest = max(map(len, self.tokens))
        self._ids = {text: token for token, text in enumerate(self.tokens) if text}

    def __call__(self, text: bytes) -> list[int]:
        """The model's own tokens for `text`, or, where its tokenizer would add to the text, the longest that fit."""
        try:
            ids = self._encode(text.decode())
        except UnicodeDecodeError:
            ids = []
        return ids if b"".join(self.tokens[token] for token in ids) == text else self._greedy(text)

    def _greedy(self, text: bytes) -> list[int]:
        ids, here = [], 0
        while here < len(text):
            ends = range(min(len(text), here + self._longest), here, -1)
            end = next(end for end in ends if text[here:end] in self._ids)  # one byte at the least
            ids.append(self._ids[text[here:end]])
            here = end
        return ids


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar ready to be copied: as an answer begins, and as it goes on after thoughts."""

    first: LLMatcher
    later: LLMatcher


class Grammars:
    """The grammars of one vocabulary. Any thread may use it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._kept: OrderedDict[GrammarSpec, Compiled | Unreadable] = OrderedDict()
        self._size = 0

    def compile(self, spec: GrammarSpec) -> None:
        """Make `spec` ready for `state`. Raises BadRequest."""
        self._compiled(spec)

    def state(self, spec: GrammarSpec, prompt: Sequence[int] = ()) -> GrammarState:
        return Answer(self._vocabulary, self._compiled(spec), prompt)

    def _compiled(self, spec: GrammarSpec) -> Compiled:
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

    def _compile(self, spec: GrammarSpec) -> Compiled | Unreadable:
        try:
            return _compile(spec, self._vocabulary)
        except Unreadable as fault:
            return fault

    def _keep(self, spec: GrammarSpec, found: Compiled | Unreadable) -> None:
        """Refusals too: what takes a second to refuse is refused once."""
        with self._lock:
            if spec not in self._kept:
                self._kept[spec] = found
                self._size += len(spec.text)
            while len(self._kept) > KEPT_GRAMMARS or self._size > KEPT_BYTES:
                dropped, _ = self._kept.popitem(last=False)
                self._size -= len(dropped.text)


class Answer:
    """Where one sequence stands. Implements the GrammarState protocol."""

    __slots__ = ("_grammar", "_is_thinking", "_matcher", "vocabulary")

    def __init__(
        self, vocabulary: Vocabulary, grammar: Compiled, prompt: Sequence[int] = ()
    ) -> None:
        self.vocabulary = vocabulary
        self._grammar = grammar
        self._is_thinking = vocabulary.is_thinking_after(prompt)
        """None where thoughts may begin with the next token."""
        begun = grammar.later if self._is_thinking else grammar.first
        self._matcher: LLMatcher = begun.deep_copy()

    @property
    def is_ended(self) -> bool:
        if self._is_thinking:
            return False
        if self._matcher.is_stopped():
            return not self._matcher.is_error()
        return not self.vocabulary.ends and self._is_exhausted()

    def accept(self, token: int) -> None:
        thoughts, matcher = self._split((token,))
        if thoughts:
            self._is_thinking = matcher is None
            self._matcher = matcher or self._grammar.later.deep_copy()
        elif matcher is not None:
            self._is_thinking = False
            matcher.consume_token(token)

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        thoughts, matcher = self._split(tokens)
        if matcher is None:
            return thoughts
        return thoughts + int(matcher.validate_tokens(list(tokens[thoughts:])))

    def ask(self, guesses: Sequence[int], line: int, sheet: "Sheet") -> None:
        """Have the masks of the next place, and of the place after each guess, written from `line` on."""
        thoughts, matcher = self._split(guesses)
        if matcher is not None:
            sheet.wanted.append((matcher, line + thoughts, list(guesses[thoughts:])))
        if self._is_thinking is None:
            sheet.openings.append(line)
            if thoughts:
                sheet.wanted.append((self._matcher, line, []))
        free = range(line, line + thoughts + (matcher is None))
        sheet.free.extend(free if self._is_thinking else free[1:])

    def _split(self, tokens: Sequence[int]) -> tuple[int, LLMatcher | None]:
        """How many of `tokens` are thoughts, and what holds the rest; None when they don't end the thoughts."""
        thinking = self.vocabulary.thinking
        if self._is_thinking is False or thinking is None:
            return 0, self._matcher
        if self._is_thinking is None and (not tokens or tokens[0] != thinking.begin):
            return 0, self._matcher
        if thinking.end not in tokens:
            return len(tokens), None
        after = self._matcher if self._is_thinking else self._grammar.later.deep_copy()
        return tokens.index(thinking.end) + 1, after

    def _is_exhausted(self) -> bool:
        """The answer is complete, and no token of the vocabulary may follow."""
        if not self._matcher.is_accepting():
            return False
        line = np.zeros((1, self.vocabulary.width), np.int32)
        fill_masks([self], line)
        return not line.any()


@dataclass(slots=True)
class Sheet:
    """What one filling of masks is to write, by the number of the line."""

    wanted: list[tuple[LLMatcher, int, list[int]]] = field(default_factory=list)
    openings: list[int] = field(default_factory=list)
    """Where thoughts may begin, beside what the grammar allows."""
    free: list[int] = field(default_factory=list)
    """Amid thoughts, where only an end of the answer is barred."""


def fill_masks(
    states: Sequence[GrammarState], out: Masks, guesses: Sequence[Sequence[int]] = ()
) -> None:
    """Write which tokens may come next, in `states`' order: a line for each state, and one after each of its guesses.

    `out` is C-contiguous, with a line for each of them and 32 ids per word; ids that the vocabulary lacks are barred.
    A place after a guess that its grammar bars has an empty line, and so has a state whose grammar became too complex
    on the way: nothing may be drawn there. All states are of one vocabulary. Python's lock is free meanwhile.
    """
    sheet, line = Sheet(), 0
    vocabulary: Vocabulary | None = None
    for place, state in enumerate(states):
        assert isinstance(state, Answer)
        vocabulary = state.vocabulary
        ahead = guesses[place] if guesses else ()
        state.ask(ahead, line, sheet)
        line += 1 + len(ahead)
    out.fill(0)
    if vocabulary is not None:
        vocabulary.write(sheet, out)


def _words(bits: int) -> int:
    return (bits + 31) // 32


@cache
def _executor() -> LLExecutor:
    """Threads that fill masks, shared by all models."""
    return LLExecutor()


def refusal(spec: GrammarSpec, fault: Unreadable) -> BadRequest:
    """What a caller hears of a grammar that can't be used."""
    param = None if spec.param is None else spec.param + fault.place
    if spec.kind == "tool_calls":
        return InvalidTool(f"A tool's parameters can't be enforced: {fault.message}.", param=param)
    if spec.kind == "json_schema":
        return InvalidSchema(f"The JSON schema can't be enforced: {fault.message}.", param=param)
    return InvalidGrammar(f"The {spec.kind} can't be enforced: {fault.message}.", param=param)


def _compile(spec: GrammarSpec, vocabulary: Vocabulary) -> Compiled:
    """Raises Unreadable."""
    if (size := len(spec.text.encode(errors="replace"))) > MAX_SPEC_BYTES:
        raise Unreadable(f"its text is {size} bytes long, and {MAX_SPEC_BYTES} are taken")
    try:
        told = READER.ask({"kind": spec.kind, "text": spec.text, "is_strict": spec.is_strict})
    except Died as death:
        raise Unreadable(str(death)) from None
    if "fault" in told:
        raise Unreadable(told["fault"], told["place"])
    if vocabulary.words:
        only = _matcher(_in_words(told["grammar"], vocabulary.words), vocabulary)
        return Compiled(only, only)
    later = _matcher(told["grammar"], vocabulary)
    if not vocabulary.drops_space:
        return Compiled(later, later)
    # JSON may come with or without the space that its text will lack; anything else could begin with a space itself.
    space = '" "?' if spec.kind in ("json_schema", "json_object", "tool_calls") else '" "'
    return Compiled(_matcher(_after(space, told["grammar"]), vocabulary), later)


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
    if matcher.is_error():
        raise Unreadable(in_our_words(matcher.get_error()))
    return matcher
