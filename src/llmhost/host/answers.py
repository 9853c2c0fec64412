"""Answers that are kept for whoever asks again, where a node has them."""

from contextlib import AsyncExitStack

from llmhost.config.schema.state import IdempotencySettings
from llmhost.core.ports import Clock
from llmhost.storage.answers import SCHEMA, Answers
from llmhost.storage.node import DataDir
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer

MOST_WAITING = 1_000
"""Answers that may wait to be kept, each in memory as a whole; more are not kept."""


def open_answers(
    data_dir: DataDir, settings: IdempotencySettings, clock: Clock, closing: AsyncExitStack
) -> Answers:
    """Open the file; `closing` closes it. Blocks."""
    path = data_dir.answers_db
    writer = Writer(path, synchronous="NORMAL", migrations=[SCHEMA], max_queue=MOST_WAITING)
    closing.callback(writer.close)
    reader = Reader(path)
    closing.callback(reader.close)
    return Answers(
        writer,
        reader,
        node_id=data_dir.node_id,
        clock=clock,
        kept_s=settings.kept_s,
        most_bytes=settings.max_kept_bytes,
    )
