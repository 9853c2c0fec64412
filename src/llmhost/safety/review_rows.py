"""Reviews as rows: how a record is read and written, and how a pure act becomes one on a row."""

from collections.abc import Callable

import msgspec

from llmhost.safety.review import Review, Reviewer
from llmhost.storage.review_rows import Act, Event, Standing

decode = msgspec.json.Decoder(Review).decode
_encode = msgspec.json.Encoder().encode


def act_of(
    change: Callable[[Review], tuple[Review, str]], who: Reviewer, now_ns: int, note: str | None
) -> Act:
    def act(record: bytes) -> tuple[Standing, Event]:
        review, event = change(decode(record))
        return standing_of(review), Event(at_ns=now_ns, event=event, who=who.name, note=note)

    return act


def standing_of(review: Review) -> Standing:
    return Standing(
        state=review.state,
        version=review.version,
        held_until_ns=review.held_until_ns,
        decided_ns=review.decided_ns,
        record=_encode(review),
    )
