"""[billing], [costs] and [models.NAME.price]: what callers pay, and what it costs the operator."""

from typing import Annotated, Literal

from msgspec import Meta

from llmhost.config.schema.section import Positive, Section


class BillingSettings(Section, frozen=True):
    """[billing]: how budgets are held and what is paid for answers that fail."""

    slice_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """Tokens of each answer that a budget must afford beside the prompt before it begins, and again each time."""
    failed_answers: Literal["free", "delivered"] = "free"
    """What callers pay for an answer that the server broke off: nothing, or the prompt and what had come of it."""
    refused_prompts: Literal["free", "judged"] = "free"
    """What callers pay for a prompt that a guard has judged and refused: nothing, or its tokens as input."""
    budget_metrics: bool = False
    """Whether `/metrics`, which needs no key, names organisations and says how their budgets stand."""


class CostSettings(Section, frozen=True):
    """[costs]: what this node costs its operator, in dollars as strings; where it says nothing, all costs nothing."""

    gpu_per_hour: str = "0"
    """Rent or depreciation of each GPU."""
    cpu_per_hour: str = "0"
    """The same of the CPU, for models that run on it."""
    power_watts: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """What each GPU draws, on the average."""
    price_per_kwh: str = "0"
    """Electricity for `power_watts`."""
    host_per_hour: str = "0"
    """The machine around the devices, shared by the requests that are in flight."""
    egress_per_gib: str = "0"
    """Bytes that are sent, shared likewise."""
    requests_per_load: Positive = 1000
    """Requests over which the cost of loading a model is spread, until it is unloaded and they are counted."""
    shown_to_callers: bool = True
    """Tell callers who ask for it what their request has cost. Off, only operators see costs."""


class PriceSettings(Section, frozen=True):
    """[models.NAME.price]: dollars per million tokens, as strings, so that no float touches money."""

    input: str = "0"
    """Prompt tokens that had to be computed."""
    cached_input: str | None = None
    """Prompt tokens that a cache saved; the input price when absent."""
    output: str = "0"
    """Generated tokens."""
    reasoning: str | None = None
    """Generated tokens that are thoughts; the output price when absent."""
    embedding: str | None = None
    """Tokens of texts for /v1/embeddings; the input price when absent."""
    request: str = "0"
    """Dollars for each request, beside its tokens."""
