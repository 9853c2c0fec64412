"""What a caller asks for, once it has been checked: nothing unvalidated has a type that the scheduler accepts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from enum import StrEnum
from operator import attrgetter
from typing import Any

from llmhost.core.caller import Caller as Caller  # plugins know it from here
from llmhost.core.grammar import GrammarSpec
from llmhost.core.leaves import leaves
from llmhost.core.sampling import DEFAULT_SAMPLING, Sampling

MOST_NOTES = 8
"""About one request: of so many tokenizers and rules something is known."""


class Kind(StrEnum):
    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    SCORE = "score"
    CLASSIFY = "classify"
    RESPONSE = "response"
    DECISION = "decision"
    MODERATION = "moderation"

    @property
    def is_chat(self) -> bool:
        """It has messages, which a template makes a prompt of."""
        return self in _CHATS

    @property
    def prompt_field(self) -> str:
        """The field that the prompt comes in."""
        return _FIELDS.get(self, "prompt")


_CHATS = (Kind.CHAT, Kind.RESPONSE, Kind.DECISION)
_FIELDS = {
    Kind.CHAT: "messages",
    Kind.RESPONSE: "input",
    Kind.DECISION: "input",
    Kind.MODERATION: "input",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingWish:
    """What a request for vectors or scores says beside its texts, which are its `prompts`."""

    fields: tuple[tuple[str, int], ...] = (("input", 1),)
    """The parameters that the texts came in, and how many each brought."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Places in `prompts` of the two texts that each score compares."""
    is_cut: bool = False
    """A text that is too long is cut at its end, and not refused."""
    most_tokens: int | None = None
    """What it is cut to, when that is less than the model takes."""
    most_document_tokens: int | None = None
    """What the second text of each pair is cut to, beside that; None for no such bound."""
    dimensions: int | None = None
    """So many numbers of each vector; None for all."""
    is_raw: bool = False
    """See Pooling."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about a conversation, and the only answers that there are."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextGrammar:
    """What the text that a tool takes must look like, in Lark."""

    tool: str
    lark: str
    param: str
    """The field that it came in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request for generated text. `prompts` holds text or token ids; a chat has `messages` and no prompts.

    With `pooled` it asks for a vector or scores of its prompts instead.
    """

    request_id: str
    kind: Kind
    model: str
    messages: tuple[dict[str, Any], ...] = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()
    suffix: str = ""
    """What comes after the answer, for models that fill in the middle."""
    prediction: str | None = None
    """What the caller thinks that the answer is; it makes it no other, and perhaps quicker."""
    pooled: PoolingWish | None = None
    questions: tuple[Question, ...] = ()
    """Instead of an answer, how likely each of the answers to each of these is, asked at the end of `messages`."""
    tools: tuple[dict[str, Any], ...] | None = None
    grammar: GrammarSpec | None = None
    """What the answer must look like; of kind tool_calls, it is calls and not text."""
    may_call: bool = False
    """The answer may hold calls of the tools, in the model's own format."""
    most_calls: int | None = None
    """Of which no more than so many count."""
    custom_tools: frozenset[str] = frozenset()
    """Names of tools that take a text, and are told to the model as functions of one argument."""
    text_grammars: tuple[TextGrammar, ...] = ()
    """What the texts of some of these are held to where the model decides upon its calls."""
    tool_places: Mapping[str, str] = field(default_factory=dict)
    """Of each tool, behind `tools`: the field that says what it may be given."""
    hides_thoughts: bool = False
    """Thoughts are not told, though they are counted."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    """A chat's prompt ends with the beginning of an answer."""
    continue_final_message: bool = False
    """A chat's prompt ends within its last message, which the answer goes on with."""
    add_special_tokens: bool = True
    """A completion's prompt begins as the tokenizer has texts begin; a chat's template says that itself."""
    truncate_prompt_tokens: int | None = None
    """Of longer prompts only so many of the last tokens are taken."""
    sampling: Sampling = DEFAULT_SAMPLING
    max_tokens: int | None = None
    """0: nothing is said, only the prompt is looked at."""
    warms: bool = False
    """Nothing is said, and the prompt is computed all the same: what comes after it begins with it."""
    only_loads: bool = False
    """Nothing is asked but that the model is there."""
    context_tokens: int | None = None
    """Prompt and answer together have no more than so many, if that is less than the model holds."""
    takes_less: bool = False
    """Where the prompt leaves room for fewer than `max_tokens`, those are enough."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    tells_stop: bool = False
    """The stop string that ends an answer is part of it."""
    shows_special: bool = False
    """Special tokens are told as text."""
    stop_token_ids: tuple[int, ...] = ()
    """Beside the model's own ends."""
    bad_words: tuple[str, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    best_of: int | None = None
    """Of so many sequences for each prompt the `n` likeliest are the answer; None: as many as `n`."""
    echo: bool = False
    """The prompt comes before the answer."""
    opening: str = ""
    """Of a chat: what its answers repeat before their own, which is the last message."""
    return_token_ids: bool = False
    include_cost: bool = False
    """The answer's usage is to say what it has cost."""
    priority: int = 0
    has_priority: bool = False
    """The body names it, so that no header does."""
    batch: str | None = None
    """The batch that it is a line of."""
    is_flex: bool = False
    """It gave up its place for others; `priority` holds that already."""
    timeout_ms: int | None = None
    """From its arrival: what has not ended by then is ended."""
    cache_salt: str = ""
    """Shares computed prompt blocks only with requests of the same one."""
    stream: bool = False
    can_be_held: bool = False
    """Whoever answers it looks whether its whole answer waits for a reviewer."""
    client_request_id: str | None = None
    user: str | None = None
    _texts: list[str] | None = field(default=None, init=False, repr=False, compare=False)
    _text: str | None = field(default=None, init=False, repr=False, compare=False)
    """Of one that may come `again`, which plugins ask for each time."""
    _notes: dict[object, object] | None = field(default=None, init=False, repr=False, compare=False)
    _all: tuple[Any, ...] | None = field(default=None, init=False, repr=False, compare=False)
    """Its fields, for those that come `again`."""

    def let_be_held(self) -> None:
        """Set `can_be_held` of a request that was just made, and that nobody else has: a copy would cost as much as all
        that is read of its body."""
        object.__setattr__(self, "can_be_held", True)
        object.__setattr__(self, "_all", None)

    def take_notes(self) -> None:
        """It may come again: from now on it is remembered what is found out about it, for all that come `again`."""
        if self._notes is None:
            object.__setattr__(self, "_notes", {})
            object.__setattr__(self, "_all", None)

    def note(self, about: object, found: object) -> None:
        """Keep what a pure function of this request and of `about` has found, if it may come again."""
        if self._notes is not None:
            if len(self._notes) >= MOST_NOTES:
                self._notes.clear()
            self._notes[about] = found

    def noted(self, about: object) -> Any:
        """What is known about it; None where nothing is."""
        return None if self._notes is None else self._notes.get(about)

    def again(self, request_id: str, client_request_id: str | None) -> "GenerationRequest":
        """The same once more, under ids of its own."""
        known = self._all
        if known is None:
            if self._notes is not None:
                object.__setattr__(self, "_text", self.text)  # once, for all that come
            known = _read_all(self)
            object.__setattr__(self, "_all", known)
        copied = _Copy(*known)
        copied.request_id, copied.client_request_id = request_id, client_request_id
        copied.__class__ = GenerationRequest
        request: GenerationRequest = copied
        return request

    def without_words(self) -> "GenerationRequest":
        """The same, and nothing is said in it: what is `saying` something goes on from there."""
        return replace(self, messages=(), prompts=())

    def saying(
        self,
        request_id: str,
        client_request_id: str | None,
        *,
        messages: tuple[dict[str, Any], ...] = (),
        prompts: tuple[str, ...] = (),
    ) -> "GenerationRequest":
        """The same under ids of its own, and something is said in it: of one `without_words`."""
        known = self._all
        if known is None:
            known = _read_all(self)
            object.__setattr__(self, "_all", known)
        copied = _Copy(*known)
        copied.request_id, copied.client_request_id = request_id, client_request_id
        copied.messages, copied.prompts = messages, prompts
        copied.__class__ = GenerationRequest
        request: GenerationRequest = copied
        return request

    @property
    def runs(self) -> int:
        """Sequences for each prompt."""
        return self.best_of or self.n

    @property
    def text(self) -> str:
        """All that the caller wrote and that can reach the prompt, for rules and plugins that read it."""
        return "\n".join(self.texts) if self._text is None else self._text

    @property
    def size(self) -> int:
        """Characters of `text` and a prediction, and token ids: what rendering and tokenising it will cost at least."""
        ids = sum(len(prompt) for prompt in self.prompts if isinstance(prompt, tuple))
        texts = self.texts
        return sum(map(len, texts)) + max(len(texts) - 1, 0) + ids + len(self.prediction or "")

    @property
    def texts(self) -> list[str]:
        """`text` in parts, whose ends are what `^` and `$` mean: prompts, contents of messages, what else each
        message holds, the template's variables, tools, and the form that the answer must have."""
        if self._texts is None:  # rules, plugins and limits of size all ask
            object.__setattr__(self, "_texts", self._all_texts())
        return self._texts or []

    def _all_texts(self) -> list[str]:
        texts = self._prompt_texts()
        texts += ["\n".join((asked.text, *asked.answers)) for asked in self.questions]
        if self.tools:
            texts.append("\n".join(leaves(self.tools)))
        if self.grammar is not None and self.grammar.kind != "tool_calls":
            texts.append(self.grammar.words)
        return texts

    def _prompt_texts(self) -> list[str]:
        if not self.kind.is_chat:
            texts = [prompt for prompt in self.prompts if isinstance(prompt, str)]
            return [*texts, self.suffix] if self.suffix else texts
        texts = []
        for message in self.messages:
            if content := _content_text(message.get("content")):
                texts.append(content)
            if len(message) > 2 or message.keys() != _BARE:
                extras = [v for key, v in message.items() if key not in _BARE and v]
                if extras and (text := "\n".join(leaves(extras))):
                    texts.append(text)
        if self.template_kwargs and (text := "\n".join(leaves(self.template_kwargs))):
            texts.append(text)
        return texts


_NAMES = tuple(field.name for field in fields(GenerationRequest))
_read_all = attrgetter(*_NAMES)
# Of what is about to become a request: its fields are set by plain assignments, where a frozen class needs a call for
# each, which is ten times as much.
_Copy: Any = make_dataclass("_Copy", _NAMES, slots=True, eq=False, repr=False)
_BARE = {"role", "content"}
"""What every message has."""


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""
