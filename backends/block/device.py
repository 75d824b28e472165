"""blkback: the XenBus driver of one virtual block device, from its store to its rings."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

from backends.block.connection import QueueConnection
from backends.block.keys import FrontendKeys, QueueKeys, SetupKeys, check_apart, described, offered, sized
from backends.block.opened import OpenedStore
from backends.block.pages import GrantedPages, PageBudget
from backends.block.queue import BlockQueue
from backends.block.service import Service
from backends.block.stats import DeviceStats
from backends.contract import BlockStore
from backends.errors import told
from kernel.events import EventPort
from kernel.kernel import Kernel
from kernel.xenbus.backend import BackendDevice
from kernel.xenbus.drivers import Keys
from kernel.xenbus.folder import read_folder
from ringbuffers.errors import PeerViolation
from ringbuffers.ring import BackRing

OpenStore = Callable[[SetupKeys], BlockStore]
"""Makes the store that a device's setup names; does not open it."""

PERSISTENT_PAGES: Final = 2048
"""How many pages of a frontend that reuses its grants stay mapped, by queue."""

HOTPLUG_STATUS: Final = "hotplug-status"


class BlockDevice:
    """Serves one device, `device`. disk: its store, while it is open. queues: its rings, while it is connected.

    stats: totals over all connections. violation: how the frontend broke a ring, if it did.
    """

    def __init__(
        self, kernel: Kernel, device: BackendDevice, open_store: OpenStore, budget: PageBudget
    ) -> None:
        self._kernel = kernel
        self.device = device
        self._open_store = open_store
        self._budget = budget
        self.setup = SetupKeys.read(device.path, device.keys)
        self.stats = DeviceStats()
        self.violation: PeerViolation | None = None
        self.disk: OpenedStore | None = None
        self.queues: list[QueueConnection] = []

    async def features(self) -> Keys:
        """Opens the store and says what the ring may be like. Raises BadKeys, StoreError, OSError."""
        self.setup = SetupKeys.read(self.device.path, self.device.keys)  # it may be another disk by now
        try:
            self.disk = await OpenedStore.open(self._open_store(self.setup))
        except Exception as error:
            self.stats.error("store not opened", told(error))
            await self._say(HOTPLUG_STATUS, "error")
            raise
        return {**offered(self.setup), HOTPLUG_STATUS: "connected"}

    async def connect(self, frontend_keys: Keys) -> Keys:
        """Maps the rings, binds the ports and serves, all queues or none.

        Raises BadKeys, RingNotGranted, HypercallError, PeerViolation, StoreError.
        """
        try:
            return await self._connect(frontend_keys)
        except Exception as error:
            self.stats.error("not connected", told(error))
            raise

    async def _connect(self, frontend_keys: Keys) -> Keys:
        assert self.disk is not None  # features came before
        keys = FrontendKeys.read_within(self.device.peer_path, frontend_keys, self.setup.max_queues)
        queues = await self._find_queues(keys, frontend_keys)
        check_apart(queues)
        try:
            for index, queue in enumerate(queues):
                self.queues.append(self._open_queue(index, queue, self.disk, persistent=keys.persistent))
        except BaseException:
            await self._close_queues()
            raise
        for connection in self.queues:
            connection.start()
        return described(self.disk, self.setup.info)

    async def disconnect(self) -> None:
        """Lets what is in flight end, unmaps everything and closes the store."""
        await self._close_queues()
        disk, self.disk = self.disk, None
        if disk is not None:
            try:
                await disk.close()
            except Exception as error:
                self.stats.error("store not closed", told(error))
                raise

    async def resize(self) -> bool:
        """Asks the store for its size again, and tells the frontend if it has changed. Returns whether it
        has.

        Raises StoreError; the old size stays.
        """
        if self.disk is None or not await self.disk.refresh():
            return False
        await self.device.update(sized(self.disk))
        return True

    async def _find_queues(self, keys: FrontendKeys, frontend_keys: Keys) -> list[QueueKeys]:
        """How to reach each of the frontend's rings. Raises BadKeys, StoreError."""
        path, store = self.device.peer_path, self._kernel.store
        if keys.queues == 1:
            return [keys.queue(path, frontend_keys)]
        nodes = keys.nodes_of_ring()
        folders = keys.folders(path)
        return [keys.queue(folder, await read_folder(store, folder, nodes)) for folder in folders]

    def _open_queue(
        self, index: int, keys: QueueKeys, disk: OpenedStore, *, persistent: bool
    ) -> QueueConnection:
        domid, stats = self.device.frontend_domid, self.stats.queue(index)

        def make(ring: BackRing, port: EventPort) -> BlockQueue:
            return BlockQueue(
                ring,
                GrantedPages(self._kernel.grants, domid, self._budget, PERSISTENT_PAGES if persistent else 0),
                Service(disk, stats.requests),
                notify=port.notify,
                spawn=self._kernel.tasks.start_soon,
                broken=self._broken,
            )

        return QueueConnection.open(self._kernel, domid, keys, make, stats.rings)

    async def _close_queues(self) -> None:
        connections, self.queues = self.queues, []
        for connection in connections:
            connection.stop()
        async with AsyncExitStack() as closing:
            for connection in connections:
                closing.push_async_callback(connection.close)

    def _broken(self, error: Exception) -> None:
        """A ring cannot be served any more: this device ends with all its queues, and nothing else."""
        for connection in self.queues:
            connection.stop()
        if isinstance(error, PeerViolation):
            self.violation = error
        self.stats.error("ring broken", told(error))
        self.device.fail(error)

    async def _say(self, key: str, value: str) -> None:
        await self._kernel.store.write(f"{self.device.path}/{key}", value)
