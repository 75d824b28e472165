"""blkback: the XenBus driver of one virtual block device, from its store to its ring."""

from collections.abc import Callable
from typing import Final

from backends.block.keys import FrontendKeys, SetupKeys, described, offered, sized
from backends.block.opened import OpenedStore
from backends.block.pages import GrantedPages, PageBudget
from backends.block.queue import BlockQueue
from backends.block.service import Service
from backends.block.stats import BlockStats, RingStats
from backends.contract import BlockStore
from kernel.events import EventPort
from kernel.kernel import Kernel
from kernel.mapping import GrantError, Mapping
from kernel.xenbus.backend import BackendDevice
from kernel.xenbus.drivers import Keys
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.ring import BackRing

OpenStore = Callable[[SetupKeys], BlockStore]
"""Makes the store that a device's setup names; does not open it."""

PERSISTENT_PAGES: Final = 2048
"""How many pages of a frontend that reuses its grants stay mapped, by device."""

HOTPLUG_STATUS: Final = "hotplug-status"


class RingNotGranted(Exception):
    """A frontend did not grant its ring's pages."""

    def __init__(self, path: str, errors: list[GrantError]) -> None:
        super().__init__(f"{path}: {errors[0]}" + (f" and {len(errors) - 1} more" if len(errors) > 1 else ""))
        self.path = path
        self.errors = errors


class BlockDevice:
    """Serves one device, `device`. disk: its store, while it is open. queue: its ring, while it is connected.

    stats, ring_stats: totals over all connections. violation: how the frontend broke its ring, if it did.
    """

    def __init__(
        self, kernel: Kernel, device: BackendDevice, open_store: OpenStore, budget: PageBudget
    ) -> None:
        self._kernel = kernel
        self.device = device
        self._open_store = open_store
        self._budget = budget
        self.setup = SetupKeys.read(device.path, device.keys)
        self.stats = BlockStats()
        self.ring_stats = RingStats()
        self.violation: PeerViolation | None = None
        self.disk: OpenedStore | None = None
        self.queue: BlockQueue | None = None
        self._ring_pages: list[Mapping] = []
        self._port: EventPort | None = None

    async def features(self) -> Keys:
        """Opens the store and says what the ring may be like. Raises BadKeys, StoreError, OSError."""
        self.setup = SetupKeys.read(self.device.path, self.device.keys)  # it may be another disk by now
        try:
            self.disk = await OpenedStore.open(self._open_store(self.setup))
        except Exception:
            await self._say(HOTPLUG_STATUS, "error")
            raise
        return {**offered(), HOTPLUG_STATUS: "connected"}

    async def connect(self, frontend_keys: Keys) -> Keys:
        """Maps the ring, binds the port and serves. Raises BadKeys, RingNotGranted, HypercallError,
        PeerViolation.
        """
        assert self.disk is not None  # features came before
        keys = FrontendKeys.read(self.device.peer_path, frontend_keys)
        domid = self.device.frontend_domid
        ring = BackRing.attach(self._map_ring(domid, keys.ring_refs), blkif.REQUEST_SLOT_SIZE)
        self._port = self._kernel.events.bind_interdomain(domid, keys.event_channel)
        limit = PERSISTENT_PAGES if keys.persistent else 0
        pages = GrantedPages(self._kernel.grants, domid, self._budget, limit)
        self.queue = BlockQueue(
            ring,
            pages,
            Service(self.disk, self.stats),
            notify=self._port.notify,
            spawn=self._kernel.tasks.start_soon,
            broken=self._broken,
        )
        self._port.on_event = self.queue.notified
        self.ring_stats.enter(ring)
        self._kernel.tasks.start_soon(self.queue.run)
        return described(self.disk, self.setup.info)

    async def disconnect(self) -> None:
        """Lets what is in flight end, unmaps everything and closes the store."""
        if self._port is not None:
            self._port.on_event = None
        if self.queue is not None:
            await self.queue.close()
            self.ring_stats.leave(self.queue.ring)
            self.queue = None
        if self._port is not None:
            self._port.close()
            self._port = None
        ring_pages, self._ring_pages = self._ring_pages, []
        if ring_pages:
            self._kernel.grants.unmap(ring_pages)
        disk, self.disk = self.disk, None
        if disk is not None:
            await disk.close()

    async def resize(self) -> bool:
        """Asks the store for its size again, and tells the frontend if it has changed. Returns whether it
        has.

        Raises StoreError; the old size stays.
        """
        if self.disk is None or not await self.disk.refresh():
            return False
        await self.device.update(sized(self.disk))
        return True

    def _map_ring(self, domid: int, refs: tuple[int, ...]) -> list[memoryview]:
        mapped = self._kernel.grants.map(domid, refs)
        self._ring_pages = [mapping for mapping in mapped if isinstance(mapping, Mapping)]
        errors = [error for error in mapped if isinstance(error, GrantError)]
        if errors:
            raise RingNotGranted(self.device.peer_path, errors)
        return [mapping.page for mapping in self._ring_pages]

    def _broken(self, error: Exception) -> None:
        """The ring cannot be served any more: this device ends, and nothing else."""
        if isinstance(error, PeerViolation):
            self.violation = error
        self.stats.error("ring broken", str(error))
        self.device.fail(error)

    async def _say(self, key: str, value: str) -> None:
        await self._kernel.store.write(f"{self.device.path}/{key}", value)
