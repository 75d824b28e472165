"""Real time, for a daemon that has no kernel to ask."""

import time

import anyio

_NANOSECONDS = 10**9


class MonotonicClock:
    """The machine's monotonic clock."""

    now_ns = staticmethod(time.monotonic_ns)

    async def sleep_until(self, deadline_ns: int) -> None:
        """Return at that time, or soon after."""
        await anyio.sleep(max(0, deadline_ns - time.monotonic_ns()) / _NANOSECONDS)
