"""What one request may still make of its budgets: held a slice ahead of the decode, and never passed by it.

A choice's ceiling is raised while half a slice is left of it. When the budgets have no room for the next slice, what
fits is held; when nothing does, the choice is asked for again where it stands, and ends there if that doesn't help:
until then, another request may have given money back.
"""

from collections.abc import Callable

from llmhost.core.units import PER_MILLION
from llmhost.cost.pricing import Price, ceiling_nano
from llmhost.tenants.accounts import BudgetHold

Allow = Callable[[int, int, bool], None]
"""(choice, tokens that it may make in all, whether there will be no more)."""


class Spending:
    """The hold of one request, and how far each of its choices may go on it. Used from one thread."""

    __slots__ = (
        *("_final", "_held", "_held_tokens", "_made", "_most_tokens", "_price", "_prompt_tokens"),
        *("_slice_tokens", "hold", "was_cut"),
    )

    def __init__(
        self,
        hold: BudgetHold,
        price: Price,
        *,
        prompt_tokens: int,
        slice_tokens: int,
        most_tokens: int,
        choices: int,
    ) -> None:
        """`hold` covers the prompts and a slice, or the `most_tokens` that a choice may have if these are fewer, of
        each choice."""
        first = slice_tokens if slice_tokens < most_tokens else most_tokens
        self.hold = hold
        self.was_cut = False
        """A choice ended because the budgets had no more room for it."""
        self._price = price
        self._prompt_tokens = prompt_tokens
        self._slice_tokens = slice_tokens
        self._most_tokens = most_tokens
        self._held = [first] * choices
        """Tokens that each choice may make."""
        self._made = [0] * choices
        self._final = [first == most_tokens] * choices
        """There is nothing to raise any more."""
        self._held_tokens = first * choices

    @property
    def is_final(self) -> bool:
        """What is held covers all that its choices may make."""
        return False not in self._final

    @property
    def first_tokens(self) -> int:
        """What each choice may make at first."""
        return self._held[0] if self._held else 0

    @staticmethod
    def first_nano(
        price: Price, *, prompt_tokens: int, slice_tokens: int, most_tokens: int, choices: int
    ) -> int:
        """What must be held before a request may run."""
        return ceiling_nano(price, prompt_tokens, choices * min(slice_tokens, most_tokens))

    def until_raise(self, index: int) -> int:
        """As many tokens of a choice may come before `made` has anything to do."""
        return self._held[index] - self._made[index] - self._slice_tokens // 2

    def is_over(self, index: int) -> bool:
        """There is nothing to raise any more."""
        return self._final[index]

    def made(self, index: int, tokens: int, allow: Allow) -> None:
        """A choice has said so many more tokens: raise its ceiling if it comes near."""
        self._made[index] += tokens
        held = self._held[index]
        left = held - self._made[index]
        if self._final[index] or left > self._slice_tokens // 2:
            return
        wanted = min(held + self._slice_tokens, self._most_tokens)
        more = self._raise(wanted - held)
        if not more and left > 0:
            return
        held += more
        self._held[index] = held
        self._final[index] = not more or held == self._most_tokens
        self.was_cut = self.was_cut or not more
        allow(index, held, self._final[index])

    def _raise(self, tokens: int) -> int:
        """Hold as much of so many more tokens as there is room for."""
        price, hold = self._price, self.hold
        needed = ceiling_nano(price, self._prompt_tokens, self._held_tokens + tokens)
        least = ceiling_nano(price, self._prompt_tokens, self._held_tokens + 1)
        if needed > hold.held_nano:
            hold.raise_by(needed - hold.held_nano, least=max(least - hold.held_nano, 1))
        more = min(self._afforded() - self._held_tokens, tokens)
        self._held_tokens += more
        return more

    def _afforded(self) -> int:
        """Tokens that are paid for by what is held."""
        rate = max(self._price.output_nano, self._price.reasoning_nano or 0)
        if not rate:
            return self._held_tokens + self._most_tokens * len(self._held)
        prompts = ceiling_nano(self._price, self._prompt_tokens, 0)
        return max((self.hold.held_nano - prompts) * PER_MILLION // rate, self._held_tokens)
