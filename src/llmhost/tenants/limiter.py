"""All limits of a request as one gate: a place on every level and its requests and tokens, or nothing of it."""

from collections.abc import Hashable, Sequence

import msgspec
from msgspec import structs

from llmhost.core.caller import Caller
from llmhost.core.errors import LlmhostError
from llmhost.core.ports import Clock
from llmhost.tenants.lengths import AnswerLengths
from llmhost.tenants.levels import Level, Levels
from llmhost.tenants.places import Places
from llmhost.tenants.rates import Rates, Taken, Used, Wish
from llmhost.tenants.refusals import NO_ALLOWANCES, Allowances

FIRST_GUESS_TOKENS = 256
"""Of an answer to a key that has had few of the model yet, where the request doesn't say how long it may be."""


class Size(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request as limits see it."""

    input_tokens: int
    choices: int = 0
    """Answers that it gets in all; 0 for vectors and scores."""
    longest_tokens: int = 0
    """Most tokens that one answer can have."""
    asked_tokens: int | None = None
    """Most tokens that one answer may have, when the request says that."""


class NoPlace(Exception):
    """All places of a level are taken."""


class Pass(msgspec.Struct, eq=False):
    """What an admitted request holds. Whoever got it settles it once, however the request ends."""

    _limiter: "Limiter"
    _who: Hashable
    _size: Size
    _places: Sequence[Level]
    _taken: Taken

    @property
    def allowances(self) -> Allowances:
        """How limits stood when the request had been admitted."""
        return self._taken.allowances

    def settle(self, input_tokens: int, output_tokens: int, *, is_whole: bool) -> None:
        """The request has ended, and used so much; `is_whole` when it was answered to the end. Idempotent."""
        if is_whole and self._size.choices and self._taken.has_output:
            self._limiter.lengths.note(self._who, -(-output_tokens // self._size.choices))
        self._taken.settle(input_tokens, output_tokens, self._limiter.clock.monotonic_ns())
        places, self._places = self._places, ()
        self._limiter.places.leave(places)


class Limiter:
    """One per node, used from one thread. In memory only: a node that starts anew owes and is owed nothing."""

    def __init__(self, levels: Levels, places: Places, clock: Clock) -> None:
        self.places = places
        self.lengths = AnswerLengths()
        self._levels = levels
        self._rates = Rates()
        self.clock = clock

    async def admit(self, caller: Caller, model: str, run: str | None, size: Size) -> Pass | None:
        """Let a request in, perhaps after a wait for a place. None when nothing limits it.

        Raises LimitReached, which says when to try again, or ExceedsLimit. Then, and when the caller leaves while he
        waits, nothing has been counted.
        """
        levels, places, key, who = self._levels.over(caller, model, run)
        if not levels:
            return None
        if not self.places.enter(places):
            self._rates.check(levels, self._wish(who, size), self.clock.monotonic_ns())
            await self.places.wait(key, places)
        return self._enter(levels, who, size, places)

    def admit_now(self, caller: Caller, model: str, run: str | None, size: Size) -> Pass | None:
        """As `admit`, but raises NoPlace where it would wait."""
        levels, places, _, who = self._levels.over(caller, model, run)
        if not levels:
            return None
        if not self.places.enter(places):
            raise NoPlace
        return self._enter(levels, who, size, places)

    def admit_in_turn(
        self, caller: Caller, model: str, run: str | None, sizes: Sequence[Size]
    ) -> Sequence[Pass | None] | None:
        """As `admit_now` for each of several that come at one moment. None, and nothing has been counted, where each
        has to ask for itself."""
        count = len(sizes)
        levels, places, _, who = self._levels.over(caller, model, run)
        if not levels:
            return [None] * count
        if not self.places.enter_all(places, count):
            return None
        if sizes.count(sizes[0]) == count:
            wishes = [self._wish(who, sizes[0])] * count
        else:
            wishes = [self._wish(who, size) for size in sizes]
        taken = self._rates.take_in_turn(levels, wishes, self.clock.monotonic_ns())
        if taken is None:
            self.places.leave_all(places, count)
            return None
        return [
            Pass(self, who, size, places, each) for size, each in zip(sizes, taken, strict=True)
        ]

    def _enter(
        self, levels: Sequence[Level], who: Hashable, size: Size, places: Sequence[Level]
    ) -> Pass:
        """Of one that has its places, which it leaves again where its rates refuse it."""
        try:
            wish = self._wish(who, size)
            taken = self._rates.take(levels, wish, self.clock.monotonic_ns())
        except LlmhostError:
            self.places.leave(places)
            raise
        return Pass(self, who, size, places, taken)

    def take_at_once(
        self, caller: Caller, model: str, run: str | None, size: Size, used: Used
    ) -> Allowances:
        """As `admit` and then `settle`, of a request that is answered whole in this turn and of which all is known.

        Raises as `admit` does, and NoPlace where it would have to wait. Then nothing has been counted.
        """
        levels, places, _, who = self._levels.over(caller, model, run)
        if not levels:
            return NO_ALLOWANCES
        if not self.places.has_room(places):
            raise NoPlace
        wish, now_ns = self._wish(who, size), self.clock.monotonic_ns()
        allowances, has_output = self._rates.spend(levels, wish, used, now_ns)
        if has_output and size.choices:
            self.lengths.note(who, -(-used.output_tokens // size.choices))
        return allowances

    def count(self, caller: Caller, model: str, run: str | None) -> Pass | None:
        """Count a request that will not run: no tokens and no place. Raises as `admit` does for too many requests."""
        levels, _, _, who = self._levels.over(caller, model, run)
        if not levels:
            return None
        now_ns = self.clock.monotonic_ns()
        taken = self._rates.take(levels, Wish(0), now_ns)
        taken.settle(0, 0, now_ns)
        return Pass(self, who, Size(input_tokens=0), (), taken)

    def check(self, caller: Caller, model: str, run: str | None, size: Size) -> None:
        """Raises what would refuse a request that was counted, as `admit` does, but that it waits for no place."""
        levels, _, _, who = self._levels.over(caller, model, run)
        if levels:
            wish = structs.replace(self._wish(who, size), requests=0)
            self._rates.check(levels, wish, self.clock.monotonic_ns())

    def glance(self, caller: Caller, model: str, run: str | None) -> None:
        """Raises LimitReached where not even a request without a token would be let in now. Nothing is taken."""
        if levels := self._levels.of(caller, model, run):
            self._rates.check(levels, Wish(0), self.clock.monotonic_ns())

    def _wish(self, who: Hashable, size: Size) -> Wish:
        if not size.choices:
            return Wish(size.input_tokens)
        asked, usual, choices = size.asked_tokens, self.lengths.p90(who), size.choices
        if asked is not None:
            each = asked if usual is None or asked < usual else usual
            return Wish(size.input_tokens, choices * each, choices * asked)
        each = min(size.longest_tokens, FIRST_GUESS_TOKENS if usual is None else usual)
        return Wish(size.input_tokens, choices * each)
