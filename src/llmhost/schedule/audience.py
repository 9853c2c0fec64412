"""Who listens to what an engine's sequences say: each step is told to all of them in one go. On the HTTP loop."""

import logging
import time
from collections.abc import Sequence

from llmhost.core.errors import LlmhostError
from llmhost.core.output import Delta, FinishReason
from llmhost.core.ports import DeltaSink
from llmhost.core.sequence import SequenceSpec
from llmhost.schedule.drain import DrainForecast
from llmhost.schedule.ears import Ears, Entry, get_ready
from llmhost.schedule.scheduler import Emission
from llmhost.schedule.steady import Chorus

log = logging.getLogger("llmhost.schedule")

WHOLE = (FinishReason.STOP, FinishReason.LENGTH)
"""Ends of answers that nobody cut."""


class Audience:
    """The sinks of one engine's sequences, and the forecast of when there is room for more of them."""

    def __init__(self, name: str, *, batch: int, most_live: int) -> None:
        self.entries: dict[int, Entry] = {}
        """By sequence, those that have not ended. To be looked at only."""
        self._name = name
        self._drain = DrainForecast(batch=batch, most_live=most_live)
        self._ears: Ears | None = None

    def join(self, seq_id: int, spec: SequenceSpec, sink: DeltaSink) -> None:
        left = spec.max_new_tokens - len(spec.generated)
        speaker = self._drain.came(seq_id, left, time.monotonic())
        self.entries[seq_id] = (spec.index, sink, speaker)

    def wait_s(self) -> float:
        """How long whoever finds no room now should wait."""
        return self._drain.wait_s(time.monotonic())

    def hear(self, emissions: Sequence[Emission]) -> None:
        """What a step has brought."""
        now_s = time.monotonic()
        if type(emissions) is Chorus:
            if self._ears is None or not self._ears.are_of(emissions):
                self._part()
                self._ears = Ears(emissions, self.entries)
            if self._ears.hear(emissions, self._drain, now_s, self._tell):
                return
        self._part()
        get_ready(emissions, self.entries)
        sinks, drain, is_measured = self.entries, self._drain, False
        for seq_id, delta in emissions:
            if (entry := sinks.get(seq_id)) is None:
                continue
            _, sink, speaker = entry
            if tokens := delta.tokens:
                speaker.said += len(tokens)
                if not is_measured or speaker.first_s is None:
                    is_measured |= drain.heard(speaker, now_s)
            if (reason := delta.finish_reason) is not None:
                del sinks[seq_id]
                drain.ended(seq_id, is_whole=reason in WHOLE)
            try:  # as `_tell`, without a call for every token
                sink(delta)
            except Exception:
                log.exception("sink.failed model=%s", self._name)

    def leave(self, error: LlmhostError) -> None:
        """Nothing more will be said: whoever is still here hears why."""
        self._part()
        for index, sink, _ in list(self.entries.values()):
            self._tell(sink, Delta(index, finish_reason=FinishReason.ERROR, error=error))
        self.entries.clear()

    def _part(self) -> None:
        if self._ears is not None:
            self._ears.part()
            self._ears = None

    def _tell(self, sink: DeltaSink, delta: Delta) -> None:
        try:
            sink(delta)
        except Exception:  # boundary: one reader's bug must cost nobody else anything
            log.exception("sink.failed model=%s", self._name)
