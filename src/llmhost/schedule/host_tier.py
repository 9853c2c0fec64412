"""Texts of blocks that had to leave the device, in slots of host memory. It knows numbers; runners move the bytes."""

from collections.abc import Iterator

from llmhost.schedule.prefix import Place, PrefixIndex, Text


class HostTier:
    """Least recently used out first. A text is here or on the device, never in both."""

    def __init__(self, slots: int, serials: Iterator[int]) -> None:
        self.slots = slots
        self.evicted = 0
        self._blank = list(range(slots - 1, -1, -1))
        self._kept: dict[int, None] = {}
        self._index = PrefixIndex(serials, is_on_host=True)

    @property
    def used(self) -> int:
        return len(self._kept)

    def find(self, text: Text) -> Place | None:
        return self._index.find(text)

    def keep(self, text: Text, serial: int) -> int | None:
        """A slot for a text that leaves the device; None when there is no slot at all."""
        if self.slots == 0:
            return None
        if not self._blank:
            if not self._kept:
                return None  # all slots are on their way back to the device
            self.drop(next(iter(self._kept)))
            self.evicted += 1
        slot = self._blank.pop()
        self._index.enter(text, slot, serial)
        self._kept[slot] = None
        return slot

    def claim(self, slot: int) -> tuple[Text, int]:
        """Take a text out. Its slot is not used again before `free`."""
        del self._kept[slot]
        return self._index.leave(slot)

    def free(self, slot: int) -> None:
        self._blank.append(slot)

    def drop(self, slot: int) -> int:
        """Forget a text; returns the serial number that it had."""
        _, serial = self.claim(slot)
        self.free(slot)
        return serial

    def clear(self) -> None:
        for slot in list(self._kept):
            self.drop(slot)

    def check(self) -> None:
        """Audit, between two plans: every slot is blank or kept with a text."""
        seen = sorted([*self._blank, *self._kept])
        assert seen == list(range(self.slots)), f"{self.slots} slots, but the books show {seen}"
        assert set(self._index.blocks()) == set(self._kept), "a slot without a text, or a lost one"
