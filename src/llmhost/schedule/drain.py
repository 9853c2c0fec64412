"""When there will be room for one more sequence: what a refused caller is told to wait. Pure: the time is given.

Those that run speak at a measured rate, each has so much left to say, and whoever waits begins when one ends. Played
forward, that gives the moments at which places come free. Callers that were told to come back have the first of them.
"""

from collections import deque
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

import msgspec

FIRST_S = 1.0
"""What is told while nothing has been measured."""
MOST_S = 600.0
MARGIN = 1.1
"""Waits are told a little too long: to come too early means to come again."""
GRACE_S = 2.0
"""How long after its time a place is kept in mind for whoever was told of it."""
STALE_S = 0.2
"""So long a forecast holds, if nobody has ended meanwhile."""
CHANGE = 0.1
"""Part of each new measurement that enters an average."""


class Speaker(msgspec.Struct, gc=False):
    """One sequence that has not ended, as the door sees it."""

    most_tokens: int
    began_s: float | None
    """When it came, if it found a place in the batch at once."""
    said: int = 0
    first_s: float | None = None
    """When it said its first token."""


class DrainForecast:
    """Keeps count of one model's sequences, in order of arrival."""

    def __init__(self, *, batch: int, most_live: int) -> None:
        self._batch = batch
        self._most_live = most_live
        self._live: dict[int, Speaker] = {}
        self._promised: deque[float] = deque()
        self._token_s: float | None = None
        """Seconds from one token of a sequence to its next."""
        self._measured_s = float("-inf")
        """When it was last measured: once in a step, for all of a step tell the same."""
        self._start_s = 0.0
        """Seconds from a place in the batch to the first token."""
        self._said_share = 1.0
        """Of the tokens that they may say, how many sequences do say."""
        self._whole = 0
        self._ends: list[float] = []
        self._pass_s = 0.0
        """From a full house to the end of everybody who was in it, when all begin anew."""
        self._made_s = float("-inf")

    def came(self, seq_id: int, most_tokens: int, now_s: float) -> Speaker:
        """A sequence was let in. It may be one that was told to come at this time."""
        if self._promised:
            self._promised.popleft()
        began_s = now_s if len(self._live) < self._batch else None
        speaker = self._live[seq_id] = Speaker(max(most_tokens, 1), began_s)
        return speaker

    def said(self, seq_id: int, tokens: int, now_s: float) -> None:
        speaker = self._live.get(seq_id)
        if speaker is not None and tokens:
            speaker.said += tokens
            self.heard(speaker, now_s)

    def heard(self, speaker: Speaker, now_s: float) -> bool:
        """One has said more, which is noted already. Whether others that do so at this moment tell nothing new, but
        for who says its first."""
        if speaker.first_s is None:
            speaker.first_s = now_s
            if speaker.began_s is not None:
                self._start_s += CHANGE * (now_s - speaker.began_s - self._start_s)
        elif now_s != self._measured_s and speaker.said > 1:
            self._measured_s = now_s
            each = (now_s - speaker.first_s) / (speaker.said - 1)
            self._token_s = each if self._token_s is None else self._toward(self._token_s, each)
            return True
        return False

    def ended(self, seq_id: int, *, is_whole: bool) -> None:
        """`is_whole`: it said all that it wanted to, and was not cut off."""
        speaker = self._live.pop(seq_id, None)
        if speaker is not None:
            self._made_s = float("-inf")
            if is_whole:
                self._whole += 1
                share = speaker.said / speaker.most_tokens
                change = max(CHANGE, 1 / self._whole)
                self._said_share += change * (share - self._said_share)

    def wait_s(self, now_s: float) -> float:
        """How long whoever is refused now should wait. The place is kept in mind."""
        while self._promised and self._promised[0] < now_s - GRACE_S:
            self._promised.popleft()
        if self._token_s is None or not self._live:
            return FIRST_S
        place = len(self._live) - self._most_live + len(self._promised)
        wait_s = max((self._end(max(place, 0), now_s) - now_s) * MARGIN, FIRST_S)
        wait_s = min(max(wait_s, self._after_others(now_s)), MOST_S)
        self._promised.append(now_s + wait_s)
        return wait_s

    def _after_others(self, now_s: float) -> float:
        """Never before those who were told earlier; and they need their time, once they fill all places."""
        if not self._promised:
            return 0.0
        latest = self._promised[-1]
        if len(self._promised) >= self._most_live:
            latest = max(latest, self._promised[-self._most_live] + self._pass_s * MARGIN)
        return latest - now_s

    def _end(self, place: int, now_s: float) -> float:
        """When the sequence ends that is the `place`th to end from now, those who were told to come among them."""
        if now_s - self._made_s > STALE_S:
            self._made_s = now_s
            self._ends = list(self._forecast(now_s))
        if place < len(self._ends):
            return self._ends[place]
        rounds, rest = divmod(place, len(self._ends))  # those who come back take as long again
        return self._ends[rest] + rounds * self._pass_s

    def _forecast(self, now_s: float) -> Iterable[float]:
        token_s = self._token_s or 0.0
        said = sum(speaker.most_tokens for speaker in self._live.values()) * self._said_share
        self._pass_s = (said * token_s + len(self._live) * self._start_s) / self._batch
        lefts = [self._left(speaker) * token_s for speaker in self._live.values()]
        running = [now_s + left_s for left_s in lefts[: self._batch]]
        heapify(running)
        for left_s in lefts[self._batch :]:
            end_s = heappop(running)
            yield end_s
            heappush(running, end_s + self._start_s + left_s)
        while running:
            yield heappop(running)

    def _left(self, speaker: Speaker) -> float:
        """Tokens that it has still to say; one that has said more than is usual, half of what it may."""
        usual = speaker.most_tokens * self._said_share - speaker.said
        return usual if usual >= 1 else max((speaker.most_tokens - speaker.said) / 2, 1.0)

    def _toward(self, known: float, measured: float) -> float:
        return known + CHANGE * (measured - known)
