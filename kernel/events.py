"""Event ports: what other domains, and the hypervisor, notify this kernel through (public/event_channel.h,
2-level ABI).

Bits lie in the shared_info page. The hypervisor sets a port's pending bit, then the bit of its word in the
vCPU's selector, then evtchn_upcall_pending. `dispatch` clears them in the opposite order before it looks at
what they stand for, so that an event which comes meanwhile raises a fresh upcall. Each port is handled once a
pass however often it was notified (XSA-391).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import shared_info, vcpu_info
from kernel.errors import PortClosed
from kernel.parking import Latch
from ringbuffers.atomics import plain_fetch_and

if TYPE_CHECKING:
    from kernel.hypercalls import Hypercalls
    from kernel.platform import Platform

_WORD_BITS: Final = 64
_ALL: Final = (1 << _WORD_BITS) - 1
_WORDS_BYTES: Final = _WORD_BITS * 8
_UPCALL_PENDING: Final = vcpu_info.offsets["evtchn_upcall_pending"]
_SELECTOR: Final = vcpu_info.offsets["evtchn_pending_sel"] // 8


class EventPort:
    """One open port. A driver either sets `on_event`, which is called in the upcall and should only do quick
    work, or waits.

    received: events delivered. sent: notifications made.
    """

    __slots__ = ("_events", "_is_open", "_latch", "_send", "on_event", "port", "received", "sent")

    def __init__(self, events: "Events", port: int) -> None:
        self.port = port
        self.on_event: Callable[[], None] | None = None
        self.received = 0
        self.sent = 0
        self._events = events
        self._send = events.hypercalls.evtchn_send
        self._latch = Latch()
        self._is_open = True

    def notify(self) -> None:
        """Notify the other end; nothing happens if it has closed. Raises PortClosed."""
        if not self._is_open:
            raise PortClosed(self.port)
        self.sent += 1
        self._send(self.port)

    async def wait(self) -> None:
        """Return once there has been an event since the last wait. Raises PortClosed."""
        if self._is_open:
            await self._latch.wait()
        if not self._is_open:
            raise PortClosed(self.port)

    def deliver(self) -> None:
        """An event has come: call the driver, or wake whoever waits."""
        self.received += 1
        if self.on_event is None:
            self._latch.set()
        else:
            self.on_event()

    def unmask(self) -> None:
        """Let events through again; one that came meanwhile raises its upcall now."""
        self._events.hypercalls.evtchn_unmask(self.port)

    def close(self) -> None:
        """Free the port. Whoever waits gets PortClosed; closing twice is the same as once."""
        if self._is_open:
            self._is_open = False
            self.on_event = None
            self._events.forget(self)
            self._latch.set()


class Events:
    """All open ports of a kernel with one vCPU. on_failure is told of an `on_event` that raised: its port is
    closed then.

    spurious: events for ports that nobody has open.
    """

    def __init__(
        self,
        hypercalls: "Hypercalls",
        page: memoryview,
        on_failure: Callable[[EventPort, Exception], None],
    ) -> None:
        self.hypercalls = hypercalls
        self.spurious = 0
        self._on_failure = on_failure
        self._ports: dict[int, EventPort] = {}
        at = shared_info.offsets
        vcpu = page[at["vcpu_info"] : at["vcpu_info"] + vcpu_info.size]
        self._upcall = vcpu[_UPCALL_PENDING : _UPCALL_PENDING + 1]
        self._selector = vcpu.cast("Q")
        self._pending = page[at["evtchn_pending"] : at["evtchn_pending"] + _WORDS_BYTES].cast("Q")
        self._mask = page[at["evtchn_mask"] : at["evtchn_mask"] + _WORDS_BYTES].cast("Q")

    def adopt(self, port: int) -> EventPort:
        """The port that the toolstack opened for us."""
        opened = self._ports[port] = EventPort(self, port)
        return opened

    def alloc_unbound(self, remote_domid: int) -> EventPort:
        """A fresh port that `remote_domid` may bind to."""
        return self.adopt(self.hypercalls.evtchn_alloc_unbound(remote_domid))

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> EventPort:
        """A fresh port connected to one that `remote_domid` holds open for us. It has an event at once, as
        Xen does it.
        """
        return self.adopt(self.hypercalls.evtchn_bind_interdomain(remote_domid, remote_port))

    def bind_virq(self, virq: int) -> EventPort:
        """A fresh port for a virtual interrupt."""
        return self.adopt(self.hypercalls.evtchn_bind_virq(virq))

    def forget(self, port: EventPort) -> None:
        """Close a port in the hypervisor; EventPort.close calls this."""
        if self._ports.get(port.port) is port:
            del self._ports[port.port]
            self.hypercalls.evtchn_close(port.port)

    async def run(self, platform: "Platform") -> None:
        """Take upcalls for ever."""
        while True:
            await platform.wait_upcall()
            self.dispatch()

    def dispatch(self) -> int:
        """Deliver all pending events, each port once; how many there were."""
        self._upcall[0] = 0
        selected = plain_fetch_and(self._selector, _SELECTOR, 0)
        count = 0
        while selected:
            word = (selected & -selected).bit_length() - 1
            selected &= selected - 1
            ready = self._pending[word] & ~self._mask[word]
            if ready:
                plain_fetch_and(self._pending, word, _ALL ^ ready)
            while ready:
                bit = ready & -ready
                ready ^= bit
                self._deliver(word * _WORD_BITS + bit.bit_length() - 1)
                count += 1
        return count

    def _deliver(self, number: int) -> None:
        port = self._ports.get(number)
        if port is None:
            self.spurious += 1
            return
        try:
            port.deliver()
        except Exception as error:
            port.close()
            self._on_failure(port, error)
