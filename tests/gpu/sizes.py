"""How much is measured: on a GPU, or in a rehearsal without one."""

from collections.abc import Mapping

KV_SHARE, MOST_KV_GIB = 0.55, 40
"""Of the device's memory, what a server's KV cache gets: weights, and rooms for steps, have to find place beside it."""
SPARE_BYTES = 4 << 30
"""What a step may need besides weights and KV cache."""


class Sizes:
    """Of the real run, or of its rehearsal. Cases are (sequences, tokens of context)."""

    section_s: Mapping[str, float] = {
        **{"http": 70, "decode": 25, "fp8": 20, "exact": 30, "peer": 40, "prefill": 15},
        **{"profile": 20, "ceilings": 4},
    }
    """What a section takes at least on a GPU: with less time left it isn't begun."""

    def __init__(self, *, is_tiny: bool, free_bytes: int | None = None) -> None:
        """`free_bytes` are those of the device before there is a model; None on a CPU."""
        self.decode = (
            ((1, 40), (3, 40)) if is_tiny else ((1, 1024), (32, 1024), (32, 4096), (256, 1024))
        )
        self.profiled = ((3, 40),) if is_tiny else ((1, 1024), (32, 4096), (256, 1024))
        self.sampled = (3, 40) if is_tiny else (256, 1024)
        self.fp8 = ((3, 40),) if is_tiny else ((1, 1024), (256, 1024))
        self.prefill = (50,) if is_tiny else (250, 2048, 8192)
        self.mixed = (3, 40, 32) if is_tiny else (32, 1024, 512)
        self.steps = 12 if is_tiny else 100
        self.rounds = 2 if is_tiny else 10
        self.engine = ((4, 40),) if is_tiny else ((1, 1024), (32, 1024), (32, 4096), (256, 1024))
        self.engine_tokens = 16 if is_tiny else 128
        self.crowd = 4 if is_tiny else 256
        self.crowd_prompt, self.crowd_output = (20, 8) if is_tiny else (128, 200)
        self.short_prompt = 30 if is_tiny else 250
        self.requests = 8 if is_tiny else 60
        self.rate_s, self.rate_output = (0.5, 8) if is_tiny else (8.0, 200)
        self.free_bytes = free_bytes
        share = int((free_bytes or 0) * KV_SHARE) >> 30
        self.kv_memory = "64MiB" if is_tiny else f"{min(share, MOST_KV_GIB)}GiB"
        self.peer_s, self.tests_s, self.engine_s = 75.0, 90.0, 40.0

        if is_tiny:
            self.section_s = dict.fromkeys(self.section_s, 0.0)

    def has_room(self, weights_bytes: int, kv_bytes: int) -> bool:
        """Whether a case fits into the device's memory."""
        needed = weights_bytes + kv_bytes + SPARE_BYTES
        return self.free_bytes is None or needed <= self.free_bytes
