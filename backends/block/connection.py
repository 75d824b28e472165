"""One queue of a connected device: the pages of its ring, its port, and what serves it."""

from collections.abc import Callable, Sequence
from typing import Self

from backends.block.keys import QueueKeys
from backends.block.queue import BlockQueue
from backends.block.stats import RingStats
from kernel.events import EventPort
from kernel.kernel import Kernel
from kernel.mapping import GrantError, Mapping
from ringbuffers.protocols import blkif
from ringbuffers.ring import BackRing

MakeQueue = Callable[[BackRing, EventPort], BlockQueue]
"""Makes what serves a ring and notifies by a port; nothing is served yet."""


class RingNotGranted(Exception):
    """A frontend did not grant its ring's pages."""

    def __init__(self, folder: str, errors: list[GrantError]) -> None:
        more = f" and {len(errors) - 1} more" if len(errors) > 1 else ""
        super().__init__(f"{folder}: {errors[0]}{more}")
        self.folder = folder
        self.errors = errors


class QueueConnection:
    """What one queue holds of its frontend, until `close`. queue: serves it, from `start` on."""

    def __init__(
        self, kernel: Kernel, ring_pages: list[Mapping], port: EventPort, queue: BlockQueue, stats: RingStats
    ) -> None:
        self.queue = queue
        self._kernel = kernel
        self._ring_pages = ring_pages
        self._port = port
        self._stats = stats
        stats.enter(queue.ring)

    @classmethod
    def open(cls, kernel: Kernel, domid: int, keys: QueueKeys, make: MakeQueue, stats: RingStats) -> Self:
        """Maps the ring of `keys` and binds its port.

        Raises RingNotGranted, HypercallError, PeerViolation; then nothing is held.
        """
        mapped = kernel.grants.map(domid, keys.ring_refs)
        ring_pages = [mapping for mapping in mapped if isinstance(mapping, Mapping)]
        try:
            _check_all_mapped(keys.folder, mapped)
            ring = BackRing.attach([mapping.page for mapping in ring_pages], blkif.REQUEST_SLOT_SIZE)
            port = kernel.events.bind_interdomain(domid, keys.event_channel)
        except BaseException:
            kernel.grants.unmap(ring_pages)
            raise
        return cls(kernel, ring_pages, port, make(ring, port), stats)

    def start(self) -> None:
        """Serves the ring; looks at it at once, since requests may be there already."""
        self._port.on_event = self.queue.notified
        self._kernel.tasks.start_soon(self.queue.run)

    def stop(self) -> None:
        """Takes no more requests."""
        self._port.on_event = None
        self.queue.stop()

    async def close(self) -> None:
        """Lets what is in flight end, then gives everything back."""
        self.stop()
        await self.queue.close()
        self._stats.leave(self.queue.ring)
        self._port.close()
        self.queue.ring.detach()
        self._kernel.grants.unmap(self._ring_pages)


def _check_all_mapped(folder: str, mapped: Sequence[Mapping | GrantError]) -> None:
    errors = [error for error in mapped if isinstance(error, GrantError)]
    if errors:
        raise RingNotGranted(folder, errors)
