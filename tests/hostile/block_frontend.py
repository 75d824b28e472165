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
SPARE = 400


class RawRing:
    """One ring and its port. ring: its right end, to be used or not. words: the shared header. pages, grefs: its
    own.
    """

    def __init__(self, kernel: Kernel, domid: int, order: int) -> None:
        self.pages = kernel.pages.allocate(1 << order)
        self.ring = FrontRing([self.pages.view], SLOT)
        self.words = self.pages.view[:64].cast("I")
        self.grefs = kernel.grants.grant_many(domid, range(self.pages.pfn, self.pages.pfn + self.pages.count))
        self.port: EventPort = kernel.events.alloc_unbound(domid)

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


class RawFrontend:
    """The driver of a device whose rings and pages are open to the test.

    changes: keys to publish in place of right ones, None for keys to leave out. rings: one for each queue; what
    else is called by a ring's names is the first's. data, grefs: pages granted to the backend.
    """

    def __init__(
        self, kernel: Kernel, *, order: int = 0, persistent: bool = False, pages: int = 16, queues: int = 1
    ) -> None:
        self.kernel = kernel
        self.order = order
        self.persistent = persistent
        self.queues = queues
        self.changes: dict[str, str | None] = {}
        self.device = FrontendDevice(kernel, "vbd", XVDA, lambda _: self, peer_keys=PEER_KEYS)
        self.data = kernel.pages.allocate(pages)
        self.grefs: list[int] = []
        self.rings: list[RawRing] = []

    # What the shell calls

    async def negotiate(self, _backend_keys: Keys) -> Keys:
        grants, domid = self.kernel.grants, self.device.peer_domid
        if not self.grefs:
            self.grefs = grants.grant_many(domid, range(self.data.pfn, self.data.pfn + self.data.count))
        # Low references are data. Those of rings no small number hits by chance: a read into a ring is granted, and
        # breaks it.
        spare = grants.grant_many(domid, [self.data.pfn] * SPARE)
        self.rings = [RawRing(self.kernel, domid, self.order) for _ in range(self.queues)]
        for gref in spare:
            grants.end(gref)
        keys: dict[str, str | None] = dict(
            published(
                [RingKeys(ring.grefs, ring.port.port) for ring in self.rings],
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
        for ring in self.rings:
            ring.port.close()
            self.kernel.grants.retire(ring.grefs, ring.pages)

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

    @property
    def ring(self) -> FrontRing:
        return self.rings[0].ring

    @property
    def words(self) -> memoryview:
        return self.rings[0].words

    @property
    def ring_pages(self) -> Pages:
        return self.rings[0].pages

    @property
    def port(self) -> EventPort:
        return self.rings[0].port

    @property
    def rsp_prod(self) -> int:
        return self.rings[0].rsp_prod

    def put(self, *slots: bytes) -> None:
        self.rings[0].put(*slots)

    async def answers(self, count: int = 1) -> list[blkif.Response]:
        return await self.rings[0].answers(count)

    async def status(self, slot: bytes) -> int:
        return await self.rings[0].status(slot)

    def publish(self, req_prod: int) -> None:
        self.rings[0].publish(req_prod)

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
