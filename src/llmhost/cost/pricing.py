"""Tokens times prices, in whole nano-dollars, rounded once. Pure."""

from dataclasses import dataclass

from llmhost.config.schema import PriceSettings
from llmhost.core.errors import ConfigError
from llmhost.core.output import Usage
from llmhost.core.units import PER_MILLION, dollars_to_nano


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Nano-dollars per million tokens of each dimension. The dimensions are disjoint: no token is in two."""

    input_nano: int
    cached_input_nano: int
    output_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Price(Rates):
    """Rates that were in force, under a name of their own. Never changed: another price is another version."""

    version: str


def rates_of(settings: PriceSettings, *, model: str) -> Rates:
    """The configured dollars as nano-dollars. Raises ConfigError, which names the key."""
    fresh = _nano(settings.input, f"models.{model}.price.input")
    return Rates(
        input_nano=fresh,
        cached_input_nano=fresh
        if settings.cached_input is None
        else _nano(settings.cached_input, f"models.{model}.price.cached_input"),
        output_nano=_nano(settings.output, f"models.{model}.price.output"),
    )


def amount_nano(price: Rates | None, usage: Usage) -> int:
    """What a caller pays for a request; nothing where no price is set. Half a nano-dollar goes to the even side."""
    if price is None:
        return 0
    total = (
        (usage.prompt_tokens - usage.cached_tokens) * price.input_nano
        + usage.cached_tokens * price.cached_input_nano
        + usage.completion_tokens * price.output_nano
    )
    whole, rest = divmod(total, PER_MILLION)
    is_up = 2 * rest > PER_MILLION or (2 * rest == PER_MILLION and whole % 2 == 1)
    return whole + is_up


def _nano(text: str, key: str) -> int:
    try:
        nano = dollars_to_nano(text)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}.") from None
    if nano < 0:
        raise ConfigError(f"{key}: {text!r} is negative; a price is 0 or more.")
    return nano
