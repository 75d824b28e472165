"""A ring that the backend may map, and the port by which both ends notify each other."""

from collections.abc import Callable

from frontends.block.queues import Connection
from kernel.kernel import Kernel
from ringbuffers.protocols import blkif
from ringbuffers.ring import FrontRing


class GrantedRing:
    """A fresh ring of 2**order pages for domain `domid`. grefs: of its pages, in order. port: to be bound to.

    Raises OutOfPages, OutOfGrants, HypercallError; then nothing is held.
    """

    def __init__(self, kernel: Kernel, domid: int, order: int, notified: Callable[[], None]) -> None:
        self._grants = kernel.grants
        self._pages = pages = kernel.pages.allocate(1 << order)
        self.grefs: list[int] = []
        try:
            self.ring = FrontRing([pages.view], blkif.REQUEST_SLOT_SIZE)
            self.grefs = kernel.grants.grant_many(domid, range(pages.pfn, pages.pfn + pages.count))
            self._port = kernel.events.alloc_unbound(domid)
        except BaseException:
            self._grants.retire(self.grefs, pages)
            raise
        self._port.on_event = notified

    @property
    def port(self) -> int:
        """The number of the port."""
        return self._port.port

    @property
    def connection(self) -> Connection:
        """What a queue needs of it."""
        return self.ring, self._port.notify

    def close(self) -> None:
        """Gives port and pages back. While a backend still maps the ring, its pages are used for nothing else
        (XSA-396).
        """
        self._port.close()
        self._grants.retire(self.grefs, self._pages)
