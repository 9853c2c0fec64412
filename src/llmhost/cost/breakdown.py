"""What one request has cost, by pool, and how that is told. Pure."""

import hashlib
from fractions import Fraction
from operator import attrgetter
from typing import Any

import msgspec

from llmhost.core.ids import new_salt
from llmhost.core.output import Usage
from llmhost.core.units import NANO, nano_to_dollars

_DIGITS = 32
_begun = hashlib.sha256().copy
"""Another one is made in half the time that it takes to look for the algorithm."""
PLACES = 15
"""Decimal places of what a token costs: far below a nano-dollar, because a token can cost less than one."""


class Breakdown(msgspec.Struct, frozen=True, kw_only=True, gc=False, eq=False):
    """Nano-dollars of each pool. What is said of loading is provisional until the model is unloaded."""

    gpu_compute_nano: int = 0
    """The request's share of the steps that it was in, whatever device they ran on."""
    input_nano: int = 0
    """The prompt's part of `gpu_compute_nano`."""
    infrastructure_nano: int = 0
    model_loading_nano: int = 0
    safety_moderation_nano: int = 0
    load_id: str | None = None
    """The load that `model_loading_nano` is a part of."""
    load_ns: int = 0
    """The time of that part; a quantity of the entry's."""
    salt: str = msgspec.field(default_factory=new_salt)
    """Of two that say the same it is another."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Breakdown) and _said(self) == _said(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def total_nano(self) -> int:
        return (
            self.gpu_compute_nano
            + self.infrastructure_nano
            + self.model_loading_nano
            + self.safety_moderation_nano
        )

    @property
    def digest(self) -> str:
        """What a ledger entry has of it: changed costs have another one, and nobody can guess them from it."""
        said = (
            f"{self.salt}/{self.gpu_compute_nano}/{self.input_nano}/{self.infrastructure_nano}"
            f"/{self.model_loading_nano}/{self.safety_moderation_nano}"
        )
        made = _begun()
        made.update((said if self.load_id is None else f"{said}/{self.load_id}").encode())
        return made.hexdigest()[:_DIGITS]


_said = attrgetter(
    "gpu_compute_nano",
    "input_nano",
    "infrastructure_nano",
    "model_loading_nano",
    "safety_moderation_nano",
    "load_id",
    "load_ns",
)


def cost_digest(salt: str, pools_text: str) -> str:
    """128 bits of SHA-256, as hex. `pools_text` are the nano-dollars of each pool, and the load if there is one."""
    return hashlib.sha256(f"{salt}/{pools_text}".encode()).hexdigest()[:_DIGITS]


NOTHING = Breakdown()


def cost_object(costs: Breakdown, usage: Usage) -> dict[str, Any]:
    """The `cost` of a usage object: dollars as decimal strings, so that no reader rounds them.

    The pools that belong to no token are spread evenly over all tokens, so the two costs per token, each times its
    tokens, add up to the total, up to the last decimal place.
    """
    tokens = usage.total_tokens
    shared = Fraction(costs.total_nano - costs.gpu_compute_nano, tokens) if tokens else Fraction(0)
    output_nano = costs.gpu_compute_nano - costs.input_nano
    return {
        "total_cost_usd": nano_to_dollars(costs.total_nano),
        "breakdown": {
            "gpu_compute": nano_to_dollars(costs.gpu_compute_nano),
            "infrastructure": nano_to_dollars(costs.infrastructure_nano),
            "model_loading": nano_to_dollars(costs.model_loading_nano),
            "safety_moderation": nano_to_dollars(costs.safety_moderation_nano),
        },
        "cost_per_input_token": _each(costs.input_nano, usage.prompt_tokens, shared),
        "cost_per_output_token": _each(output_nano, usage.completion_tokens, shared),
        "model_loading_is_provisional": costs.load_id is not None,
    }


def _each(nano: int, tokens: int, shared: Fraction) -> str:
    """Dollars for each of so many tokens; "0.00" where there is none."""
    if not tokens:
        return "0.00"
    parts = round((Fraction(nano, tokens) + shared) / NANO * 10**PLACES)
    whole, rest = divmod(parts, 10**PLACES)
    return f"{whole}.{f'{rest:0{PLACES}d}'.rstrip('0').ljust(2, '0')}"
