"""A frontend's queue on a ring in plain memory, with the backend played by the test."""

from collections.abc import Callable

from frontends.block.queue import RequestQueue
from frontends.block.stats import DiskStats
from kernel.parking import Waiter, waiter_factory
from ringbuffers.errors import PeerViolation
from ringbuffers.protocols import blkif
from ringbuffers.ring import BackRing, FrontRing

SLOT = blkif.REQUEST_SLOT_SIZE


class Played:
    """queue: under test. back: the backend's end. bells: notifications of the frontend. broken: violations reported."""

    def __init__(self, pages: int = 1) -> None:
        self.stats = DiskStats()
        self.now_ns = 0
        self.bells = 0
        self.broken: list[PeerViolation] = []
        self.queue = RequestQueue(self.stats, lambda: self.now_ns, self.broken.append)
        self.pages = pages
        self.back: BackRing

    def connect(self) -> None:
        """A new ring, as after a handshake."""
        self.memory = memoryview(bytearray(4096 * self.pages))
        ring = FrontRing([self.memory], SLOT)
        self.words = self.memory[:64].cast("I")
        self.back = BackRing.attach([self.memory], SLOT)
        self.stats.enter([ring])
        self.queue.connect(ring, self._bell)

    def _bell(self) -> None:
        self.bells += 1

    def taken(self) -> list[blkif.AnyRequest]:
        """What the frontend has published since."""
        return [blkif.unpack_request(slot) for slot in self.back.take_many()]

    def answer(self, *responses: tuple[int, int, int]) -> None:
        """Ids, operations and statuses, published and notified."""
        for response in responses:
            self.back.put(blkif.Response(*response).pack())
        self.back.publish()
        self.queue.notified()

    def answer_all(self, status: Callable[[blkif.AnyRequest], int] = lambda _: 0) -> list[blkif.AnyRequest]:
        """Answers what was taken; returns it."""
        requests = self.taken()
        self.answer(*((request.id, request.operation, status(request)) for request in requests))
        return requests


def waiter() -> Waiter[None]:
    """One of the loop that runs now."""
    made: Waiter[None] = waiter_factory()()
    return made
