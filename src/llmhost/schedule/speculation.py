"""How many guesses to try in a step, so that trying them pays. Pure: times come from outside.

A guess costs a little time whether it is right or not. What it brings is a token, with the chance that the guesses
before it and itself are right. Sequences whose guesses have been right get more of them, and nobody gets any that
costs more than it brings. What is not known yet is tried on credit: a purse that fills with a small share of the
time, pays what guessing has cost and takes in what it has saved. While it is empty nothing is guessed. So however
wrong the estimates are, guessing slows a model down by that share at most.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmhost.core.ports import DraftAsk
from llmhost.core.step import Draw, Row, StepResult, confirmed_drafts

CREDIT_SHARE = 0.02
"""Part of the time that may be spent on finding out whether guesses pay."""
FIRST_CREDIT_STEPS = 4
"""Plain steps' worth that a freshly loaded model may spend at once."""
MOST_SAVED_STEPS = 32
"""Plain steps' worth that the purse holds: what went well long ago excuses nothing."""
PLAIN_EVERY = 64
"""While guesses pay, one step in so many goes without, to know what a plain step takes."""
PROBE_TOKENS = 3
"""Guesses of a sequence that is only tried."""
FIRST_CHANCE = 0.6
"""Of a guess, before any was checked."""


@dataclass(slots=True)
class Chance:
    """How likely a guess is right, given that those before it were: recent ones count most."""

    right: float = 0.0
    checked: float = 0.0

    def learn(self, tried: int, right: int, memory: float) -> None:
        """Those after the first wrong one were not checked."""
        self.right = self.right * memory + right
        self.checked = self.checked * memory + right + (1 if right < tried else 0)

    def estimate(self, before: float, weight: float) -> float:
        """As if `weight` guesses with the chance `before` had been checked first."""
        return (before * weight + self.right) / (weight + self.checked)


class StepCosts:
    """What steps take, measured: plain ones by their number of sequences, and what guesses add to them."""

    def __init__(self) -> None:
        self._plain: dict[int, float] = {}
        self._count = self._sum_k = self._sum_kk = self._sum_x = self._sum_kx = 0.0
        self.guess_ns = 0.0
        """Time to make one more guess for everybody."""

    def plain_ns(self, sequences: int) -> float | None:
        return self._plain.get(sequences)

    def learn_plain(self, sequences: int, took_ns: int) -> None:
        known = self._plain.get(sequences)
        self._plain[sequences] = took_ns if known is None else _towards(known, took_ns)

    def learn_guesses(self, guesses: int, share: float) -> None:
        """A step with `guesses` in it took longer than a plain one by this share of it."""
        memory = 0.97
        share = min(max(share, 0.0), 4.0)  # a step that was interrupted says nothing of guesses
        self._count = self._count * memory + 1
        self._sum_k = self._sum_k * memory + guesses
        self._sum_kk = self._sum_kk * memory + guesses * guesses
        self._sum_x = self._sum_x * memory + share
        self._sum_kx = self._sum_kx * memory + guesses * share

    def learn_guessing(self, depth: int, took_ns: int) -> None:
        each = took_ns / depth
        self.guess_ns = _towards(self.guess_ns, each) if self.guess_ns else each

    @property
    def are_known(self) -> bool:
        return self._count > 0

    def added_shares(self) -> tuple[float, float]:
        """What guesses add to a step, as shares of a plain one: once, and for each of them. A line through what was
        measured; one through zero while all had the same number."""
        if not self._count:
            return 0.0, 1.0
        spread = self._sum_kk - self._sum_k * self._sum_k / self._count
        if spread > 1e-3 * self._sum_kk:
            each = (self._sum_kx - self._sum_k * self._sum_x / self._count) / spread
            once = (self._sum_x - each * self._sum_k) / self._count
            if each >= 0.0 and once >= 0.0:
                return once, each
        return 0.0, self._sum_x / self._sum_k


class Speculation:
    """Decides for one model, and learns from its steps."""

    def __init__(self, *, most_tokens: int, most_sequences: int) -> None:
        self.most_tokens = most_tokens
        """Guesses that one sequence may try in a step."""
        self.most_sequences = most_sequences
        """With more sequences in a step nothing is guessed: they fill the device without it."""
        self.costs = StepCosts()
        self.typical = Chance()
        self._chances: dict[int, Chance] = {}
        self._purse_ns: float | None = None
        self._turns = 0
        self._probed: dict[int, int] = {}  # sequence to the turn in which it was last given guesses

    def forget(self, seq_id: int) -> None:
        self._chances.pop(seq_id, None)
        self._probed.pop(seq_id, None)

    def chance(self, seq_id: int) -> float:
        typical = self.typical.estimate(FIRST_CHANCE, 8.0)
        own = self._chances.get(seq_id)
        return typical if own is None else own.estimate(typical, 4.0)

    def share_out(self, asks: Sequence[DraftAsk], sequences: int) -> list[DraftAsk]:
        """Who may try how many guesses in a step of `sequences` sequences, as asks with their `most` set."""
        plain_ns = self.costs.plain_ns(sequences)
        if not asks or sequences > self.most_sequences or plain_ns is None:
            return []
        self._turns += 1
        if self._turns % PLAIN_EVERY == 0 or self._purse(plain_ns) <= 0.0:
            return []
        given = [ask._replace(most=min(ask.most, self.most_tokens)) for ask in asks if ask.most > 0]
        chosen = self._worthwhile(given, sequences, plain_ns) or self._probe(given, plain_ns)
        for ask in chosen:
            self._probed[ask.seq_id] = self._turns
        return chosen

    def learn(self, result: StepResult, guessing_ns: int = 0) -> None:
        """What a step with or without guesses has shown. `guessing_ns` is what making the guesses took."""
        guesses = right = 0
        for row, drawn in zip(result.rows, result.drawn, strict=True):
            if row.drafts and isinstance(drawn, int | Draw):
                confirmed = confirmed_drafts(row, drawn)
                self.typical.learn(row.drafts, confirmed, 0.99)
                self._chances.setdefault(row.seq_id, Chance()).learn(row.drafts, confirmed, 0.95)
                guesses += row.drafts
                right += confirmed
        if _is_decode(result.rows):
            self._learn_time(result, guesses, right, guessing_ns)

    def _learn_time(self, result: StepResult, guesses: int, right: int, guessing_ns: int) -> None:
        sequences = len(result.rows)
        if not guesses:
            self.costs.learn_plain(sequences, result.busy_ns)
        plain_ns = self.costs.plain_ns(sequences)
        if plain_ns is None:
            return
        purse = self._purse(plain_ns) + self._charged(result.rows, guessing_ns)
        if guesses:
            added_ns = result.busy_ns - plain_ns
            self.costs.learn_guesses(guesses, added_ns / plain_ns)
            purse += right * plain_ns / sequences - added_ns
        else:
            purse += CREDIT_SHARE * result.busy_ns
        self._purse_ns = min(max(purse, -MOST_SAVED_STEPS * plain_ns), MOST_SAVED_STEPS * plain_ns)

    def _charged(self, rows: Sequence[Row], guessing_ns: int) -> float:
        """Making guesses is paid from the purse; not the reading of a prompt, which its later guesses share."""
        depth = max(row.drafts for row in rows) or 1
        if guessing_ns:
            self.costs.learn_guessing(depth, guessing_ns)
        return -min(guessing_ns, 2 * depth * self.costs.guess_ns)

    def _purse(self, plain_ns: float) -> float:
        if self._purse_ns is None:
            self._purse_ns = FIRST_CREDIT_STEPS * plain_ns
        return self._purse_ns

    def _worthwhile(
        self, asks: Sequence[DraftAsk], sequences: int, plain_ns: float
    ) -> list[DraftAsk]:
        if not self.costs.are_known:
            return []
        chances = [(self.chance(ask.seq_id), ask.most) for ask in asks]
        once, each = self.costs.added_shares()
        counts = best_counts(
            chances, sequences, once=once, each=each, deeper=self.costs.guess_ns / plain_ns
        )
        return [ask._replace(most=count) for ask, count in zip(asks, counts, strict=True) if count]

    def _probe(self, asks: Sequence[DraftAsk], plain_ns: float) -> list[DraftAsk]:
        """The one that has waited longest is tried, if the purse pays for it."""
        if not asks:
            return []
        ask = min(asks, key=lambda ask: self._probed.get(ask.seq_id, 0))
        count = min(ask.most, PROBE_TOKENS)
        once, each = self.costs.added_shares()
        price_ns = (once + each * count) * plain_ns + count * self.costs.guess_ns
        return [ask._replace(most=count)] if price_ns <= self._purse(plain_ns) else []


def best_counts(
    chances: Sequence[tuple[float, int]], sequences: int, *, once: float, each: float, deeper: float
) -> list[int]:
    """How many guesses for each of `chances`, (that a guess is right, most guesses), bring most tokens per time.

    A plain step takes 1 and brings `sequences` tokens. Guesses add to its time: `once` if there are any, `each` for
    each, `deeper` for each place in the longest row of them. The likeliest guesses are taken first, for as long as
    they raise the rate.
    """
    likely = sorted(
        (
            (chance**depth, -depth, place)
            for place, (chance, most) in enumerate(chances)
            for depth in range(1, most + 1)
        ),
        reverse=True,
    )
    tokens, time, deepest = float(sequences), 1.0 + once, 0
    best_rate, best_taken = float(sequences), 0
    for taken, (brings, minus_depth, _) in enumerate(likely, 1):
        tokens += brings
        time += each + deeper * max(-minus_depth - deepest, 0)
        deepest = max(deepest, -minus_depth)
        if tokens / time > best_rate:
            best_rate, best_taken = tokens / time, taken
    counts = [0] * len(chances)
    for _, _, place in likely[:best_taken]:
        counts[place] += 1
    return counts


def _is_decode(rows: Iterable[Row]) -> bool:
    """Each row only goes on by a token: steps that compute prompts are not compared."""
    return all(row.wants_token and len(row.tokens) == 1 + row.drafts for row in rows)


def _towards(known: float, measured: float) -> float:
    """A moving average that one interrupted step does not throw off."""
    return known + 0.1 * (min(measured, 2.0 * known) - known)
