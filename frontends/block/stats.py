"""What a disk counts at its frontend, for the report."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from frontends.block.errors import operation_name
from frontends.block.latency import LatencyHistogram
from ringbuffers.ring import FrontRing

_NO_RING: Final = (0, 0, 0)


class DiskStats:
    """Totals over the life of a disk and over all its queues, across reconnections.

    requests: answered requests by kind. errors: those that were refused. latency: from publishing to the
    answer, of one request in each run that is published while no other on its queue is timed. reconnections:
    how often a backend came back. queues, ring_size: how many rings there are, and the slots of each.
    """

    __slots__ = ("_before", "_counts", "_rings", "errors", "latency", "queues", "reconnections", "ring_size")

    def __init__(self) -> None:
        self.errors = 0
        self.latency = LatencyHistogram()
        self.queues = 0
        self.ring_size = 0
        self.reconnections = -1
        self._counts: Counter[int] = Counter()
        self._rings: Sequence[FrontRing] = ()
        self._before = _NO_RING

    def count(self, operation: int, requests: int) -> None:
        """Notes requests of one BLKIF_OP_* that were submitted."""
        self._counts[operation] += requests

    def enter(self, rings: Sequence[FrontRing]) -> None:
        """A connection begins."""
        self._before = self._ring_counts()
        self._rings = rings
        self.queues = len(rings)
        self.ring_size = rings[0].size
        self.reconnections += 1

    @property
    def requests(self) -> dict[str, int]:
        """How many, by kind."""
        return {operation_name(operation): count for operation, count in self._counts.items()}

    @property
    def notifications_sent(self) -> int:
        """How often requests were shown and the backend notified."""
        return self._ring_counts()[0]

    @property
    def notifications_suppressed(self) -> int:
        """How often requests were shown to a backend that looks by itself."""
        return self._ring_counts()[1]

    @property
    def high_water(self) -> int:
        """The most requests that were in flight at once on one ring."""
        return self._ring_counts()[2]

    def _ring_counts(self) -> tuple[int, int, int]:
        """Of all rings so far: notifications sent and suppressed, and the high-water mark."""
        sent, suppressed, water = self._before
        for ring in self._rings:
            sent += ring.notifications_sent
            suppressed += ring.notifications_suppressed
            water = max(water, ring.high_water)
        return sent, suppressed, water
