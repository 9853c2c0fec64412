"""Which room a context should have for what runs: one buffer for all sequences, or one for each. Pure.

In one buffer every token looks at the cells of all, though it attends to its own only, which costs a third of a step
with 32 independent sequences. With a buffer for each it looks at its own; but what two of them share lies in memory
twice and is read twice, and no buffer has room for more than its part. So many short texts are kept apart, and few,
long or common ones together.
"""

from collections.abc import Sequence

from llmhost.core.step import Row
from llmhost.engines.llama.context import MOST_SEQUENCES, PAD_CELLS, ContextShape, Room, padded

SPARE_SHARE = 8
"""One part in so many is leased beyond what blocks hold, so that a context that is as full as it may be isn't made
anew for every text that comes."""

ENOUGH_ROWS, TOO_FEW_ROWS = 6, 3
"""As many as are kept apart, and as few as aren't any more once that has lasted."""
LEAST_BUFFERS = 8
LITTLE_SHARED, MUCH_SHARED = 0.25, 0.5
"""Of the blocks of all: with more than little in common they aren't parted, and with much they are brought together."""


ROUNDED_CELLS = 2 * PAD_CELLS


def most_tokens(lease_tokens: int) -> int:
    """Of a context and of what waits beside it in host memory, together, under a lease of blocks for so many."""
    return padded(lease_tokens + max(lease_tokens // SPARE_SHARE, PAD_CELLS))


def with_spare(size_bytes: int) -> int:
    """What is leased for a block of so many bytes. What `most_tokens` rounds up is `ROUNDED_CELLS` at most."""
    return size_bytes + -(-size_bytes // SPARE_SHARE)


def spare_tokens(lease_tokens: int) -> int:
    """Of that the part beyond the blocks' own."""
    return most_tokens(lease_tokens) - lease_tokens


def most_cells(lease_tokens: int, waiting_tokens: int) -> int:
    """Of a context beside which so much waits. Since all blocks together hold no more than the lease, there is room in
    it for whatever doesn't wait, and for the spare part."""
    free = most_tokens(lease_tokens) - waiting_tokens
    return max(free - free % PAD_CELLS, PAD_CELLS)


def apart_for(rows: Sequence[Row], shape: ContextShape, lease_tokens: int) -> Room | None:
    """Buffers that these rows should have; None where one for all is better, or what there is doesn't suffice.

    They take half of the lease at most: what rests needs the other. On a GPU it is dear to change the room, so there
    nobody is parted who was not told to be.
    """
    is_told = shape.layout == "partitioned"
    if shape.layout == "unified" or len(rows) < (1 if is_told else ENOUGH_ROWS) or shape.rows < 2:
        return None
    if shape.offloads_kv and not is_told:
        return None
    buffers = min(max(1 << (len(rows) - 1).bit_length(), LEAST_BUFFERS), shape.rows)
    cells = padded(longest_of(rows) + 1)
    most = min(lease_tokens // 2 // buffers, max(2 * cells, 2 * PAD_CELLS))
    most -= most % PAD_CELLS
    if most < cells or buffers > MOST_SEQUENCES:
        return None
    return Room(most, buffers) if is_told or share_of(rows) <= LITTLE_SHARED else None


def suits(room: Room, rows: Sequence[Row], shape: ContextShape) -> bool:
    """Whether buffers that are there will do for these rows. Cheap: it is asked in every step."""
    if len(rows) > room.buffers or longest_of(rows) > room.cells:
        return False
    is_new = any(row.start and len(row.tokens) > 1 for row in rows)
    return not (shape.layout == "auto" and is_new and share_of(rows) > MUCH_SHARED)


def rooms_of(shape: ContextShape, lease_tokens: int) -> list[Room]:
    """The largest rooms that a context may be given of a lease."""
    found = [Room(lease_tokens)]
    if shape.layout == "partitioned" or (shape.layout == "auto" and not shape.offloads_kv):
        cells = lease_tokens // 2 // shape.rows // PAD_CELLS * PAD_CELLS
        if cells and 1 < shape.rows <= MOST_SEQUENCES:
            found.append(Room(cells, shape.rows))
    return found


def longest_of(rows: Sequence[Row]) -> int:
    return max(row.start + len(row.tokens) for row in rows)


def share_of(rows: Sequence[Row]) -> float:
    """Of all that these rows' tables name, the part that another names too."""
    named = sum(len(row.blocks) for row in rows)
    return 1 - len({block for row in rows for block in row.blocks}) / max(named, 1)
