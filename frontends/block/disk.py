"""A disk as programs use it: read, write, flush, discard, by sectors of 512 bytes.

From the simplest to the quickest:

    data = await disk.read(sector, count)            bytes in and out
    await disk.write(sector, data)
    await disk.read_into(sector, buffers)            no copy: pages of `disk.buffers`
    await disk.write_from(sector, buffers)
    await disk.read_many([(sector, buffer), ...])    many requests, one wait: pages of the disk, or any memory
    await disk.write_many([(sector, buffer), ...])

Tasks that ask in the same pass of the event loop share a notification. A write is in the store once its
call returns, and durable once a `flush` that began later has returned, on whichever queue.

If the backend closes the device, requests wait until it has come back and are sent again, in no promised
order among those that were in flight together; with reconnect=False they end with the kernel's DeviceClosed.
If its domain has died they end with PeerGone, and so does every call from then on. A call that is cancelled
may still be carried out; memory that was handed to it belongs to the disk until `settled` returns.
"""

from dataclasses import dataclass
from typing import Final

import anyio

from frontends.block.buffers import BufferPool
from frontends.block.calls import SECTOR_BYTES
from frontends.block.data import DiskData
from frontends.block.device import PEER_KEYS, VBD, BlockFrontend
from frontends.block.errors import DiskMisuse
from frontends.block.keys import UNKNOWN_DISK, DiskKeys
from frontends.block.names import disk_name
from frontends.block.queues import RequestQueues
from frontends.block.report import FrontendReport
from frontends.block.stats import DiskStats
from kernel.kernel import Kernel
from kernel.parking import Broadcast, NewWaiter, waiter_factory
from kernel.xenbus.drivers import ClosedByPeer, DeviceClosed
from kernel.xenbus.frontend import FrontendDevice
from kernel.xenbus.states import XenbusState

LET_GO_SECONDS: Final = 5.0

__all__ = ["SECTOR_BYTES", "Disk", "DiskOptions", "disk_name"]


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """How a frontend works.

    queues: how many rings to use, as far as the backend allows; see `frontends.block.queues`.
    ring_page_order: log2 of the pages of each ring, as far as the backend allows. persistent: tell the
    backend that it may keep pages mapped. reconnect: requests survive a backend that closes and comes back.
    max_indirect_segments: pages a request, as far as the backend allows; at most 512. staged_pages: pages
    in use at once for callers that bring memory of their own.
    """

    ring_page_order: int = 2
    persistent: bool = True
    reconnect: bool = True
    max_indirect_segments: int = 256
    staged_pages: int = 512
    queues: int = 1


class Disk(DiskData):
    """A virtual disk of this domain: `device/vbd/<devid>` in XenStore.

    keys: what the backend says of it. stats: what was asked of it. device: its XenBus device, for whoever
    wants to know its state.
    """

    def __init__(self, kernel: Kernel, devid: int, options: DiskOptions | None = None) -> None:
        """Prepares a disk; `run` makes it live. `Disk.open` does both. Raises DiskMisuse."""
        self.name = disk_name(devid)
        self.stats = DiskStats()
        self.keys = UNKNOWN_DISK
        self._quick_end = 0
        self._options = options or DiskOptions()
        if self._options.queues < 1:
            raise DiskMisuse(self.name, "number of queues", self._options.queues, "at least 1")
        self._kernel = kernel
        self._new_waiter: NewWaiter[None] = waiter_factory()
        self._resized = Broadcast()
        self.lost: DeviceClosed | None = None
        self.device = FrontendDevice(kernel, VBD, devid, self._make_driver, peer_keys=PEER_KEYS)
        self._queues = RequestQueues(self._options.queues, self.stats, kernel.clock.now_ns, self.device.fail)
        self._pool = BufferPool(kernel, self.device.path, self._new_waiter, limit=self._options.staged_pages)
        self._max_indirect = self._options.max_indirect_segments
        kernel.reports[f"{VBD}-{devid}"] = lambda: FrontendReport.of(self.stats).model_dump_json()

    @classmethod
    async def open(cls, kernel: Kernel, devid: int, options: DiskOptions | None = None) -> "Disk":
        """A disk that is connected, run by one of the kernel's tasks. Raises DeviceClosed if it cannot be."""
        disk = cls(kernel, devid, options)
        kernel.tasks.start_soon(disk.run)
        await disk.device.wait_connected()
        return disk

    async def run(self) -> None:
        """Runs the device and its publisher until the device is gone."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._queues.run)
                await self.device.run()
                tasks.cancel_scope.cancel()
        finally:
            self._lose()

    @property
    def sectors(self) -> int:
        """The size in units of 512 bytes. It changes when the backend says so."""
        return self.keys.sectors

    @property
    def sector_size(self) -> int:
        """Bytes: every transfer begins and ends at a multiple of it."""
        return self.keys.sector_size

    @property
    def read_only(self) -> bool:
        """Whether the backend refuses writes."""
        return self.keys.read_only

    @property
    def can_flush(self) -> bool:
        """Whether `flush` does something here."""
        return self.keys.flush or self.keys.barrier

    @property
    def can_discard(self) -> bool:
        """Whether `discard` does something here."""
        return self.keys.discard

    async def wait_resized(self) -> int:
        """The size in sectors, once it has changed."""
        before = self.sectors
        while self.sectors == before:
            await self._resized.wait()
        return self.sectors

    # The end, and beginning anew

    async def close(self) -> None:
        """Waits for all answers, closes the disk, and waits, for LET_GO_SECONDS at the most, until the backend
        has closed, too, and with it let go of the pages.
        """
        await self._queues.settled()
        self.device.close()
        await self.device.wait_closed()
        with self._kernel.clock.timeout(LET_GO_SECONDS):
            await self._peer_closed()

    async def _peer_closed(self) -> None:
        path = f"{self.device.peer_path}/state"
        async with self._kernel.store.watch(path) as watch:
            while True:
                await watch.batch()
                state = (await self._kernel.store.read_many([path]))[0]
                if state is None or state == str(int(XenbusState.Closed)):
                    return

    async def reopen(self) -> None:
        """Connects a closed disk again. Raises DeviceClosed if it cannot be."""
        self.lost = None
        self._pool.open()
        self.device.reopen()
        await self.device.wait_connected()

    def _make_driver(self, device: FrontendDevice) -> BlockFrontend:
        return BlockFrontend(
            self._kernel,
            device,
            self._queues,
            self._pool,
            ring_page_order=self._options.ring_page_order,
            persistent=self._options.persistent,
            on_keys=self._learn,
            on_closing=self._closing,
        )

    def _learn(self, keys: DiskKeys) -> None:
        self.keys = keys
        self._quick_end = keys.sectors if keys.sector_size == SECTOR_BYTES else 0
        self._resized.announce()

    def _closing(self) -> None:
        """The connection has ended: for good, unless the backend may come back and requests shall wait for
        it.
        """
        if not (self._options.reconnect and isinstance(self.device.closed, ClosedByPeer)):
            self._lose()

    def _lose(self) -> None:
        self.lost = self.device.closed
        if self.lost is not None:
            self._queues.fail(self.lost)
        self._pool.close(self.lost)
