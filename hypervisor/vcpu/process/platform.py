"""The machine as a kernel sees it that runs in a process of its own.

Memory is mapped from descriptors, hypercalls travel over the channel, events come by bells. Two things are done
here, in the domain's own process, that elsewhere the hypervisor does: what has been rung is entered into the
domain's own shared_info, and an event for another process rings its bell. The program trusts this code; the
hypervisor and everybody else trust nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from anyio.lowlevel import checkpoint

from hypervisor.abi.event_channel import EVTCHNOP_send
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as HYPERVISOR_event_channel_op
from hypervisor.vcpu.parking import Parker, new_parker
from hypervisor.vcpu.process.address_space import SharedPages
from hypervisor.vcpu.process.connection import Connection, connect
from hypervisor.vcpu.process.event_page import VCPU_INFO_BYTES, EventPage
from hypervisor.vcpu.process.idling import Idling
from hypervisor.vcpu.process.wire import MAX_PFNS, Change, RequestKind, ShareResult

WORD_BYTES: Final = 4

_HYPERCALL: Final = int(RequestKind.HYPERCALL)
_SEND: Final = (EVTCHNOP_send,)


class ProcessPlatform:
    """Made of the connection and the machine's clock (CLOCK_MONOTONIC when system time was 0). The constructor
    asks for the memory and maps it. idling: for the event loop.
    """

    def __init__(self, connection: Connection, origin_ns: int) -> None:
        self._connection = connection
        self._origin_ns = origin_ns
        self.memory = SharedPages(connection.space, self._share, self._reclaim)
        self._events: EventPage | None = None
        self._parker: Parker | None = None
        self._blocked = False
        self.idling = Idling(connection.listening, self._look)
        connection.begin(self)
        self.nr_pages = connection.space.count_from_zero()

    # What the kernel calls

    def now_ns(self) -> int:
        """System time in nanoseconds."""
        return time.monotonic_ns() - self._origin_ns

    def hypercall(self, number: int, *args: int) -> int:
        """Enter the hypervisor: Xen's number, up to six arguments, Xen's result (negative errno).

        An event for a port that is bound to another domain needs no entry: it rings.
        """
        if number == HYPERVISOR_event_channel_op and args[:1] == _SEND and self._rings(args[1:2]):
            return 0
        return self._connection.request(_HYPERCALL, number, args)

    def _rings(self, address: Sequence[int]) -> bool:
        """Whether the event needs no hypercall: neither its port nor an argument that is none."""
        connection = self._connection
        try:
            return not address[0] % WORD_BYTES and connection.routes.send(connection.space.word(address[0]))
        except LookupError:
            return False

    async def wait_upcall(self) -> None:
        """Block the vCPU until an upcall is pending. Others get their turn even if one is pending already."""
        if self._take():
            await checkpoint()
            return
        if self._parker is None:
            self._parker = new_parker()
        self._blocked = True
        try:
            while not self._take():
                await self._parker.park()
        finally:
            self._blocked = False

    # Events

    def _take(self) -> bool:
        """Enter what has been rung into shared_info; whether an upcall is pending."""
        events = self._events
        assert events is not None  # SHARED_INFO is among the first changes
        self._connection.collect(events.set_pending)
        return events.upcall_pending

    def _look(self) -> bool:
        """The same, for the event loop: the vCPU is woken. False if it was not blocked: it will see by itself."""
        if not self._take() or not self._blocked or self._parker is None:
            return False
        self._parker.unpark()
        return True

    # Sharing

    def _share(self, domid: int, pfns: Sequence[int], readonly: bool) -> ShareResult:
        """Raises OSError: the hypervisor refused."""
        for first in range(0, len(pfns), MAX_PFNS):
            result = self._ask(RequestKind.SHARE, (domid, int(readonly)), pfns[first : first + MAX_PFNS])
            if result < 0:
                raise OSError(-result, f"pages from pfn {pfns[first]:#x} cannot be shared with {domid}")
            if result != ShareResult.SHARED:
                return ShareResult(result)
        return ShareResult.SHARED

    def _reclaim(self, pfn: int, count: int) -> None:
        result = self._ask(RequestKind.RECLAIM, (pfn, count))
        if result:
            raise OSError(-result, f"{count} pages from pfn {pfn:#x} cannot be taken back")

    def _ask(self, kind: RequestKind, args: Sequence[int] = (), pfns: Sequence[int] = ()) -> int:
        return self._connection.request(
            int(kind), 0, args, b"".join(pfn.to_bytes(8, "little") for pfn in pfns)
        )

    # What the hypervisor changes

    @property
    def received(self) -> int:
        """Events that were entered."""
        return self._events.received if self._events is not None else 0

    @property
    def upcalls(self) -> int:
        """How often that has raised an upcall."""
        return self._events.upcalls if self._events is not None else 0

    def place_shared_info(self, page: memoryview) -> None:
        """shared_info lies there."""
        self._events = EventPage(page)

    def place_vcpu_info(self, page: memoryview, offset: int) -> None:
        """vcpu_info lies in this page from now on."""
        assert self._events is not None
        self._events.place_info(page[offset : offset + VCPU_INFO_BYTES])

    def appeared(self, change: Change) -> None:
        """The kernel looks at pages when it needs them."""

    def vanished(self, gpfn: int, count: int) -> None:
        """It has given them up itself."""

    def save_to(self, fd: int) -> None:
        """A Python program has state that nobody can write down: this is not asked of one."""

    def audit_to(self, fd: int) -> None:
        """A Python program has no page tables: this is not asked of one."""


def attach(fds: Sequence[int], origin_ns: int) -> ProcessPlatform:
    """The platform of this process, made of what the hypervisor handed to it."""
    return ProcessPlatform(connect(fds), origin_ns)
