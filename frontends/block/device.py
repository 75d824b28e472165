"""The XenBus driver of a disk: makes the ring, connects the queue to it, takes both down.

The pages of the pool stay granted from one connection to the next; the ring's pages do not.
"""

from collections.abc import Callable
from typing import Final

from frontends.block.buffers import BufferPool
from frontends.block.keys import DiskKeys, TransportKeys, published
from frontends.block.queue import RequestQueue
from kernel.events import EventPort
from kernel.kernel import Kernel
from kernel.pages import Pages
from kernel.xenbus.drivers import Keys
from kernel.xenbus.frontend import FrontendDevice
from ringbuffers.protocols import blkif
from ringbuffers.protocols import blkif_keys as names
from ringbuffers.ring import FrontRing

VBD: Final = "vbd"
PEER_KEYS: Final = (
    names.MAX_RING_PAGE_ORDER,
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
    """Connects `queue` and `pool` to the backend of `device`.

    ring_page_order: log2 of the ring's pages that are wished for. persistent: say so to the backend.
    on_keys: called with what the backend says of the disk, when it connects and when that changes.
    on_closing: called when the connection has ended, before the pages are.
    """

    def __init__(
        self,
        kernel: Kernel,
        device: FrontendDevice,
        queue: RequestQueue,
        pool: BufferPool,
        *,
        ring_page_order: int,
        persistent: bool,
        on_keys: Callable[[DiskKeys], None],
        on_closing: Callable[[], None],
    ) -> None:
        self._kernel = kernel
        self._device = device
        self._queue = queue
        self._pool = pool
        self._ring_page_order = ring_page_order
        self._persistent = persistent
        self._on_keys = on_keys
        self._on_closing = on_closing
        self._said_order = names.RING_PAGE_ORDER in device.keys
        self.ring: FrontRing | None = None
        self._pages: Pages | None = None
        self._grefs: list[int] = []
        self._port: EventPort | None = None

    async def negotiate(self, backend_keys: Keys) -> Keys:
        """Grants a fresh ring and opens a port for the backend."""
        domid = self._device.peer_domid
        offered = TransportKeys.read(self._device.peer_path, backend_keys)
        order = min(self._ring_page_order, offered.max_ring_page_order)
        self._pool.grant_to(domid)
        self._pool.trusted = self._device.keys.get(names.TRUSTED, "1") == "1"
        self._pages = self._kernel.pages.allocate(1 << order)
        self.ring = FrontRing([self._pages.view], blkif.REQUEST_SLOT_SIZE)
        pfns = range(self._pages.pfn, self._pages.pfn + self._pages.count)
        self._grefs = self._kernel.grants.grant_many(domid, pfns)
        self._port = self._kernel.events.alloc_unbound(domid)
        self._port.on_event = self._queue.notified
        self._said_order = self._said_order or order > 0
        return published(
            self._grefs, self._port.port, said_order=self._said_order, persistent=self._persistent
        )

    async def connected(self, backend_keys: Keys) -> None:
        """Learns what disk it is and lets the queue send."""
        assert self.ring is not None and self._port is not None  # noqa: PT018 - negotiate came before
        self._on_keys(DiskKeys.read(self._device.peer_path, backend_keys))
        self._queue.connect(self.ring, self._port.notify)

    async def changed(self, backend_keys: Keys) -> None:
        """The backend has written its keys again: the disk has another size."""
        self._on_keys(DiskKeys.read(self._device.peer_path, backend_keys))

    async def closing(self) -> None:
        """Disconnects the queue and gives the ring back. What was not answered stays in the queue."""
        self._queue.disconnect()
        self._on_closing()
        if self._port is not None:
            self._port.close()
            self._port = None
        if self._pages is not None:
            # While a backend still maps the ring, these pages are used for nothing else (XSA-396).
            self._kernel.grants.retire(self._grefs, self._pages)
            self._grefs, self._pages = [], None
