"""How much is measured: on a GPU, or in a rehearsal without one."""


class Sizes:
    """Of the real run, or of its rehearsal. Cases are (sequences, tokens of context)."""

    def __init__(self, *, is_tiny: bool) -> None:
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
        self.kv_memory = "64MiB" if is_tiny else "40GiB"
        self.peer_s, self.tests_s, self.engine_s = 75.0, 90.0, 40.0
