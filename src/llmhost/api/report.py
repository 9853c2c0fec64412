"""What an answer says beside its text: log probabilities, token ids, and the prompt before it.

One `Report` follows one request, in the order of its deltas. Requests that ask for nothing of it have none.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llmhost.api.tokens import Placed, Spelling, Trail, placed_prompt, written
from llmhost.core.output import Delta, TokenLogprobs
from llmhost.core.ports import Tokenizer
from llmhost.core.request import GenerationRequest
from llmhost.pipeline.terms import Terms

LARGE = 5_000
"""Log probabilities and ids, some 10 ms of writing; what holds more is written in a thread."""
SLICE = 2_000
"""Entries that are encoded at once, because no other thread runs meanwhile."""

_NO_BYTES, _EMPTY_BYTES = b',"bytes":null', b',"bytes":[]'
"""Neither can be within a text, whose quotes are escaped."""

_encode = msgspec.json.encode


def report_of(
    request: GenerationRequest, terms: Terms, tokenizer: Tokenizer, shown: Sequence[str] = ()
) -> "Report | None":
    """None where the answer is its text alone. `shown` are the special tokens that are told as text."""
    sampling = request.sampling
    is_asked = (
        sampling.logprobs is not None
        or sampling.prompt_logprobs is not None
        or request.echo
        or request.return_token_ids
    )
    return Report(request, terms, tokenizer, shown) if is_asked else None


class Report:
    """`note` every delta, then `fresh` those whose choice is `is_ready`; the rest turns what is fresh into JSON."""

    def __init__(
        self,
        request: GenerationRequest,
        terms: Terms,
        tokenizer: Tokenizer,
        shown: Sequence[str] = (),
    ) -> None:
        self._shown = shown
        self._request = request
        self._terms = terms
        self._tokenizer = tokenizer
        self._spelling = Spelling(tokenizer)
        eos: frozenset[int] = frozenset() if request.ignore_eos else tokenizer.eos_ids
        self._ends = eos | terms.stop_ids
        self._is_chat = request.kind.is_chat
        self._trails: dict[int, Trail] = {}
        self._of_prompt: dict[int, list[TokenLogprobs]] = {}
        self._placed: dict[int, list[Placed]] = {}
        self._told: set[int] = set()
        """Prompts of which nothing more will be told."""

    @property
    def echoes(self) -> bool:
        return self._request.echo

    def is_large(self, deltas: Iterable[Delta]) -> bool:
        """Writing this takes so long that others should not wait for it."""
        sampling = self._terms.sampling
        weight = sum(len(delta.tokens) for delta in deltas) * (1 + (sampling.logprobs or 0))
        if self.echoes or self._request.return_token_ids or sampling.prompt_logprobs is not None:
            of_prompts = sum(map(len, self._terms.prompts)) * self._request.n
            weight += of_prompts * (1 + (sampling.prompt_logprobs or 0))
        return weight > LARGE

    def note(self, delta: Delta) -> None:
        """Take what a delta tells of its prompt, which is for all choices of it."""
        if delta.prompt_logprobs:
            self._of_prompt.setdefault(self._prompt(delta.index), []).extend(delta.prompt_logprobs)
        if delta.finish_reason is not None and delta.index % self._request.n == 0:
            self._told.add(self._prompt(delta.index))

    def is_ready(self, index: int) -> bool:
        """All is there that comes before this choice's answer."""
        if not self.echoes or self._request.sampling.logprobs is None:
            return True
        prompt = self._prompt(index)
        told = len(self._of_prompt.get(prompt, ()))
        return prompt in self._told or told >= len(self._terms.prompts[prompt]) - 1

    def fresh(self, delta: Delta) -> list[Placed]:
        """The tokens that come out with the text of this delta."""
        if (trail := self._trails.get(delta.index)) is None:
            trail = Trail(
                self._tokenizer.watch((), self._shown),
                self._ends,
                with_end=not self._is_chat,  # evaluation harnesses count on it in completions
                to_the_end=self._request.return_token_ids,
            )
            self._trails[delta.index] = trail
        return trail.take(delta)

    def echo(self, index: int) -> tuple[str, list[Placed]]:
        """What comes before this choice's answer."""
        prompt = self._prompt(index)
        text = self._terms.echoes[prompt] if self.echoes else ""
        if self._request.sampling.logprobs is None or not self.echoes:
            return text, []
        return text, self._placed_prompt(prompt)

    def complete(self, choice: dict[str, Any], tokens: Sequence[Placed]) -> None:
        """Add to a whole answer's choice what is to be said of it."""
        index = choice["index"]
        text, before = self.echo(index)
        choice["logprobs"] = self.logprobs(index, tokens, before)
        choice |= self.ids(tokens)
        if not self._is_chat:
            choice["text"] = text + choice["text"]
            choice |= self.of_prompt(index)

    def logprobs(self, index: int, tokens: Sequence[Placed], before: Sequence[Placed] = ()) -> Any:
        """The JSON of `logprobs` of an answer's tokens, and of the prompt's before them, as something to encode.

        None where none were asked for.
        """
        if (count := self._request.sampling.logprobs) is None:
            return None
        if self._is_chat:
            thoughts = (placed.logprobs for placed in tokens)
            entries = [self._spelling.chat_entry(each, count) for each in thoughts if each]
            return msgspec.Raw(b'{"content":[' + b",".join(entries) + b'],"refusal":null}')
        behind = len(self._terms.echoes[self._prompt(index)]) if self.echoes else 0
        offsets = [placed.start for placed in before] + [behind + each.start for each in tokens]
        return self._columns([*before, *tokens], count, offsets)

    def entries(self, tokens: Sequence[Placed]) -> list[tuple[Placed, bytes]]:
        """Tokens, and the JSON of the log probabilities of each as responses have it: those that stand for no bytes
        have an empty list, where chats have null."""
        count = self._request.sampling.logprobs or 0
        entry = self._spelling.chat_entry
        return [
            (each, entry(each.logprobs, count).replace(_NO_BYTES, _EMPTY_BYTES))
            for each in tokens
            if each.logprobs
        ]

    def ids(self, tokens: Sequence[Placed]) -> dict[str, Any]:
        """The member `token_ids` of a choice, where it was asked for."""
        if not self._request.return_token_ids:
            return {}
        return {"token_ids": [placed.token for placed in tokens]}

    def of_prompt(self, index: int) -> dict[str, Any]:
        """What is told of the prompt apart from an echo: of a completion's choice, of a chat's whole answer."""
        prompt = self._prompt(index)
        members: dict[str, Any] = {}
        if self._request.return_token_ids:
            members["prompt_token_ids"] = self._terms.prompts[prompt]
        if (count := self._request.sampling.prompt_logprobs) is not None:
            placed = self._placed_prompt(prompt)
            ranked = [self._ranked(each.logprobs, count) for each in placed]
            members["prompt_logprobs"] = _listed(ranked)
        return members

    def _prompt(self, index: int) -> int:
        return index // self._request.n

    def _placed_prompt(self, prompt: int) -> list[Placed]:
        """Once all is told of it."""
        if (placed := self._placed.get(prompt)) is None:
            tokens, thoughts = self._terms.prompts[prompt], self._of_prompt.get(prompt, [])
            placed = placed_prompt(tokens, thoughts, self._tokenizer.watch(()))
            self._placed[prompt] = placed
        return placed

    def _columns(
        self, tokens: Sequence[Placed], count: int, offsets: Sequence[int]
    ) -> dict[str, Any]:
        """OpenAI's `logprobs` of completions: the drawn token is among its likeliest even if it is not."""
        key = self._spelling.key
        return {
            "tokens": _listed([key(placed.token) for placed in tokens]),
            "token_logprobs": _listed([_thought(placed) for placed in tokens]),
            "top_logprobs": _listed([self._likeliest(placed, count) for placed in tokens]),
            "text_offset": _listed(offsets),
        }

    def _likeliest(self, placed: Placed, count: int) -> dict[str, float] | None:
        if placed.logprobs is None:
            return None
        key = self._spelling.key
        table = {key(token): written(logprob) for token, logprob in placed.logprobs.top[:count]}
        table.setdefault(key(placed.token), written(placed.logprobs.logprob))
        return table

    def _ranked(self, thought: TokenLogprobs | None, count: int) -> dict[str, Any] | None:
        """vLLM's shape: by token id, with ranks."""
        if thought is None:
            return None
        ranked = {t: (rank, lp) for rank, (t, lp) in enumerate(thought.top[:count], 1)}
        ranked[thought.token] = (thought.rank, thought.logprob)
        return {
            str(token): {
                "logprob": written(logprob),
                "rank": rank,
                "decoded_token": self._spelling.of(token).text,
            }
            for token, (rank, logprob) in ranked.items()
        }


def _thought(placed: Placed) -> float | None:
    return None if placed.logprobs is None else written(placed.logprobs.logprob)


def _listed(values: Sequence[Any]) -> msgspec.Raw:
    """A list as JSON, written slice by slice."""
    if len(values) <= SLICE:
        return msgspec.Raw(_encode(values))
    slices = (values[at : at + SLICE] for at in range(0, len(values), SLICE))
    return msgspec.Raw(b"[" + b",".join([_encode(part)[1:-1] for part in slices]) + b"]")
