"""What a block backend counts of one device and of each of its queues, for the report.

Only queues count, so that a request costs the same however many there are; a device adds up when it is asked.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from ringbuffers.protocols import blkif
from ringbuffers.ring import BackRing

KINDS: Final = {
    blkif.BLKIF_OP_READ: "read",
    blkif.BLKIF_OP_WRITE: "write",
    blkif.BLKIF_OP_WRITE_BARRIER: "barrier",
    blkif.BLKIF_OP_FLUSH_DISKCACHE: "flush",
    blkif.BLKIF_OP_DISCARD: "discard",
    blkif.BLKIF_OP_INDIRECT: "indirect",
}
_OTHER: Final = "unknown"
PAGE_BYTES: Final = 4096


class BlockStats:
    """Totals of one queue over the life of a device, across reconnections.

    Attributes:
        requests: how many, by kind; an unknown operation counts as "unknown".
        errors: requests that were not answered with BLKIF_RSP_OKAY, by reason.
        bytes_read, bytes_written, bytes_discarded: of requests that succeeded.
        last_error: the last reason in full; empty if all went well.
        on_error: told of each `last_error`.
    """

    __slots__ = (
        "bytes_discarded",
        "bytes_read",
        "bytes_written",
        "errors",
        "last_error",
        "on_error",
        "requests",
    )

    def __init__(self, on_error: Callable[[str], None] | None = None) -> None:
        self.requests: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.bytes_read = 0
        self.bytes_written = 0
        self.bytes_discarded = 0
        self.last_error = ""
        self.on_error = on_error

    def count(self, operation: int) -> None:
        """Notes one request of a kind."""
        self.requests[KINDS.get(operation, _OTHER)] += 1

    def count_pages(self, reads: int, writes: int) -> None:
        """Notes reads and writes of one whole page each."""
        if reads:
            self.requests["read"] += reads
            self.bytes_read += reads * PAGE_BYTES
        if writes:
            self.requests["write"] += writes
            self.bytes_written += writes * PAGE_BYTES

    def error(self, reason: str, detail: str = "") -> None:
        """Notes one request that failed. `reason` is one of a small set, `detail` may say more."""
        self.errors[reason] += 1
        self.last_error = detail or reason
        if self.on_error is not None:
            self.on_error(self.last_error)


class RingStats:
    """What the rings of one queue have counted, the one that is connected now included.

    size: slots of the last ring. high_water: the most requests that were taken and not answered.
    """

    __slots__ = ("_ring", "_sent", "_suppressed", "_water", "size")

    def __init__(self) -> None:
        self.size = 0
        self._ring: BackRing | None = None
        self._sent = 0
        self._suppressed = 0
        self._water = 0

    def enter(self, ring: BackRing) -> None:
        """A connection begins."""
        self._ring = ring
        self.size = ring.size

    def leave(self, ring: BackRing) -> None:
        """A connection ends."""
        self._ring = None
        self._sent += ring.notifications_sent
        self._suppressed += ring.notifications_suppressed
        self._water = max(self._water, ring.high_water)

    @property
    def notifications_sent(self) -> int:
        """How often answers were shown and the frontend notified."""
        return self._sent + (self._ring.notifications_sent if self._ring is not None else 0)

    @property
    def notifications_suppressed(self) -> int:
        """How often answers were shown to a frontend that looks by itself."""
        return self._suppressed + (self._ring.notifications_suppressed if self._ring is not None else 0)

    @property
    def high_water(self) -> int:
        """The most requests that were taken and not answered at once."""
        return max(self._water, self._ring.high_water if self._ring is not None else 0)


class QueueStats(NamedTuple):
    """One queue: what was asked on it, and how its rings were used."""

    requests: BlockStats
    rings: RingStats


class DeviceStats:
    """All queues of a device together. queues: each by itself, as many as ever were connected.

    last_error: the last one of all.
    """

    def __init__(self) -> None:
        self.queues: list[QueueStats] = []
        self.last_error = ""
        self._own_errors: Counter[str] = Counter()

    def queue(self, index: int) -> QueueStats:
        """Where queue `index` counts."""
        while len(self.queues) <= index:
            self.queues.append(QueueStats(BlockStats(self._note), RingStats()))
        return self.queues[index]

    def error(self, reason: str, detail: str = "") -> None:
        """Notes what went wrong with the device and no single request."""
        self._own_errors[reason] += 1
        self._note(detail or reason)

    def _note(self, error: str) -> None:
        self.last_error = error

    @property
    def requests(self) -> Counter[str]:
        """How many requests, by kind."""
        return _added(queue.requests.requests for queue in self.queues)

    @property
    def errors(self) -> Counter[str]:
        """What went wrong how often, by reason."""
        return _added([self._own_errors, *(queue.requests.errors for queue in self.queues)])

    @property
    def bytes_read(self) -> int:
        """Of requests that succeeded, as the following ones."""
        return sum(queue.requests.bytes_read for queue in self.queues)

    @property
    def bytes_written(self) -> int:
        return sum(queue.requests.bytes_written for queue in self.queues)

    @property
    def bytes_discarded(self) -> int:
        return sum(queue.requests.bytes_discarded for queue in self.queues)

    @property
    def ring_size(self) -> int:
        """Slots of the largest ring."""
        return max((queue.rings.size for queue in self.queues), default=0)

    @property
    def high_water(self) -> int:
        """The most requests that were taken from one ring and not answered at once."""
        return max((queue.rings.high_water for queue in self.queues), default=0)

    @property
    def notifications_sent(self) -> int:
        return sum(queue.rings.notifications_sent for queue in self.queues)

    @property
    def notifications_suppressed(self) -> int:
        return sum(queue.rings.notifications_suppressed for queue in self.queues)


def _added(counters: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return total
