"""Tokenizers from a model's folder, read with the `tokenizers` library and nothing else.

Agrees with transformers' AutoTokenizer on what a text's ids are: tokenizer.json's post-processor adds bos and eos,
whatever `add_bos_token` says beside it. One exception: a special token that the vocabulary does not hold gets no id,
because the model has no row for it.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import AddedToken, Tokenizer

from llmhost.core.errors import BadRequest, ModelUnavailable, UnsupportedParameter
from llmhost.core.grammar import GrammarSpec
from llmhost.core.ports import Marks, TextWatch
from llmhost.core.step import GrammarState
from llmhost.core.thoughts import ThoughtIds
from llmhost.observe.logs import log_event
from llmhost.text.calls.families import THOUGHTS, family_of
from llmhost.text.calls.response_template import (
    RESPONSE_TEMPLATE,
    UnreadableTemplate,
    template_of,
)
from llmhost.text.detokenise import (
    ShowingDetokeniser,
    detokeniser_factory,
    drops_first_space,
    token_speller,
)
from llmhost.text.fill import fill_marks
from llmhost.text.grammar import Grammars, Thinking, Vocabulary
from llmhost.text.guards import guard_of
from llmhost.text.pairs import fit
from llmhost.text.template import ChatTemplate, load_chat_template
from llmhost.text.watch import watch_for

log = logging.getLogger("llmhost.tokenizer")


class FileTokenizer:
    """A loaded tokenizer.json. Not changed after loading, so that any thread may use it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        eos_ids: frozenset[int] = frozenset(),
        template: ChatTemplate | None = None,
        tells_pairs_apart: bool = True,
        response_template: str | None = None,
    ) -> None:
        """`response_template`: JSON that `template_of` can read."""
        self._tokenizer = tokenizer
        self._response_template = response_template
        self._tells_pairs_apart = tells_pairs_apart
        self._eos_ids = eos_ids
        self._template = template
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = frozenset(token.content for token in added if token.special)
        decoder = _decoder_steps(tokenizer)
        self._detokeniser = detokeniser_factory(
            decoder, spelling=self._spelling, decode=self.decode
        )
        self._token_bytes = token_speller(decoder, spelling=self._spelling)
        self._vocabulary = self._make_vocabulary(drops_space=drops_first_space(decoder))
        self._grammars = Grammars(self._vocabulary)
        self._marks = self._find_marks()

    @property
    def backend(self) -> Tokenizer:
        """The library's own object, for whoever writes it into another kind of file."""
        return self._tokenizer

    @property
    def template(self) -> ChatTemplate | None:
        return self._template

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._eos_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_whole(
        self,
        text: str,
        second: str | None = None,
        *,
        most_tokens: int | None = None,
        most_second: int | None = None,
    ) -> tuple[list[int], int | None]:
        texts = (text,) if second is None else (text, second)
        bare = [self._tokenizer.encode(each, add_special_tokens=False) for each in texts]
        if second is not None and most_second is not None:
            bare[1].truncate(most_second)
        if most_tokens is not None:
            room = most_tokens - self._tokenizer.num_special_tokens_to_add(second is not None)
            lengths = [len(each) for each in bare]
            for each, kept in zip(bare, fit(lengths[0], sum(lengths[1:]), room), strict=False):
                each.truncate(kept)
        other = bare[1] if second is not None else None
        whole = self._tokenizer.post_process(bare[0], other, add_special_tokens=True)
        kinds = whole.type_ids if self._tells_pairs_apart else ()
        return whole.ids, next((i for i, kind in enumerate(kinds) if kind), None)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        if self._template is None:
            raise BadRequest(
                "This model has no chat template, so it can't take messages."
                " Send a plain prompt to /v1/completions.",
                param="messages",
            )
        return self._template.render(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs
        )

    def watch(self, stop: Sequence[str] = (), shown: Sequence[str] = ()) -> TextWatch:
        detokeniser = self._detokeniser()
        if not (stop or shown):
            return detokeniser
        special = {
            token: text
            for text in shown
            if text in self._special and (token := self._tokenizer.token_to_id(text)) is not None
        }
        return watch_for(ShowingDetokeniser(detokeniser, special) if special else detokeniser, stop)

    @property
    def marks(self) -> Marks:
        return self._marks

    def begins_with_thoughts(self, prompt: Sequence[int]) -> bool:
        return self._vocabulary.is_thinking_after(prompt) is True

    def token_bytes(self, token: int) -> bytes:
        if self._token_bytes is None:
            return self.decode([token]).encode()
        return self._token_bytes(token)

    def compile_grammar(self, spec: GrammarSpec) -> None:
        if self._token_bytes is None:
            raise UnsupportedParameter(
                "This model can't be held to a form: what its tokens say depends on their neighbours.",
                param=spec.param,
            )
        self._grammars.compile(spec)

    def grammar(self, spec: GrammarSpec, prompt: Sequence[int] = ()) -> GrammarState:
        return self._grammars.state(spec, prompt)

    def _make_vocabulary(self, *, drops_space: bool) -> Vocabulary:
        added = self._tokenizer.get_added_tokens_decoder()
        thinking = self._thinking()
        return Vocabulary(
            tokens=lambda: [self.token_bytes(token) for token in range(self.vocab_size)],
            eos_ids=self._eos_ids,
            encode=lambda text: self.encode(text, add_special_tokens=False),
            thinking=thinking,
            controls=frozenset(token for token in added if added[token].special),
            drops_space=drops_space,
            specials={
                text: token
                for text in self._special
                if (token := self._tokenizer.token_to_id(text)) is not None
            },
        )

    def _find_marks(self) -> Marks:
        family = None if self._template is None else family_of(self._template.text)
        marks = self._thinking_marks()
        around = family.thoughts if family is not None and family.knows_thoughts else marks
        told = self._response_template
        answers = None if told is None else template_of(told)
        call_format = None if family is None else family.name
        if answers and family is None:
            around = answers.thoughts or marks
            call_format = RESPONSE_TEMPLATE if answers.has_calls else None
        ids = None if around is None else [tuple(self._ids_of(mark)) for mark in around]
        return Marks(
            call_format,
            marks,
            None if ids is None or not all(ids) else ThoughtIds(*ids),
            tuple(sorted(self._special)),
            fill_marks(self._tokenizer.token_to_id),
            None if self._template is None else guard_of(self._template.text),
            told,
            self._template.moment if self._template is not None and self._template.times else None,
        )

    def _ids_of(self, text: str) -> list[int]:
        token = self._tokenizer.token_to_id(text)
        return self.encode(text, add_special_tokens=False) if token is None else [token]

    def _thinking_marks(self) -> tuple[str, str] | None:
        """Those of which the vocabulary has both as tokens."""
        for marks in THOUGHTS:
            if None not in map(self._tokenizer.token_to_id, marks):
                return marks
        return None

    def _thinking(self) -> Thinking | None:
        if (marks := self._thinking_marks()) is None:
            return None
        begin, end = map(self._tokenizer.token_to_id, marks)
        assert begin is not None and end is not None, "both are tokens"
        template = self._template
        knows = template is not None and any(map(template.mentions, marks))
        return Thinking(begin, end, is_free=knows)

    def _spelling(self, token: int) -> str | None:
        text: str | None = self._tokenizer.id_to_token(token)
        return None if text in self._special else text


def load_tokenizer(folder: Path) -> FileTokenizer:
    """The tokenizer of a model's folder, with its chat template and the ids that end its answers.

    Raises ModelUnavailable when tokenizer.json, or a file beside it, is missing or broken.
    """
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _read_json(folder / "tokenizer_config.json")
    named = named_tokens(folder)
    _add_missing(tokenizer, config.get("added_tokens_decoder") or {}, named)
    return FileTokenizer(
        tokenizer,
        eos_ids=frozenset(_eos_ids(folder, tokenizer, named)),
        template=load_chat_template(folder, config, named),
        tells_pairs_apart=_tells_pairs_apart(config),
        response_template=_response_template(folder, config),
    )


def _response_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """None as well where there is one that can't be followed, which the log says."""
    if (raw := config.get("response_template")) is None:
        return None
    text = json.dumps(raw, sort_keys=True)
    try:
        template_of(text)
    except UnreadableTemplate as error:
        facts = {"folder": folder, "why": str(error)}
        log_event(log, "response_template.refused", level=logging.WARNING, **facts)
        return None
    return text


def named_tokens(folder: Path) -> dict[str, str]:
    """`bos_token` and its like, by name. Raises ModelUnavailable."""
    named = dict(_named_tokens(_read_json(folder / "special_tokens_map.json")))
    return named | dict(_named_tokens(_read_json(folder / "tokenizer_config.json")))


def _tells_pairs_apart(config: Mapping[str, Any]) -> bool:
    """Whether transformers would hand the types of tokens to the model, as far as the tokenizer has a say in it."""
    if names := config.get("model_input_names"):
        return "token_type_ids" in names
    return config.get("tokenizer_class") != "TokenizersBackend"


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ModelUnavailable(
            f"{path.parent} has no tokenizer.json. Copy it from where the weights came from;"
            " where only tokenizer.model exists, write one with"
            " AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelUnavailable(
            f"{path} can't be read as a tokenizer ({error}). Copy the file again; if it is whole,"
            " it may need a newer `tokenizers` library."
        ) from error


def _decoder_steps(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The decoder as JSON, in today's spelling however old the file is: it is what the library pickles."""
    if tokenizer.decoder is None:
        return None
    return msgspec.json.decode(tokenizer.decoder.__getstate__(), type=dict[str, Any])


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ModelUnavailable(f"{path} is not a JSON object ({error}). Copy it again.") from error


def _named_tokens(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """`bos_token` and its like: a string, or an object with the string in it."""
    for key, value in config.items():
        if key.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                yield key, text


def _add_missing(
    tokenizer: Tokenizer, declared: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    """Make special what the other files say is special, as far as the vocabulary has or can place it."""
    for token_id, entry in sorted(declared.items(), key=lambda item: int(item[0])):
        known = tokenizer.token_to_id(entry["content"]) == int(token_id)
        if known or tokenizer.get_vocab_size() == int(token_id):
            tokenizer.add_tokens([AddedToken(**entry)])
    special = [
        AddedToken(text, special=True, normalized=False)
        for text in named.values()
        if tokenizer.token_to_id(text) is not None
    ]
    tokenizer.add_special_tokens(special)


def _eos_ids(folder: Path, tokenizer: Tokenizer, named: Mapping[str, str]) -> Iterator[int]:
    for name in ("generation_config.json", "config.json"):
        config = _read_json(folder / name)
        yield from _ints(config.get("eos_token_id"))
        yield from _ints((config.get("text_config") or {}).get("eos_token_id"))
    eos = tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None
    if eos is not None:
        yield eos


def _ints(value: Any) -> Iterable[int]:
    if isinstance(value, int):
        return (value,)
    return value if isinstance(value, list) else ()
