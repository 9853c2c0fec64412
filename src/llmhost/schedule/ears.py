"""Who hears what a convoy says: one call for each step, where their sinks can be told together. On the HTTP loop."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from llmhost.core.output import Delta
from llmhost.core.ports import DeltaSink, Joint, JointSink
from llmhost.schedule.drain import DrainForecast, Speaker
from llmhost.schedule.scheduler import Emission
from llmhost.schedule.steady import Chorus

log = logging.getLogger("llmhost.schedule")

Entry = tuple[int, DeltaSink, Speaker]
"""Of a sequence: the choice's index, who hears it, and what the forecast of waits notes of it."""
Tell = Callable[[DeltaSink, Delta], None]


class Ears:
    """Those of one convoy, which is known by its list of ids."""

    def __init__(self, chorus: Chorus, sinks: Mapping[int, Entry]) -> None:
        self._seq_ids = chorus.seq_ids
        entries = [sinks.get(seq_id) for seq_id in chorus.seq_ids]
        self._speakers = [entry[2] for entry in entries if entry is not None]
        self._places: list[int] | None = None
        """Whom `_joint` speaks for; None for all."""
        self._others: list[tuple[int, int, DeltaSink]] = []
        self._joint = self._joined(entries)

    def are_of(self, chorus: Chorus) -> bool:
        return self._seq_ids is chorus.seq_ids

    def hear(self, chorus: Chorus, drain: DrainForecast, now_s: float, tell: Tell) -> bool:
        """False, and nobody has heard anything, where each has to be told alone."""
        if self._joint is None:
            return False
        texts, tokens, places = chorus.texts, chorus.tokens, self._places
        if places is not None:
            texts, tokens = [texts[at] for at in places], [tokens[at] for at in places]
        if not self._joint.hear(texts, tokens):
            return False
        for speaker in self._speakers:
            speaker.said += 1
        drain.heard(self._speakers[0], now_s)
        for place, index, sink in self._others:
            tell(sink, Delta(index, chorus.texts[place], (chorus.tokens[place],)))
        return True

    def part(self) -> None:
        """They are told alone from now on."""
        if self._joint is not None:
            self._joint.part()

    def _joined(self, entries: list[Entry | None]) -> Joint | None:
        """Those that can be told together, if nobody is heard for the first time."""
        joint: list[JointSink] = []
        places: list[int] = []
        for place, entry in enumerate(entries):
            if entry is None:
                continue
            index, sink, speaker = entry
            if speaker.first_s is None:
                return None
            if hasattr(sink, "together") and (not joint or type(sink) is type(joint[0])):
                joint.append(cast(JointSink, sink))
                places.append(place)
            else:
                self._others.append((place, index, sink))
        if len(places) < len(entries):
            self._places = places
        return joint[0].together(joint) if joint else None


def get_ready(emissions: Iterable[Emission], sinks: Mapping[int, Entry]) -> None:
    """Of those that are about to be told their last words, have those get ready together that can."""
    told: list[tuple[Any, Delta]] = []  # whose sinks are a `ReadySink`
    goes_on: set[int] = set()
    for seq_id, delta in emissions:
        if delta.finish_reason is None:
            goes_on.add(seq_id)
            continue
        # Two steps may be told of at once: what is not heard yet of an answer comes before its last words.
        if seq_id in goes_on or (entry := sinks.get(seq_id)) is None:
            continue
        sink = entry[1]
        if hasattr(sink, "get_ready") and (not told or type(sink) is type(told[0][0])):
            told.append((sink, delta))
    if len(told) > 1:
        try:
            told[0][0].get_ready(told)
        except Exception:  # boundary: as around a sink that is told
            log.exception("sink.not_ready")
