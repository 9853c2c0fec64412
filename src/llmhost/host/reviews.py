"""The queue of reviews of a node, opened and joined."""

from collections.abc import Iterable
from contextlib import AsyncExitStack

import msgspec

from llmhost.api.batches.line_routes import line_routes
from llmhost.api.dialect import ANTHROPIC_PATH, dialect_of_path
from llmhost.api.messages import MESSAGES
from llmhost.api.responses.desk import Desk
from llmhost.api.reviews.caller_wire import review_object
from llmhost.config.schema.safety import ReviewSettings
from llmhost.core.ports import Clock
from llmhost.deploy.catalogue import Catalogue
from llmhost.host.batches import caller_now
from llmhost.host.books import Books
from llmhost.observe.reviews import ReviewMetrics, Waiting
from llmhost.pipeline.bill import Bill
from llmhost.pipeline.held import Holds
from llmhost.pipeline.posting import Target
from llmhost.pipeline.processor import Processor
from llmhost.pipeline.webhooks import Webhook
from llmhost.safety.queue import Deed, ReviewQueue
from llmhost.storage.held_calls import HeldCalls
from llmhost.storage.node import DataDir
from llmhost.storage.reviews import ReviewStore
from llmhost.storage.told_events import ToldEvents


def open_reviews(
    data_dir: DataDir, settings: ReviewSettings, clock: Clock, closing: AsyncExitStack
) -> ReviewQueue:
    """Open the file; `closing` closes it. Blocks."""
    store = ReviewStore(data_dir.reviews_db, node_id=data_dir.node_id)
    closing.callback(store.close)
    return ReviewQueue(store, settings, data_dir.review_secret, clock)


def open_holds(
    data_dir: DataDir,
    queue: ReviewQueue,
    clock: Clock,
    *,
    processor: Processor,
    responses: Desk,
    catalogue: Catalogue,
    bill: Bill,
    books: Books,
) -> Holds:
    """Nothing runs before `start`, but what is approved from now on."""
    return Holds(
        queue,
        HeldCalls(queue.store, node_id=data_dir.node_id),
        processor,
        {**line_routes(processor, responses, catalogue), ANTHROPIC_PATH: MESSAGES},
        clock,
        error_body=lambda path, error: dialect_of_path(path).error_body(error),
        caller_of=lambda caller: caller_now(books.keys, caller),
        book_late=bill.settle.book_late,
        known=books.ledger.known,
    )


def open_webhook(
    data_dir: DataDir, queue: ReviewQueue, clock: Clock, metrics: ReviewMetrics
) -> Webhook | None:
    """Tells nobody before `run`; None where no URL is configured."""
    settings = queue.settings
    if settings.webhook is None:
        return None
    target = Target(settings.webhook, settings.webhook_private, settings.webhook_timeout_s)
    return Webhook(
        target,
        queue,
        ToldEvents(queue.store, settings.webhook, node_id=data_dir.node_id),
        clock,
        secret=data_dir.webhook_secret,
        node_id=data_dir.node_id,
        shown=lambda review: msgspec.to_builtins(review_object(review)),
        count=metrics.webhook,
    )


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
