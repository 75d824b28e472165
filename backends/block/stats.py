"""What a block backend counts of one device, for the report."""

from collections import Counter
from typing import Final

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
    """Totals over the life of a device, across reconnections.

    Attributes:
        requests: how many, by kind; an unknown operation counts as "unknown".
        errors: requests that were not answered with BLKIF_RSP_OKAY, by reason.
        bytes_read, bytes_written, bytes_discarded: of requests that succeeded.
        last_error: the last reason in full; empty if all went well.
    """

    __slots__ = ("bytes_discarded", "bytes_read", "bytes_written", "errors", "last_error", "requests")

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.bytes_read = 0
        self.bytes_written = 0
        self.bytes_discarded = 0
        self.last_error = ""

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


class RingStats:
    """What the rings of a device have counted, the one that is connected now included.

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
