"""What a body says of how tokens are drawn, checked and turned into `Sampling`.

Token ids are checked against no vocabulary here: which model it will be is not known yet.
"""

from typing import Annotated

from msgspec import Meta

from llmhost.api.bodies import GenerationBody
from llmhost.api.loose import Raw, asks, bounded, loose
from llmhost.core.errors import InvalidValue
from llmhost.core.sampling import Sampling

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOPS_CHARS = 2048
"""Of one stop string, and of all together: each choice builds its automaton on the engine's thread."""
MAX_BAD_WORDS = 128
MAX_BIASED = 1024
MAX_STOP_IDS = 1024
MAX_ALLOWED_IDS = 65_536
"""Entries of tables and lists of token ids: the first three are walked through in each step."""
MAX_REPORTED = 1024
"""Log probabilities that a request may have reported in one step, over all its choices."""
SEED_MASK = 2**63 - 1

_Id = Annotated[int, Meta(ge=0, lt=2**31)]
_Bias = Annotated[float, Meta(ge=-100, le=100)]


def sampling(body: GenerationBody, *, logprobs: int | None, choices: int) -> Sampling:
    """How tokens are drawn for a body. Raises InvalidValue."""
    if logprobs is not None and choices * (logprobs + 1) > MAX_REPORTED:
        raise InvalidValue(
            f"{choices} choices with {logprobs + 1} log probabilities for each token are more than"
            f" {MAX_REPORTED}. Ask for fewer of either.",
            param="logprobs",
        )
    if body.prompt_logprobs is not None and body.stream:
        raise InvalidValue(
            "'prompt_logprobs' is only there in answers that are not streamed.",
            param="prompt_logprobs",
        )
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=body.top_k if body.top_k and body.top_k > 0 else None,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_bias(body.logit_bias),
        allowed_token_ids=_allowed(body.allowed_token_ids),
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
        seed=None if body.seed is None else body.seed & SEED_MASK,
    )


def stops(stop: str | list[str] | None, param: str = "stop") -> tuple[str, ...]:
    """Stop strings. Raises InvalidValue."""
    if not stop and stop != "":
        return ()
    given = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return _strings(given, param, most=MAX_STOPS)


def bad_words(raw: Raw) -> tuple[str, ...]:
    """What may not be said. Raises InvalidValue."""
    if not asks(raw):
        return ()
    if len(bytes(raw)) > 16 * MAX_STOPS_CHARS:
        raise InvalidValue(
            f"'bad_words' is longer than {MAX_STOPS_CHARS} characters.", param="bad_words"
        )
    given = loose(raw, list[str], "bad_words")
    return _strings(tuple(given or ()), "bad_words", most=MAX_BAD_WORDS)


def stop_token_ids(raw: Raw) -> tuple[int, ...]:
    """Ids that end an answer, beside the model's own. Raises InvalidValue."""
    if not asks(raw):
        return ()
    ids = bounded(raw, list[_Id], "stop_token_ids", most=MAX_STOP_IDS)
    return tuple(sorted(set(ids or ())))


def _bias(raw: Raw) -> tuple[tuple[int, float], ...]:
    if not asks(raw):
        return ()
    table = bounded(raw, dict[_Id, _Bias], "logit_bias", most=MAX_BIASED)
    return tuple((token, bias) for token, bias in (table or {}).items() if bias)


def _allowed(raw: Raw) -> tuple[int, ...] | None:
    if (ids := bounded(raw, list[_Id], "allowed_token_ids", most=MAX_ALLOWED_IDS)) is None:
        return None
    if not ids:
        raise InvalidValue(
            "'allowed_token_ids' is empty, so nothing could be said. Leave it out to allow all.",
            param="allowed_token_ids",
        )
    return tuple(sorted(set(ids)))


def _strings(given: tuple[str, ...], param: str, *, most: int) -> tuple[str, ...]:
    if len(given) > most:
        raise InvalidValue(
            f"'{param}' holds {len(given)} strings; {most} are allowed.", param=param
        )
    if any(not text for text in given):
        raise InvalidValue(f"'{param}' holds an empty string.", param=param)
    if (longest := max(map(len, given), default=0)) > MAX_STOP_CHARS:
        raise InvalidValue(
            f"'{param}' holds a string of {longest} characters; {MAX_STOP_CHARS} are allowed.",
            param=param,
        )
    if (total := sum(map(len, given))) > MAX_STOPS_CHARS:
        raise InvalidValue(
            f"The strings of '{param}' are {total} characters together; {MAX_STOPS_CHARS} are allowed.",
            param=param,
        )
    return given
