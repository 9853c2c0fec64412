"""The machine's clocks behind the Clock port."""

import time


class SystemClock:
    """Monotonic time for intervals, UTC for records."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def utc_ns(self) -> int:
        return time.time_ns()
