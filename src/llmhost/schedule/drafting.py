"""Prompt lookup: what a sequence says next is often what it said before, so look where its last words stood earlier.

Pure, and it knows no model. Each sequence has a chain of places by pairs of tokens (as LZ77 compressors have), so a
token costs one entry and a guess costs a few comparisons, however long the text is.
"""

from collections.abc import Sequence

from llmhost.core.ports import DraftAsk

SHORTEST_MATCH = 2
"""Tokens that must stand earlier in the text for what followed them to be a guess."""
LONGEST_MATCH = 8
"""A longer match is no better a reason."""
PLACES_TRIED = 8
"""Earlier places that are compared, the latest first."""
WINDOW_TOKENS = 8192
"""Of a longer text, no more than twice so many of the latest tokens are remembered."""


class PromptLookup:
    """Guesses by repeating the text. Implements the Drafter port; uses no device."""

    device_ns = 0
    device_nano = 0

    def __init__(self, *, window_tokens: int = WINDOW_TOKENS) -> None:
        self._window = window_tokens
        self._texts: dict[int, Places] = {}
        self._predicted: dict[int, PredictedText] = {}

    def propose(self, asks: Sequence[DraftAsk]) -> list[Sequence[int]]:
        return [
            self._predicted_text(ask).guess(ask)
            if ask.predicted
            else self._places(ask).guess(ask.tokens, ask.most)
            for ask in asks
        ]

    def forget(self, seq_id: int) -> None:
        self._texts.pop(seq_id, None)
        self._predicted.pop(seq_id, None)

    def sleep(self) -> None:
        self._texts.clear()
        self._predicted.clear()

    def wake(self) -> None:
        pass

    def close(self) -> None:
        self.sleep()

    def _predicted_text(self, ask: DraftAsk) -> "PredictedText":
        if (text := self._predicted.get(ask.seq_id)) is None:
            text = self._predicted[ask.seq_id] = PredictedText(ask)
        return text

    def _places(self, ask: DraftAsk) -> "Places":
        places = self._texts.get(ask.seq_id)
        if places is None or len(ask.tokens) - places.first > 2 * self._window:
            places = Places(max(len(ask.tokens) - self._window, 0))
            self._texts[ask.seq_id] = places
        return places


class PredictedText:
    """What a caller predicted, with the end of the prompt before it, as if the text had begun with both: so the first
    words of the answer are found there, and then those behind what was said last."""

    def __init__(self, ask: DraftAsk) -> None:
        end = ask.prompt_tokens
        self._text = [*ask.tokens[max(end - LONGEST_MATCH, 0) : end], *ask.predicted]
        self._head = len(self._text)
        self._places = Places()

    def guess(self, ask: DraftAsk) -> list[int]:
        self._text += ask.tokens[len(self._text) - self._head :]
        return self._places.guess(self._text, ask.most)


class Places:
    """Where in one text each pair of tokens stood, from position `first` on. The text only ever grows."""

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self._latest: dict[
            tuple[int, int], int
        ] = {}  # a pair, and where its second token stood last
        self._before: list[
            int
        ] = []  # for each position after `first`: where that pair stood before

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that followed the longest match of the text's end; none when nothing matches."""
        self._read(tokens)
        place = self._match(tokens)
        if place is None:
            return []
        guess: list[int] = []
        end = len(tokens)
        for source in range(place + 1, place + 1 + most):
            # Beyond the end the guess goes on with itself: the text repeats what is shorter than the guess.
            guess.append(tokens[source] if source < end else guess[source - end])
        return guess

    def _read(self, tokens: Sequence[int]) -> None:
        """Take in what is new. The last pair stays out until something follows it, or it would find itself."""
        latest, before = self._latest, self._before
        for place in range(self.first + 1 + len(before), len(tokens) - 1):
            pair = (tokens[place - 1], tokens[place])
            before.append(latest.get(pair, -1))
            latest[pair] = place

    def _match(self, tokens: Sequence[int]) -> int | None:
        """The place before the end where most of the last tokens stood; the latest of several."""
        if len(tokens) - self.first < SHORTEST_MATCH + 1:
            return None
        place = self._latest.get((tokens[-2], tokens[-1]), -1)
        best, best_length = None, SHORTEST_MATCH - 1
        for _ in range(PLACES_TRIED):
            if place < 0:
                break
            length = self._common(tokens, place)
            if length > best_length:
                best, best_length = place, length
                if length == LONGEST_MATCH:
                    break
            place = self._before[place - self.first - 1]
        return best

    def _common(self, tokens: Sequence[int], place: int) -> int:
        """How many tokens up to `place` are the text's last ones."""
        limit = min(LONGEST_MATCH, place - self.first + 1)
        length = SHORTEST_MATCH
        while length < limit and tokens[place - length] == tokens[-1 - length]:
            length += 1
        return length
