"""Records entries as fast as it can and prints each request id once its entry is on disk. Is killed from outside.

Usage: python record_forever.py FILE PREFIX
"""

import os
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

from llmhost.cost import rows, tables
from llmhost.cost.entries import Entry, Recorded
from llmhost.cost.ledger import Ledger
from llmhost.storage.reader import Reader
from llmhost.storage.writer import Writer


class NoClock:
    def monotonic_ns(self) -> int:
        return 0

    def utc_ns(self) -> int:
        return 0


def main(path: Path, prefix: str) -> None:
    writer = Writer(path, synchronous="FULL", migrations=[tables.SCHEMA, rows.SCHEMA])
    ledger = Ledger(writer, Reader(path), node_id="node-1", clock=NoClock())
    room = threading.Semaphore(200)

    def tell(future: Future[Recorded]) -> None:
        os.write(1, f"{future.result().entry.request_id}\n".encode())
        room.release()

    number = 0
    while True:
        room.acquire()
        number += 1
        entry = Entry(
            request_id=f"{prefix}-{number}",
            utc_ns=number,
            key_id="k",
            org="acme",
            model="tiny@1",
            outcome="answered",
            output_tokens=number,
            amount_nano=number,
        )
        ledger.record(entry).add_done_callback(tell)
        if number % 10 == 0:
            ledger.record(entry)  # a replay, which must not be seen


main(Path(sys.argv[1]), sys.argv[2])
