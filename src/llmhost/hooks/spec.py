"""Every hook, in the order in which a request meets them, each with its rule.

An implementation takes the facts that it names and gives an opinion, or None for "no opinion"; the first opinion
wins. pluggy declares, orders and discovers; `hooks.call` makes the calls. Facts are added as new arguments, which
older plugins don't see. Nothing here is called per token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, TypeVar

from pluggy import HookimplMarker, HookspecMarker

from llmhost.core.caller import Caller
from llmhost.core.errors import ConfigError, LlmhostError, PluginFailed, SafetyUnavailable
from llmhost.core.request import GenerationRequest
from llmhost.core.units import dollars_to_nano

hookimpl = HookimplMarker("llmhost")
hookspec = HookspecMarker("llmhost")

Register = Callable[[Any], None]
Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Refusal:
    """A plugin's no. `message` goes to the caller; `code` replaces the error's own code."""

    message: str
    code: str | None = None

    def as_error(self, kind: type[LlmhostError]) -> LlmhostError:
        error = kind(self.message)
        if self.code is not None:
            vars(error)["code"] = self.code  # for this error only; the class keeps its own
        return error


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Nano-dollars for a million tokens of each dimension, so that no float touches money."""

    input: int
    cached_input: int
    output: int
    reasoning: int | None = None
    """Generated tokens that are thoughts; None: as output."""
    embedding: int | None = None
    """Tokens of texts for /v1/embeddings; None: as input."""
    request: int = 0
    """Nano-dollars for the request itself."""

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            amount = getattr(self, name)
            if amount is None and name in _MAY_BE_ABSENT:
                continue
            if type(amount) is not int or amount < 0:
                raise ValueError(
                    f"a price is a whole number of nano-dollars from 0, not {amount!r}"
                )

    @classmethod
    def of(
        cls,
        *,
        input: str,  # noqa: A002 - as in models.toml
        output: str,
        cached_input: str | None = None,
        reasoning: str | None = None,
        embedding: str | None = None,
        request: str = "0",
    ) -> "Price":
        """From dollars as in models.toml, per million tokens: `Price.of(input="0.10", output="0.40")`."""
        paid = dollars_to_nano(input)
        return cls(
            input=paid,
            cached_input=paid if cached_input is None else dollars_to_nano(cached_input),
            output=dollars_to_nano(output),
            reasoning=None if reasoning is None else dollars_to_nano(reasoning),
            embedding=None if embedding is None else dollars_to_nano(embedding),
            request=dollars_to_nano(request),
        )

    def times(self, numerator: int, denominator: int = 1) -> "Price":
        """This price times an exact ratio, each dimension rounded half-even: `price.times(1, 2)` is half of it."""

        def scale(amount: int | None) -> int | None:
            if amount is None:
                return None
            whole, rest = divmod(amount * numerator, denominator)
            up = 2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1)
            return whole + up

        if denominator < 1:
            raise ValueError(f"the denominator of a ratio is at least 1, not {denominator}")
        scaled: dict[str, Any] = {name: scale(getattr(self, name)) for name in DIMENSIONS}
        return Price(**scaled)


DIMENSIONS = tuple(Price.__dataclass_fields__)
"""What a price says something of; the field of a `Rates` has the same name and `_nano`."""
_MAY_BE_ABSENT = ("reasoning", "embedding")


class Kind(StrEnum):
    REGISTER = "register"
    """Sync, once at start-up: each plugin hands in objects."""
    LIFECYCLE = "lifecycle"
    """Every plugin is called, one after the other."""
    ASK = "ask"
    """One plugin after the other, until one has an opinion."""
    TELL = "tell"
    """Every plugin is told, off the path of the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What an opinion may be, and what a failure or a timeout means."""

    kind: Kind
    opinions: tuple[type, ...] = ()
    within: str | None = None
    """The fact that an opinion must be one of."""
    raises: type[LlmhostError] | None = None
    """Fail closed: this error. With neither this nor `assumes`, the failed plugin has no opinion: fail open."""
    assumes: object = None
    """Fail with this for an opinion."""
    timeout_s: float | None = None
    """None: what [plugins] timeout_s says."""

    def complaint(self, opinion: object, facts: Mapping[str, object]) -> str | None:
        """Why an opinion can't be taken. None is fine everywhere: it is no opinion."""
        if opinion is None:
            return None
        if not isinstance(opinion, self.opinions):
            wanted = " or ".join(kind.__name__ for kind in self.opinions) or "nothing"
            return f"it returned {type(opinion).__name__}, which should be {wanted} or None"
        if self.within is not None:
            known = facts[self.within]
            if isinstance(known, tuple) and opinion not in known:
                return f"it returned {opinion!r}, which is none of the {self.within}"
        return None


RULES: dict[str, Rule] = {}
"""By hook name, in the order below."""


def rule(
    kind: Kind,
    *opinions: type,
    within: str | None = None,
    raises: type[LlmhostError] | None = None,
    assumes: object = None,
    timeout_s: float | None = None,
) -> Callable[[Function], Function]:
    """Declare the function below as a hook with this rule."""

    def note(function: Function) -> Function:
        RULES[function.__name__] = Rule(
            kind=kind,
            opinions=opinions,
            within=within,
            raises=raises,
            assumes=assumes,
            timeout_s=timeout_s,
        )
        return hookspec(function)

    return note


# -- register: sync, once -----------------------------------------------------------------------------------------


@rule(Kind.REGISTER, raises=ConfigError)
def register_engines(register: Register) -> None:
    """Hand in engines, before models.toml is resolved. `register(engine)`, once for each."""


@rule(Kind.REGISTER, raises=ConfigError)
def register_routes(register: Register) -> None:
    """Hand in HTTP route handlers, when the application is built; they appear under `/plugins/<name>/`."""


@rule(Kind.REGISTER)
def register_commands(register: Register) -> None:
    """Hand in commands of `llmhost`, when its command line is built. A plugin that fails here goes without them."""


# -- lifecycle ------------------------------------------------------------------------------------------------------


@rule(Kind.LIFECYCLE, raises=ConfigError, timeout_s=60.0)
def startup(host: Any) -> None:
    """Everything is wired and nothing is served yet. Sync ones run in a thread and may block."""


@rule(Kind.LIFECYCLE, timeout_s=10.0)
def shutdown(host: Any) -> None:
    """Nothing is served any more, nothing is closed yet. Also called when a start-up failed half-way."""


# -- ask ------------------------------------------------------------------------------------------------------------


@rule(Kind.ASK, Caller, Refusal, raises=PluginFailed)
def identify_caller(api_key: str | None, headers: Mapping[str, str]) -> Caller | Refusal | None:
    """Say who calls, before the key table is read. `api_key` is the bearer, `headers` have lower-case names."""
    return None


@rule(Kind.ASK, Refusal, raises=PluginFailed)
def admit_request(request: GenerationRequest, caller: Caller) -> Refusal | None:
    """Refuse a checked request of a known caller, before anything is spent on it."""
    return None


@rule(Kind.ASK, str, within="candidates")
def route_request(request: GenerationRequest, candidates: tuple[str, ...]) -> str | None:
    """Choose the model: one of `candidates`, the names that this caller may use. `request.model` is what was asked for,
    which may be a name that only the plugin knows."""
    return None


@rule(Kind.ASK, Price, raises=PluginFailed)
def quote_price(
    request: GenerationRequest, caller: Caller, price: Price, now: datetime
) -> Price | None:
    """Replace the list price for this request. Asked once, at admission: the quote holds until the request has ended.
    `request.model` is the chosen model, `now` the time of admission, aware and in UTC."""
    return None


@rule(Kind.ASK, Refusal, raises=SafetyUnavailable)
def check_input(request: GenerationRequest, caller: Caller) -> Refusal | None:
    """Refuse a prompt, after the rules of [safety]. `request.text` is everything that the caller wrote."""
    return None


@rule(Kind.ASK, bool, assumes=False)
def may_cache(request: GenerationRequest) -> bool | None:
    """Say whether this answer may be kept for, and taken from, the response cache."""
    return None


@rule(Kind.ASK, Refusal, assumes=Refusal("The answer could not be checked.", "safety_unavailable"))
def check_output(text: str, request: GenerationRequest, caller: Caller) -> Refusal | None:
    """Refuse an answer, after the rules of [safety]: asked for each window of text before it is sent. Windows overlap,
    and start and end between words where they can."""
    return None


# -- tell -----------------------------------------------------------------------------------------------------------


@rule(Kind.TELL)
def observe(event: object) -> None:
    """Something has happened: one of `llmhost.core.events`. Told soon after, in order, off the path of the request."""
