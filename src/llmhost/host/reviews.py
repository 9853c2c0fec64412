"""The queue of reviews of a node, opened and joined."""

from collections.abc import Iterable
from contextlib import AsyncExitStack

from llmhost.config.schema import ReviewSettings
from llmhost.core.ports import Clock
from llmhost.observe.reviews import ReviewMetrics, Waiting
from llmhost.safety.queue import Deed, ReviewQueue
from llmhost.storage.node import DataDir
from llmhost.storage.reviews import ReviewStore


def open_reviews(
    data_dir: DataDir, settings: ReviewSettings, clock: Clock, closing: AsyncExitStack
) -> ReviewQueue:
    """Open the file; `closing` closes it. Blocks."""
    store = ReviewStore(data_dir.reviews_db, node_id=data_dir.node_id)
    closing.callback(store.close)
    return ReviewQueue(store, settings, data_dir.review_secret, clock)


def measure(queue: ReviewQueue, metrics: ReviewMetrics, clock: Clock) -> None:
    """Have metrics told of the queue."""

    def waiting() -> Iterable[Waiting]:
        now_ns = clock.utc_ns()
        for review in queue.pending():
            age_s = (now_ns - review.at_ns) / 1e9
            yield Waiting(review.state.value, age_s, now_ns > review.due_ns)

    def tell(deed: Deed) -> None:
        review = deed.review
        if deed.event == "referred":
            metrics.referred(review.mode.value)
        elif deed.event == review.state.value and review.state.is_end:
            metrics.ended(review.state.value, (deed.at_ns - review.at_ns) / 1e9)

    metrics.read_from(waiting)
    queue.listen(tell)
