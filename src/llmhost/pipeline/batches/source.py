"""A batch's input, read some lines at a time in a thread: it may be larger than memory."""

import asyncio
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Iterator, Set
from itertools import islice
from pathlib import Path

from llmhost.pipeline.batches.lines import Check, Line, numbered, read_line

LINES_AT_ONCE, BYTES_AT_ONCE = 64, 1 << 20


def raw_lines(path: Path, longest_bytes: int) -> Iterator[bytes]:
    """Lines of a file; of one that is longer, a beginning that is too long, too. Blocks."""
    with path.open("rb") as file:
        while raw := file.readline(longest_bytes + 2):
            yield raw
            rest = raw
            while not rest.endswith(b"\n") and (rest := file.readline(longest_bytes)):
                pass


def _without_mark(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Editors and shells of Windows write a mark before the first line of a text in UTF-8."""
    yield next(lines, b"").removeprefix(BOM_UTF8)
    yield from lines


def check_input(path: Path, check: Check, longest_bytes: int) -> Check:
    """Look at all of it, or at so much that more would be in vain. Blocks."""
    for number, raw in numbered(_without_mark(raw_lines(path, longest_bytes))):
        check.look(raw, number)
        if check.is_hopeless:
            break
    check.end()
    return check


class Source:
    """Lines that are to be run, each handed out once, to whoever asks next."""

    def __init__(self, path: Path, endpoint: str, longest_bytes: int, skip: Set[int]) -> None:
        self._lines = lines_left(path, endpoint, longest_bytes, skip)
        self._ready: deque[Line] = deque()
        self._turn = asyncio.Lock()
        self._is_over = False

    async def next(self) -> Line | None:
        """None when there are no more."""
        async with self._turn:
            if not self._ready and not self._is_over:
                self._ready.extend(await asyncio.to_thread(self._read))
                self._is_over = not self._ready
            return self._ready.popleft() if self._ready else None

    def _read(self) -> list[Line]:
        found: list[Line] = []
        size = 0
        for line in islice(self._lines, LINES_AT_ONCE):
            found.append(line)
            size += len(line.body)
            if size >= BYTES_AT_ONCE:
                break
        return found


def lines_left(path: Path, endpoint: str, longest_bytes: int, skip: Set[int]) -> Iterator[Line]:
    """Those of an input that was found to be right whose numbers are not among these. Blocks."""
    for number, raw in numbered(_without_mark(raw_lines(path, longest_bytes))):
        if number not in skip:
            line = read_line(raw, number, endpoint)
            if isinstance(line, Line):  # it was looked at before, and the file can't have changed
                yield line
