"""What a guard is to compute about some conversations, and what its numbers and words mean for each of them.

A classifier reads texts, in windows where they are longer than it can read; a guard that generates text is asked in the
form of its family, and says a few tokens. Pure but for the tokenizer.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from llmhost.config.schema.models import ModelSpec
from llmhost.core.errors import ContextTooLong, InvalidValue
from llmhost.core.output import Delta
from llmhost.core.ports import RunnerFacts, Tokenizer
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.safety.guards.conversation import ASSISTANT, USER, Conversation, Turn
from llmhost.safety.guards.form import Form
from llmhost.safety.guards.forms import FORMS
from llmhost.safety.guards.labels import categories_of, scores_of
from llmhost.safety.guards.said import Said

OVERLAP_SHARE = 8
"""Windows of a long text share this part of a window, so that a sentence is whole in one of them."""
MOST_SEQUENCES = 4096
"""Of one call, so that a text of megabytes can't fill the engine."""
LIKELIEST = 20
"""Of the words that a guard might have said, so many are looked at."""
GREEDY = Sampling(temperature=0.0, logprobs=LIKELIEST)

Scores = dict[str, float]
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sitting:
    """All sequences about some conversations."""

    prompts: tuple[Ids, ...]
    about: tuple[int, ...]
    """Of each prompt, the place of the conversation that it is about."""
    count: int
    """Conversations."""
    categories: frozenset[str]
    """All that may be found."""
    is_classifier: bool
    max_tokens: int
    read: Callable[[int, Sequence[Delta]], Scores]
    """What a prompt's deltas say, by category."""

    @property
    def sampling(self) -> Sampling:
        return Sampling() if self.is_classifier else GREEDY

    @property
    def poolings(self) -> tuple[Pooling, ...]:
        return (Pooling("classify"),) * len(self.prompts) if self.is_classifier else ()

    def scores(self, deltas: Mapping[int, Sequence[Delta]]) -> list[Scores]:
        """Of each conversation, by category: the highest of all that was asked about it."""
        found: list[Scores] = [{} for _ in range(self.count)]
        for place, about in enumerate(self.about):
            for category, score in self.read(place, deltas.get(place, ())).items():
                found[about][category] = max(found[about].get(category, 0.0), score)
        return found


@dataclass(frozen=True, slots=True)
class Asking:
    """One guard model, as it is asked."""

    model: str
    spec: ModelSpec
    facts: RunnerFacts
    tokenizer: Tokenizer
    longest_tokens: int
    params: Sequence[str] = field(default=())
    """For errors: where each conversation came from."""

    def sitting(self, conversations: Sequence[Conversation]) -> Sitting:
        """Raises InvalidValue for a model that is no guard, and ContextTooLong for a text that it can't read."""
        check_guard(self.model, self.spec, self.facts, self.tokenizer)
        made = self._classified if self.facts.task == "classify" else self._generated
        sitting = made(conversations)
        if len(sitting.prompts) > MOST_SEQUENCES:
            raise InvalidValue(
                f"To judge this, the model {self.model!r} would have to read {len(sitting.prompts)} windows;"
                f" {MOST_SEQUENCES} are allowed at once. Send less text.",
                param="input",
            )
        return sitting

    def _param(self, place: int) -> str:
        return self.params[place] if self.params else "input"

    # ------------------------------------------------------------ classifiers

    def _classified(self, conversations: Sequence[Conversation]) -> Sitting:
        categories = categories_of(self.facts.labels, self.spec.guard_labels, model=self.model)
        prompts: list[Ids] = []
        about: list[int] = []
        for place, conversation in enumerate(conversations):
            for window in self._windows(conversation[-1].text, self._param(place)):
                prompts.append(window)
                about.append(place)

        def read(_: int, deltas: Sequence[Delta]) -> Scores:
            pooled = next((d.pooled for d in deltas if d.pooled is not None), None)
            return {} if pooled is None else scores_of(categories, pooled)

        return Sitting(
            prompts=tuple(prompts),
            about=tuple(about),
            count=len(conversations),
            categories=frozenset(one for one in categories if one is not None),
            is_classifier=True,
            max_tokens=0,
            read=read,
        )

    def _windows(self, text: str, param: str) -> Iterator[Ids]:
        """The text's tokens between the special ones, as often as it takes to read all of it."""
        whole = tuple(self.tokenizer.encode(text))
        if not whole:
            raise InvalidValue("The text is empty: it has no tokens.", param=param)
        if len(whole) <= self.longest_tokens:
            yield whole
            return
        bare = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        head, tail = _around(whole, bare)
        size = max(self.longest_tokens - len(head) - len(tail), 1)
        step = max(size - size // OVERLAP_SHARE, 1)
        for start in range(0, max(len(bare) - (size - step), 1), step):
            yield (*head, *bare[start : start + size], *tail)

    # ------------------------------------------------------------ guards that generate

    def _generated(self, conversations: Sequence[Conversation]) -> Sitting:
        form, is_own = form_of(self.spec, self.tokenizer)
        questions = []
        prompts: list[Ids] = []
        about: list[int] = []
        special = self.tokenizer.marks.special
        for place, given in enumerate(conversations):
            conversation = tuple(Turn(turn.role, spelled_out(turn.text, special)) for turn in given)
            for part in self._parts(conversation, form, is_own, place):
                for question in form.questions(part, is_own=is_own):
                    prompts.append(self._rendered(question.messages, question.kwargs))
                    about.append(place)
                    questions.append(question)

        def read(at: int, deltas: Sequence[Delta]) -> Scores:
            return form.scores(questions[at], said_in(deltas, self.tokenizer))

        return Sitting(
            prompts=tuple(prompts),
            about=tuple(about),
            count=len(conversations),
            categories=form.categories,
            is_classifier=False,
            max_tokens=form.max_tokens,
            read=read,
        )

    def _parts(
        self, conversation: Conversation, form: Form, is_own: bool, place: int
    ) -> Iterator[Conversation]:
        """The conversation, if the guard can read it; else its end; else its last turn in pieces."""
        room = self.longest_tokens - form.max_tokens
        last, is_answer = conversation[-1], conversation[-1].role == ASSISTANT
        for shown in (conversation, conversation[-2:] if is_answer else (last,)):
            if (longest := self._longest(shown, form, is_own)) <= room:
                yield shown
                return
        before = (Turn(USER, "(left out)"),) if is_answer else ()
        waiting = [last.text]
        while waiting:
            text = waiting.pop()
            piece = (*before, Turn(last.role, text))
            if (longest := self._longest(piece, form, is_own)) <= room:
                yield piece
            elif len(text) > 1:
                middle = len(text) // 2
                waiting += (text[middle:], text[:middle])
            else:
                raise ContextTooLong(
                    prompt_tokens=longest,
                    max_tokens=form.max_tokens,
                    limit_tokens=self.longest_tokens,
                    param=self._param(place),
                )

    def _longest(self, conversation: Conversation, form: Form, is_own: bool) -> int:
        questions = form.questions(conversation, is_own=is_own)
        return max(len(self._rendered(one.messages, one.kwargs)) for one in questions)

    def _rendered(self, messages: Sequence[Mapping[str, Any]], kwargs: Mapping[str, Any]) -> Ids:
        text = self.tokenizer.render_chat(messages, **kwargs)
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))


def check_guard(model: str, spec: ModelSpec, facts: RunnerFacts, tokenizer: Tokenizer) -> None:
    """Raises InvalidValue where a model can't judge texts, and says what would make it."""
    if facts.task == "classify":
        if spec.guard not in (None, "auto", "classifier"):
            raise InvalidValue(
                f"The model {model!r} classifies texts, and [models.{model}] guard = {spec.guard!r} is for models"
                ' that generate text. Say "classifier".',
                param="model",
            )
        return
    if facts.task != "generate":
        raise InvalidValue(
            f"The model {model!r} makes embeddings, and judges nothing. Ask a classifier or a guard model.",
            param="model",
        )
    name = spec.guard or "auto"
    if name == "classifier":
        raise InvalidValue(
            f"The model {model!r} generates text, and [models.{model}] guard says that it classifies.",
            param="model",
        )
    if name == "auto" and tokenizer.marks.guard is None:
        raise InvalidValue(
            f"The model {model!r} is not known to be a guard: its chat template is none of theirs. Set"
            f" [models.{model}] guard to one of {', '.join(FORMS)}.",
            param="model",
        )


def form_of(spec: ModelSpec, tokenizer: Tokenizer) -> tuple[Form, bool]:
    """How a model that generates is asked, and whether its own template writes the task."""
    found = tokenizer.marks.guard
    name = spec.guard if spec.guard not in (None, "auto") else found
    assert name is not None, "check_guard has looked"
    return FORMS[name], found is not None and _family(found) == _family(name)


def spelled_out(text: str, special: tuple[str, ...]) -> str:
    """The text without what the guard's tokenizer would take for a special token: nobody ends his turn in a prompt and
    goes on as somebody else."""
    if not special:
        return text
    return _special_in(special).sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


@lru_cache(maxsize=64)
def _special_in(special: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(special, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)))


def said_in(deltas: Sequence[Delta], tokenizer: Tokenizer) -> Said:
    """What a sequence said, with what else each of its tokens could have been."""
    told = [entry for delta in deltas for entry in delta.logprobs]
    spelled = {t for entry in told for t in (entry.token, *(token for token, _ in entry.top))}
    texts = {token: tokenizer.decode([token]) for token in spelled}
    return Said(
        "".join(delta.text for delta in deltas),
        tuple(texts[entry.token] for entry in told),
        tuple(tuple((texts[token], logprob) for token, logprob in entry.top) for entry in told),
    )


def _family(name: str) -> str:
    return "llama-guard" if name.startswith("llama-guard") else name


def _around(whole: Ids, bare: Ids) -> tuple[Ids, Ids]:
    """The special tokens before and behind a text's own."""
    extra = len(whole) - len(bare)
    for before in range(extra + 1):
        if whole[before : before + len(bare)] == bare:
            return whole[:before], whole[before + len(bare) :]
    return (), ()
