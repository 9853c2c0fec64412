"""What a request would take and cost, from what is known before it runs. Pure."""

from dataclasses import dataclass

from llmhost.core.output import Usage
from llmhost.core.request import Kind
from llmhost.cost.pricing import Price, amount_nano, ceiling_nano
from llmhost.pipeline.context import RequestContext
from llmhost.tenants.refusals import Allowances


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Tokens are exact, and no run of the request costs less than `least_nano` or more than `most_nano`."""

    prompt_tokens: int
    choices: int
    output_tokens: int
    """Most that all choices together can have."""
    price: Price | None
    least_nano: int
    """The prompt alone, where a cache has all of it."""
    prompt_nano: int
    """The prompt alone, where no cache has any of it."""
    most_nano: int
    remaining_nano: int | None
    """Of the tightest budget over it; None where none is."""
    allowances: Allowances

    @property
    def fits_budget(self) -> bool | None:
        """Whether the dearest answer would; None where there is no budget."""
        return None if self.remaining_nano is None else self.most_nano <= self.remaining_nano


def estimate_of(context: RequestContext, remaining_nano: int | None) -> Estimate:
    """Of a request that was resolved and has its price."""
    price, prompt_tokens = context.price, context.prompt_tokens
    is_embedding = context.request.kind is Kind.EMBEDDING
    output_tokens = 0 if context.poolings else context.choices * context.max_new_tokens

    def prompt_nano(cached_tokens: int) -> int:
        usage = Usage(prompt_tokens, cached_tokens)
        return amount_nano(price, usage, is_embedding=is_embedding)

    fresh, cached = prompt_nano(0), prompt_nano(prompt_tokens)
    most = max(fresh, cached)
    if not context.poolings:
        most = ceiling_nano(price, prompt_tokens, output_tokens)
    return Estimate(
        prompt_tokens=prompt_tokens,
        choices=context.choices,
        output_tokens=output_tokens,
        price=price,
        least_nano=min(fresh, cached),
        prompt_nano=fresh,
        most_nano=most,
        remaining_nano=remaining_nano,
        allowances=context.allowances,
    )
