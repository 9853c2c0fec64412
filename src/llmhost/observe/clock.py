"""The machine's clocks behind the Clock port."""

import time


class SystemClock:
    """Monotonic time for intervals, UTC for records. Read a dozen times a request, so nothing stands in between."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    utc_ns = staticmethod(time.time_ns)
