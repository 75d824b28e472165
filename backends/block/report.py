"""What a block backend has counted of a disk, as a driver domain leaves it for the toolstack.

A node `statistics` in the device's own folder holds the whole, its children queue-0, queue-1, … a queue each: a
node has room for 2048 bytes.
"""

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field

from backends.block.stats import DeviceStats, QueueStats
from ringbuffers.protocols.blkif_keys import queue_directory

STATISTICS: Final = "statistics"
LAST_ERROR_BYTES: Final = 256
"""So much of an error is told; a traceback is cut at its front, where it says least."""

Count = Annotated[int, Field(ge=0, lt=1 << 64)]


class QueueCounts(BaseModel):
    """What was asked on one queue, or on all of a disk's, and how the rings were used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: dict[str, Count] = {}
    errors: Count = 0
    bytes_read: Count = 0
    bytes_written: Count = 0
    ring_size: Count = 0
    high_water: Count = 0
    notifications_sent: Count = 0
    notifications_suppressed: Count = 0

    @classmethod
    def of_queue(cls, queue: QueueStats) -> Self:
        """The counts of one queue."""
        asked, rings = queue
        return cls(
            requests=dict(asked.requests),
            errors=sum(asked.errors.values()),
            bytes_read=asked.bytes_read,
            bytes_written=asked.bytes_written,
            ring_size=rings.size,
            high_water=rings.high_water,
            notifications_sent=rings.notifications_sent,
            notifications_suppressed=rings.notifications_suppressed,
        )


class BackendReport(QueueCounts):
    """One end of a disk. backend: the store's name."""

    backend: str = ""
    last_error: str = ""

    @classmethod
    def of(cls, backend: str, stats: DeviceStats) -> "BackendReport":
        """The report of what was counted so far."""
        return cls(
            requests=dict(stats.requests),
            errors=sum(stats.errors.values()),
            bytes_read=stats.bytes_read,
            bytes_written=stats.bytes_written,
            ring_size=stats.ring_size,
            high_water=stats.high_water,
            notifications_sent=stats.notifications_sent,
            notifications_suppressed=stats.notifications_suppressed,
            backend=backend[:LAST_ERROR_BYTES],
            last_error=_end_of(stats.last_error),
        )


def statistics_nodes(backend: str, stats: DeviceStats) -> dict[str, str]:
    """The nodes, by name below the device's folder."""
    queues = {
        f"{STATISTICS}/{queue_directory(index)}": QueueCounts.of_queue(queue).model_dump_json()
        for index, queue in enumerate(stats.queues)
    }
    return {STATISTICS: BackendReport.of(backend, stats).model_dump_json(), **queues}


def _end_of(text: str) -> str:
    return text.encode("utf-8", "replace")[-LAST_ERROR_BYTES:].decode("utf-8", "ignore")
