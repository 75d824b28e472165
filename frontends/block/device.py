"""The XenBus driver of a disk: makes the rings, connects the queues to them, takes both down.

The pages of the pool stay granted from one connection to the next; the rings' pages do not.
"""

from collections.abc import Callable
from typing import Final

from frontends.block.buffers import BufferPool
from frontends.block.granted_ring import GrantedRing
from frontends.block.keys import DiskKeys, RingKeys, TransportKeys, published
from frontends.block.queues import RequestQueues
from kernel.kernel import Kernel
from kernel.xenbus.drivers import Keys
from kernel.xenbus.frontend import FrontendDevice
from ringbuffers.protocols import blkif_keys as names

VBD: Final = "vbd"
PEER_KEYS: Final = (
    names.MAX_RING_PAGE_ORDER,
    names.MULTI_QUEUE_MAX_QUEUES,
    names.FEATURE_MAX_INDIRECT_SEGMENTS,
    names.SECTORS,
    names.SECTOR_SIZE,
    names.PHYSICAL_SECTOR_SIZE,
    names.INFO,
    names.FEATURE_FLUSH_CACHE,
    names.FEATURE_BARRIER,
    names.FEATURE_DISCARD,
    names.DISCARD_GRANULARITY,
    names.DISCARD_ALIGNMENT,
    names.FEATURE_PERSISTENT,
)
"""The nodes of the backend that a frontend looks at."""


class BlockFrontend:
    """Connects `queues` and `pool` to the backend of `device`: as many of the queues as the backend offers.

    ring_page_order: log2 of each ring's pages that are wished for. persistent: say so to the backend.
    on_keys: called with what the backend says of the disk, when it connects and when that changes.
    on_closing: called when the connection has ended, before the pages are; and when there will be none any
    more.
    """

    def __init__(
        self,
        kernel: Kernel,
        device: FrontendDevice,
        queues: RequestQueues,
        pool: BufferPool,
        *,
        ring_page_order: int,
        persistent: bool,
        on_keys: Callable[[DiskKeys], None],
        on_closing: Callable[[], None],
    ) -> None:
        self._kernel = kernel
        self._device = device
        self._queues = queues
        self._pool = pool
        self._ring_page_order = ring_page_order
        self._persistent = persistent
        self._on_keys = on_keys
        self._on_closing = on_closing
        self._said_order = names.RING_PAGE_ORDER in device.keys
        self._said_queues = names.MULTI_QUEUE_NUM_QUEUES in device.keys
        self._rings: list[GrantedRing] = []

    async def negotiate(self, backend_keys: Keys) -> Keys:
        """Grants a fresh ring for each queue and opens a port for the backend."""
        domid = self._device.peer_domid
        offered = TransportKeys.read(self._device.peer_path, backend_keys)
        order = min(self._ring_page_order, offered.max_ring_page_order)
        count = min(len(self._queues.all), max(offered.max_queues, 1))
        self._pool.grant_to(domid)
        self._pool.trusted = self._device.keys.get(names.TRUSTED, "1") == "1"
        for queue in self._queues.all[:count]:
            self._rings.append(GrantedRing(self._kernel, domid, order, queue.notified))
        self._said_order = self._said_order or order > 0
        self._said_queues = self._said_queues or count > 1
        return published(
            [RingKeys(ring.grefs, ring.port) for ring in self._rings],
            said_order=self._said_order,
            said_queues=self._said_queues,
            persistent=self._persistent,
        )

    async def connected(self, backend_keys: Keys) -> None:
        """Learns what disk it is and lets the queues send."""
        self._on_keys(DiskKeys.read(self._device.peer_path, backend_keys))
        self._queues.connect([ring.connection for ring in self._rings])

    async def changed(self, backend_keys: Keys) -> None:
        """The backend has written its keys again: the disk has another size."""
        self._on_keys(DiskKeys.read(self._device.peer_path, backend_keys))

    async def closing(self) -> None:
        """Disconnects the queues and gives the rings back. What was not answered stays in the queues."""
        self._queues.disconnect()
        self._on_closing()
        rings, self._rings = self._rings, []
        for ring in rings:
            ring.close()

    async def forsaken(self) -> None:
        """The backend is gone for good: what waits for it need not wait any longer."""
        self._on_closing()
