"""What a request says, in one model's own tokens: prompts, bad words, ends, and what may or may not be drawn.

Pure but for the tokenizer. Long requests are read in a thread (`is_short`), so nothing here may touch the HTTP loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llmhost.core.errors import InvalidValue, UnsupportedParameter
from llmhost.core.ports import FillMarks, Tokenizer
from llmhost.core.request import GenerationRequest
from llmhost.core.sampling import Sampling
from llmhost.core.sequence import Pooling
from llmhost.pipeline.guarding import Sitting

INLINE_CHARS = 4096
INLINE_MESSAGES = 64
"""Longer prompts, and all with tool calls, are rendered and tokenised in a thread: the HTTP loop waits for none."""
MAX_REPEATED = 300_000
"""Tokens and log probabilities of prompts in one answer, as often as they are in it: some 20 MB of JSON."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A request as a scheduler takes it."""

    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    """With bad words as ids, and the log probabilities that echo and `best_of` need as well."""
    stop_ids: frozenset[int]
    """The caller's own, beside the model's."""
    echoes: tuple[str, ...] = ()
    """Each prompt's text, where it comes before the answer."""
    poolings: tuple[Pooling, ...] = ()
    """How each prompt is pooled, in a request for vectors or scores."""
    shared: tuple[int, ...] = ()
    """How many of each prompt's first tokens one before it has, too: they are computed, and paid for, once."""
    answers: tuple[int, ...] = ()
    """How many of each prompt's last tokens are an answer, in a request for decisions."""
    predicted: tuple[int, ...] = ()
    """What the caller thinks that the answer is."""
    sitting: Sitting | None = None
    """What is asked about which text, in a request for moderation."""
    moment: str = ""
    """What the template told of the time, in a chat with a model whose template does."""
    prompt_tokens: int = field(init=False, compare=False)
    """Of all prompts together; what they share counts once."""

    def __post_init__(self) -> None:  # it is asked for several times, and terms are kept
        tokens = sum(map(len, self.prompts)) - sum(self.shared)
        object.__setattr__(self, "prompt_tokens", tokens)

    def still_hold(self, tokenizer: Tokenizer) -> bool:
        """Whether the same request would be the same tokens now: a template may tell the date."""
        return not self.moment or self.moment == _moment(tokenizer)


NO_TERMS = Terms((), Sampling(), frozenset())
"""Of a request that asks a model nothing."""


def is_short(request: GenerationRequest) -> bool:
    """Everything that is rendered counts: messages without text too, and what has no bound is never short."""
    if request.tools or request.bad_words or len(request.messages) > INLINE_MESSAGES:
        return False
    for message in request.messages:
        if "tool_calls" in message:
            return False
    for value in request.template_kwargs.values():
        if isinstance(value, (dict, list)):
            return False
    return request.size + len(request.sampling.allowed_token_ids or ()) <= INLINE_CHARS


def terms_of(request: GenerationRequest, tokenizer: Tokenizer) -> Terms:
    """Raises BadRequest for what this model can't take."""
    _check_ids(request.stop_token_ids, tokenizer, "stop_token_ids")
    moment = _moment(tokenizer) if request.kind.is_chat else ""
    prompts = _prompts(request, tokenizer)
    sampling = _sampling(request, tokenizer)
    _check_size(request, prompts, sampling)
    _check_sayable(request, sampling, tokenizer)
    fill = tokenizer.marks.fill if request.suffix else None
    return Terms(
        prompts,
        sampling,
        frozenset(request.stop_token_ids) | (fill.ends if fill is not None else frozenset()),
        tuple(_texts(request, prompts, tokenizer)) if request.echo else (),
        predicted=_predicted(request, tokenizer),
        moment=moment,
    )


def terms_anew(known: Terms, request: GenerationRequest, tokenizer: Tokenizer) -> Terms:
    """As `terms_of`, of a request that is as the one whose terms are known, but for what it says: of one whose answer
    repeats nothing of its prompt. Raises BadRequest."""
    moment = _moment(tokenizer) if request.kind.is_chat else ""
    return Terms(
        _prompts(request, tokenizer),
        known.sampling,
        known.stop_ids,
        predicted=known.predicted,
        moment=moment,
    )


def _predicted(request: GenerationRequest, tokenizer: Tokenizer) -> tuple[int, ...]:
    if not request.prediction:
        return ()
    return tuple(tokenizer.encode(request.prediction, add_special_tokens=False))


def _moment(tokenizer: Tokenizer) -> str:
    moment = tokenizer.marks.moment
    return "" if moment is None else moment()


def _prompts(request: GenerationRequest, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    prompts = _whole_prompts(request, tokenizer)
    if (most := request.truncate_prompt_tokens) is None:
        return prompts
    return tuple(prompt[-most:] for prompt in prompts)


def _whole_prompts(request: GenerationRequest, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    if request.kind.is_chat:
        text = rendered(request, tokenizer)
        tokens = tokenizer.encode(text, add_special_tokens=False)
        return (_not_empty(tokens, request.kind.prompt_field),)
    if request.suffix:
        return _prompts_to_fill(request, tokenizer)
    special = request.add_special_tokens
    return tuple(
        _not_empty(tokenizer.encode(prompt, add_special_tokens=special), "prompt")
        if isinstance(prompt, str)
        else _known_prompt(prompt, tokenizer)
        for prompt in request.prompts
    )


def _prompts_to_fill(
    request: GenerationRequest, tokenizer: Tokenizer
) -> tuple[tuple[int, ...], ...]:
    """What comes before and behind the gap, as the model was taught to be asked. Raises UnsupportedParameter."""
    marks = tokenizer.marks.fill
    if marks is None:
        raise UnsupportedParameter(
            f"The model {request.model!r} has no tokens to ask for the middle of a text with. Leave 'suffix' out, or"
            " use a model that was made for it.",
            param="suffix",
        )
    behind = _behind(request.suffix, marks, tokenizer)
    begin = tokenizer.encode("")[:1] if request.add_special_tokens else []
    return tuple(
        (*begin, *_filled(_ids_of(prompt, tokenizer), behind, marks)) for prompt in request.prompts
    )


def _filled(before: list[int], behind: list[int], marks: FillMarks) -> list[int]:
    if marks.middle is None:
        return [marks.suffix, *behind, marks.prefix, *before]
    return [marks.prefix, *before, marks.suffix, *behind, marks.middle]


def _ids_of(prompt: str | tuple[int, ...], tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, add_special_tokens=False)
    _check_ids(prompt, tokenizer, "prompt")
    return list(prompt)


JOINT = "\u263a"
"""Stands before a text that shall not be taken for the beginning of one."""


def _behind(suffix: str, marks: FillMarks, tokenizer: Tokenizer) -> list[int]:
    if marks.is_joined:
        joint = tokenizer.encode(JOINT, add_special_tokens=False)
        both = tokenizer.encode(JOINT + suffix, add_special_tokens=False)
        if both[: len(joint)] == joint:
            return both[len(joint) :]
    return tokenizer.encode(suffix, add_special_tokens=False)


def _told(tools: tuple[dict[str, Any], ...] | None) -> tuple[dict[str, Any], ...] | None:
    """Tools as templates hear of them: `strict` says how a call is held and is nothing for a model to read, or the
    routes, whose defaults for it differ, would make different prompts of the same tools."""
    if tools is None or not any("strict" in tool["function"] for tool in tools):
        return tools
    return tuple(
        {**tool, "function": {k: v for k, v in tool["function"].items() if k != "strict"}}
        for tool in tools
    )


def rendered(request: GenerationRequest, tokenizer: Tokenizer) -> str:
    """A chat as its model's template writes it. Raises BadRequest."""
    text = tokenizer.render_chat(
        request.messages,
        tools=_told(request.tools),
        **{"add_generation_prompt": request.add_generation_prompt, **request.template_kwargs},
    )
    if not request.continue_final_message:
        return text
    content = request.messages[-1].get("content") or ""
    last = content.strip()
    if not last or (begin := text.rfind(last)) < 0:
        raise InvalidValue(
            "'continue_final_message' needs a last message whose text the model's template repeats as it is.",
            param="continue_final_message",
        )
    if text.startswith(content.lstrip(), begin):
        last = content.lstrip()  # the template kept the space at its end
    return text[: begin + len(last)]


def _texts(
    request: GenerationRequest, prompts: tuple[tuple[int, ...], ...], tokenizer: Tokenizer
) -> Iterator[str]:
    """As they were written, unless a part of them was left out."""
    is_cut = request.truncate_prompt_tokens is not None
    for prompt, tokens in zip(request.prompts, prompts, strict=True):
        yield prompt if isinstance(prompt, str) and not is_cut else tokenizer.decode(tokens)


def _sampling(request: GenerationRequest, tokenizer: Tokenizer) -> Sampling:
    asked = request.sampling
    if asked.logit_bias:
        _check_ids([token for token, _ in asked.logit_bias], tokenizer, "logit_bias")
    _check_ids(asked.allowed_token_ids or (), tokenizer, "allowed_token_ids")
    logprobs, of_prompt = asked.logprobs, asked.prompt_logprobs
    if request.best_of is not None:
        logprobs = logprobs or 0  # by which the best are found
    if request.echo and logprobs is not None:
        of_prompt = max(logprobs, of_prompt or 0)
    if not request.bad_words and (logprobs, of_prompt) == (asked.logprobs, asked.prompt_logprobs):
        return asked
    bad_words = tuple(dict.fromkeys(_spellings(request.bad_words, tokenizer)))
    return replace(asked, bad_words=bad_words, logprobs=logprobs, prompt_logprobs=of_prompt)


def _spellings(words: tuple[str, ...], tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    """As a word is said at the beginning, and after another one."""
    for place, word in enumerate(words):
        for text in (word.lstrip(), f" {word.lstrip()}"):
            ids = tokenizer.encode(text, add_special_tokens=False)
            yield _not_empty(ids, f"bad_words[{place}]")


def _check_size(
    request: GenerationRequest, prompts: tuple[tuple[int, ...], ...], sampling: Sampling
) -> None:
    """What an answer repeats of its prompts, which each of its choices has."""
    of_prompt = sampling.prompt_logprobs
    if of_prompt is None and not (request.echo or request.return_token_ids):
        return
    repeated = sum(map(len, prompts)) * request.n * (1 + (of_prompt or 0))
    if repeated > MAX_REPEATED:
        raise InvalidValue(
            f"The answer would repeat {repeated} tokens and log probabilities of prompts;"
            f" {MAX_REPEATED} are allowed. Send fewer prompts at a time, or ask for fewer choices.",
            param=_repeater(request),
        )


def _repeater(request: GenerationRequest) -> str:
    if request.sampling.prompt_logprobs is not None:
        return "prompt_logprobs"
    return "echo" if request.echo else "return_token_ids"


def _check_sayable(request: GenerationRequest, sampling: Sampling, tokenizer: Tokenizer) -> None:
    """Raises InvalidValue where nothing could be drawn from the first token on."""
    if (allowed := sampling.allowed_token_ids) is None:
        return
    never = {words[0] for words in sampling.bad_words if len(words) == 1}
    if request.min_tokens:
        never |= set(request.stop_token_ids)
        never |= frozenset() if request.ignore_eos else tokenizer.eos_ids
    if never.issuperset(allowed):
        raise InvalidValue(
            "'bad_words' and 'min_tokens' leave none of the 'allowed_token_ids'. Allow more.",
            param="allowed_token_ids",
        )


def _not_empty(tokens: list[int], param: str) -> tuple[int, ...]:
    if not tokens:
        what = "The prompt" if param in ("prompt", "messages", "input") else f"'{param}'"
        raise InvalidValue(f"{what} is empty: it has no tokens.", param=param)
    return tuple(tokens)


def _known_prompt(prompt: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    _check_ids(prompt, tokenizer, "prompt")
    return _not_empty(list(prompt), "prompt")


def _check_ids(tokens: Sequence[int], tokenizer: Tokenizer, param: str) -> None:
    if not tokens:
        return
    size = tokenizer.vocab_size
    for token in tokens:
        if not 0 <= token < size:
            raise InvalidValue(
                f"Token id {token} is outside this model's vocabulary of {size}.", param=param
            )
