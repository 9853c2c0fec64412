"""Tokens times prices, in whole nano-dollars, rounded once. Pure."""

import re
from dataclasses import dataclass, fields
from fractions import Fraction

from llmhost.config.schema.money import PriceSettings
from llmhost.core.errors import ConfigError
from llmhost.core.output import Usage
from llmhost.core.units import PER_MILLION, dollars_to_nano

_FACTOR = re.compile(r"\d{1,3}(\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Nano-dollars per million tokens of each dimension. The dimensions are disjoint: no token is in two."""

    input_nano: int
    cached_input_nano: int
    output_nano: int
    reasoning_nano: int | None = None
    """Generated tokens that are thoughts; as `output_nano` when None."""
    embedding_nano: int | None = None
    """Tokens of texts for /v1/embeddings, cached or not; as `input_nano` when None."""
    request_nano: int = 0
    """Nano-dollars for each request that used anything, beside its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price(Rates):
    """Rates that were in force, under a name of their own. Never changed: another price is another version."""

    version: str


def rates_of(settings: PriceSettings, *, model: str) -> Rates:
    """The configured dollars as nano-dollars. Raises ConfigError, which names the key."""

    def nano(name: str) -> int | None:
        text = getattr(settings, name)
        return None if text is None else nano_of(text, key=f"models.{model}.price.{name}")

    fresh, cached = nano("input") or 0, nano("cached_input")
    return Rates(
        input_nano=fresh,
        cached_input_nano=fresh if cached is None else cached,
        output_nano=nano("output") or 0,
        reasoning_nano=nano("reasoning"),
        embedding_nano=nano("embedding"),
        request_nano=nano("request") or 0,
    )


def factor_of(text: str, *, key: str) -> Fraction:
    """A factor that prices are multiplied with. Raises ConfigError, which names the key."""
    try:
        factor = Fraction(text) if _FACTOR.fullmatch(text) else None
    except ValueError:
        factor = None
    if factor is None or factor > 100:
        raise ConfigError(f'{key}: {text!r} is no factor of a price, such as "0.5".')
    return factor


def scaled(rates: Rates, factor: Fraction) -> Rates:
    """Each rate times a factor, rounded half-even to whole nano-dollars."""

    def times(nano: int | None) -> int | None:
        return None if nano is None else round(nano * factor)

    return Rates(**{field.name: times(getattr(rates, field.name)) for field in fields(Rates)})  # type: ignore[arg-type]


def amount_nano(price: Rates | None, usage: Usage, *, is_embedding: bool = False) -> int:
    """What a caller pays for a request; nothing where no price is set, or nothing was used.

    Half a nano-dollar goes to the even side.
    """
    prompt, said = usage.prompt_tokens, usage.completion_tokens
    if price is None or not (prompt or said):
        return 0
    if is_embedding:
        return rated_nano(price, embedding=prompt)
    cached, thoughts = usage.cached_tokens, usage.reasoning_tokens
    return _rounded(  # as `rated_nano`, without a call by names: each request has one
        (prompt - cached) * price.input_nano
        + cached * price.cached_input_nano
        + (said - thoughts) * price.output_nano
        + (thoughts and thoughts * _or(price.reasoning_nano, price.output_nano))
        + price.request_nano * PER_MILLION
    )


def rated_nano(
    price: Rates,
    *,
    fresh_input: int = 0,
    cached_input: int = 0,
    output: int = 0,
    reasoning: int = 0,
    embedding: int = 0,
    requests: int = 1,
) -> int:
    """Quantities of each dimension times their rates, added up exactly and rounded half-even once."""
    return _rounded(
        fresh_input * price.input_nano
        + cached_input * price.cached_input_nano
        + output * price.output_nano
        + (reasoning and reasoning * _or(price.reasoning_nano, price.output_nano))
        + (embedding and embedding * _or(price.embedding_nano, price.input_nano))
        + requests * price.request_nano * PER_MILLION
    )


def ceiling_nano(price: Rates | None, prompt_tokens: int, output_tokens: int) -> int:
    """The most that so many tokens can cost, however many of them are cached or thoughts: rounded up."""
    if price is None or not (prompt_tokens or output_tokens):
        return 0
    dearest_input, dearest_output = price.input_nano, price.output_nano
    if price.cached_input_nano > dearest_input:
        dearest_input = price.cached_input_nano
    if price.embedding_nano is not None and price.embedding_nano > dearest_input:
        dearest_input = price.embedding_nano
    if price.reasoning_nano is not None and price.reasoning_nano > dearest_output:
        dearest_output = price.reasoning_nano
    total = prompt_tokens * dearest_input + output_tokens * dearest_output
    return price.request_nano - (-total // PER_MILLION)


def _or(nano: int | None, otherwise: int) -> int:
    return otherwise if nano is None else nano


def _rounded(total: int) -> int:
    whole, rest = divmod(total, PER_MILLION)
    is_up = 2 * rest > PER_MILLION or (2 * rest == PER_MILLION and whole % 2 == 1)
    return whole + is_up


def nano_of(text: str, *, key: str) -> int:
    """Configured dollars as nano-dollars. Raises ConfigError, which names the key."""
    try:
        nano = dollars_to_nano(text)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}.") from None
    if nano < 0:
        raise ConfigError(f"{key}: {text!r} is negative; a price is 0 or more.")
    return nano
