"""A block frontend that does exactly what a test tells it to, right or wrong."""

import anyio
import anyio.lowlevel

from frontends.block.device import PEER_KEYS
from frontends.block.keys import RingKeys, published
from kernel.events import EventPort
from kernel.kernel import Kernel
from kernel.pages import Pages
from kernel.xenbus.drivers import Keys
from kernel.xenbus.frontend import FrontendDevice
from ringbuffers.protocols import blkif
from ringbuffers.ring import FrontRing
from ringbuffers.slots import REQ_PROD, RSP_PROD

SLOT = blkif.REQUEST_SLOT_SIZE
XVDA = 51712


class RawFrontend:
    """The driver of a device whose ring and pages are open to the test.

    changes: keys to publish in place of right ones, None for keys to leave out. ring: the right end of the ring, to
    be used or not. words: the shared header. pages, grefs: pages granted to the backend.
    """

    def __init__(self, kernel: Kernel, *, order: int = 0, persistent: bool = False, pages: int = 16) -> None:
        self.kernel = kernel
        self.order = order
        self.persistent = persistent
        self.changes: dict[str, str | None] = {}
        self.device = FrontendDevice(kernel, "vbd", XVDA, lambda _: self, peer_keys=PEER_KEYS)
        self.data = kernel.pages.allocate(pages)
        self.grefs: list[int] = []
        self.ring_pages: Pages
        self.ring_grefs: list[int] = []
        self.ring: FrontRing
        self.port: EventPort

    # What the shell calls

    async def negotiate(self, _backend_keys: Keys) -> Keys:
        grants, domid = self.kernel.grants, self.device.peer_domid
        self.ring_pages = self.kernel.pages.allocate(1 << self.order)
        self.ring = FrontRing([self.ring_pages.view], SLOT)
        self.words = self.ring_pages.view[:64].cast("I")
        pfns = range(self.ring_pages.pfn, self.ring_pages.pfn + self.ring_pages.count)
        self.ring_grefs = grants.grant_many(domid, pfns)
        if not self.grefs:
            self.grefs = grants.grant_many(domid, range(self.data.pfn, self.data.pfn + self.data.count))
        self.port = self.kernel.events.alloc_unbound(domid)
        keys: dict[str, str | None] = dict(
            published(
                [RingKeys(self.ring_grefs, self.port.port)],
                said_order=self.order > 0,
                said_queues=False,
                persistent=self.persistent,
            )
        )
        return {key: value for key, value in (keys | self.changes).items() if value is not None}

    async def connected(self, _backend_keys: Keys) -> None:
        return

    async def changed(self, _backend_keys: Keys) -> None:
        return

    async def closing(self) -> None:
        self.port.close()
        self.kernel.grants.retire(self.ring_grefs, self.ring_pages)

    # What tests call

    async def open(self) -> None:
        """Connects. Raises DeviceClosed."""
        self.kernel.tasks.start_soon(self.device.run)
        with anyio.fail_after(5):
            await self.device.wait_connected()

    async def closed(self) -> None:
        """Returns when the device is closed, by whoever."""
        with anyio.fail_after(5):
            await self.device.wait_closed()

    def put(self, *slots: bytes) -> None:
        """Puts requests on the ring and shows them to the backend."""
        for slot in slots:
            self.ring.put(slot)
        self.ring.publish()
        self.port.notify()

    async def answers(self, count: int = 1) -> list[blkif.Response]:
        """The next responses."""
        found: list[blkif.Response] = []
        with anyio.fail_after(5):
            while len(found) < count:
                found += [blkif.Response.unpack(slot) for slot in self.ring.take_many()]
                await anyio.lowlevel.checkpoint()
        return found

    async def status(self, slot: bytes) -> int:
        """What the backend answers to one request."""
        self.put(slot)
        (answer,) = await self.answers()
        assert answer.id == int.from_bytes(slot[8:16], "little")
        return answer.status

    def publish(self, req_prod: int) -> None:
        """Claims any producer index, and notifies."""
        self.words[REQ_PROD] = req_prod & 0xFFFF_FFFF
        self.port.notify()

    @property
    def rsp_prod(self) -> int:
        """How far the backend has answered."""
        index: int = self.words[RSP_PROD]
        return index

    def page(self, index: int) -> memoryview:
        """A page that the backend may map as `grefs[index]`."""
        return self.data.page(index)

    def read(self, request_id: int, sector: int = 0, page: int = 0, first: int = 0, last: int = 7) -> bytes:
        """A good read of one segment, unless the arguments say otherwise."""
        segment = blkif.Segment(self.grefs[page], first, last)
        return blkif.Request(blkif.BLKIF_OP_READ, 0, request_id, sector, (segment,)).pack()

    def write(self, request_id: int, sector: int = 0, page: int = 0, first: int = 0, last: int = 7) -> bytes:
        """A good write of one segment, unless the arguments say otherwise."""
        segment = blkif.Segment(self.grefs[page], first, last)
        return blkif.Request(blkif.BLKIF_OP_WRITE, 0, request_id, sector, (segment,)).pack()
