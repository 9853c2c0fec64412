"""Bodies that came before, as the requests that they were read as: what a program sends again and again is read once.

What is read is of the body alone, and so are the notes that later stages leave at it (`GenerationRequest.note`). It is
kept from the second time on, for its own caller alone: how soon an answer comes tells nobody what others have sent.
"""

import os
from collections import OrderedDict
from hashlib import blake2b
from typing import Any

from llmhost.core.caller import Caller
from llmhost.core.request import GenerationRequest

LARGEST_BYTES = 32 * 1024
"""Of a body."""
MOST_BYTES = 16 * 2**20
"""Of all that is kept, about."""
MOST_SEEN = 4_096
"""Bodies that came once."""
ENTRY_BYTES = 4_000
GROWTH = 8
"""A body takes so many times its bytes as objects, notes included."""


class KnownBodies:
    """Of one route, on the event loop's thread."""

    def __init__(self) -> None:
        self._hash = blake2b(key=os.urandom(32), digest_size=16)
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._kept: OrderedDict[bytes, tuple[GenerationRequest, Any, int]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def key(self, caller: Caller, raw: bytes) -> bytes | None:
        """None for one that is not kept."""
        if len(raw) > LARGEST_BYTES:
            return None
        whose = f"{caller.key_id}\0{caller.org}\0{caller.team}".encode()
        made = self._hash.copy()
        made.update(b"%d " % len(whose) + whose)
        made.update(raw)
        return made.digest()

    def get(
        self, key: bytes, request_id: str, client_id: str | None
    ) -> tuple[GenerationRequest, Any] | None:
        """The request that the body is, under other ids, and what is known beside."""
        found = self._kept.get(key)
        if found is None:
            return None
        self._kept.move_to_end(key)
        return found[0].again(request_id, client_id), found[1]

    def put(self, key: bytes, raw: bytes, request: GenerationRequest, beside: Any) -> None:
        """It was read. The first time it is only remembered that it came."""
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > MOST_SEEN:
                self._seen.popitem(last=False)
            return
        del self._seen[key]
        request.take_notes()
        size_bytes = ENTRY_BYTES + GROWTH * len(raw)
        self._kept[key] = request.again(request.request_id, None), beside, size_bytes
        self.bytes += size_bytes
        while self.bytes > MOST_BYTES:
            _, (_, _, gone_bytes) = self._kept.popitem(last=False)
            self.bytes -= gone_bytes
