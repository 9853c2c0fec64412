"""What one request may still make of its budgets: held a slice ahead of the decode, and never passed by it.

A choice's ceiling is raised while half a slice is left of it. When the budgets have no room for the next slice, what
fits is held; when nothing does, the choice is asked for again where it stands, and ends there if that doesn't help:
until then, another request may have given money back.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmhost.core.units import PER_MILLION
from llmhost.cost.pricing import Price, ceiling_nano
from llmhost.tenants.accounts import BudgetHold

Allow = Callable[[int, int, bool], None]
"""(choice, tokens that it may make in all, whether there will be no more)."""


@dataclass(slots=True)
class _Choice:
    held_tokens: int
    made_tokens: int = 0
    is_final: bool = False


class Spending:
    """The hold of one request, and how far each of its choices may go on it. Used from one thread."""

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
        first = min(slice_tokens, most_tokens)
        self.hold = hold
        self.was_cut = False
        """A choice ended because the budgets had no more room for it."""
        self._price = price
        self._prompt_tokens = prompt_tokens
        self._slice_tokens = slice_tokens
        self._most_tokens = most_tokens
        self._choices = [_Choice(first, is_final=first == most_tokens) for _ in range(choices)]
        self._held_tokens = first * choices

    @property
    def is_final(self) -> bool:
        """What is held covers all that its choices may make."""
        choices = self._choices
        return choices[0].is_final if len(choices) == 1 else all(each.is_final for each in choices)

    @property
    def first_tokens(self) -> int:
        """What each choice may make at first."""
        return self._choices[0].held_tokens if self._choices else 0

    @staticmethod
    def first_nano(
        price: Price, *, prompt_tokens: int, slice_tokens: int, most_tokens: int, choices: int
    ) -> int:
        """What must be held before a request may run."""
        return ceiling_nano(price, prompt_tokens, choices * min(slice_tokens, most_tokens))

    def until_raise(self, index: int) -> int:
        """As many tokens of a choice may come before `made` has anything to do."""
        choice = self._choices[index]
        return choice.held_tokens - choice.made_tokens - self._slice_tokens // 2

    def is_over(self, index: int) -> bool:
        """There is nothing to raise any more."""
        return self._choices[index].is_final

    def made(self, index: int, tokens: int, allow: Allow) -> None:
        """A choice has said so many more tokens: raise its ceiling if it comes near."""
        choice = self._choices[index]
        choice.made_tokens += tokens
        left = choice.held_tokens - choice.made_tokens
        if choice.is_final or left > self._slice_tokens // 2:
            return
        wanted = min(choice.held_tokens + self._slice_tokens, self._most_tokens)
        more = self._raise(wanted - choice.held_tokens)
        if not more and left > 0:
            return
        choice.held_tokens += more
        choice.is_final = not more or choice.held_tokens == self._most_tokens
        self.was_cut = self.was_cut or not more
        allow(index, choice.held_tokens, choice.is_final)

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
            return self._held_tokens + self._most_tokens * len(self._choices)
        prompts = ceiling_nano(self._price, self._prompt_tokens, 0)
        return max((self.hold.held_nano - prompts) * PER_MILLION // rate, self._held_tokens)
