"""A domain's ring page as a transport: xenstore_domain_interface of xs_wire.h, docs/misc/xenstore-ring.txt.

The page belongs to the domain, which writes to it whenever it likes. Nothing is believed but the bytes that
were copied out, and indices that are no further apart than the ring is large.
"""

from collections.abc import Callable
from typing import Final, Protocol

from dom0.xenstore.connection import Failure
from dom0.xenstore.errors import ConnectionLost
from dom0.xenstore.output import Output
from kernel.errors import KernelError
from ringbuffers.atomics import fence
from ringbuffers.protocols.xs_wire import (
    XENSTORE_RECONNECT,
    XENSTORE_SERVER_FEATURE_ERROR,
    XENSTORE_SERVER_FEATURE_RECONNECTION,
    XenstorePage,
)

_FEATURES: Final = XENSTORE_SERVER_FEATURE_RECONNECTION | XENSTORE_SERVER_FEATURE_ERROR


class Port(Protocol):
    """Our end of the event channel. on_event is called when the domain notifies; it only does quick work."""

    on_event: Callable[[], None] | None

    def notify(self) -> None:
        """Notify the domain. Raises a KernelError if that is not possible any more."""


class RingTransport(Protocol):
    """The way to one domain: its page, mapped, and an event channel, bound."""

    @property
    def page(self) -> memoryview: ...

    @property
    def port(self) -> Port: ...

    def close(self) -> None:
        """Close the port and unmap the page, which nobody uses any more."""


class Ring:
    """The daemon's side of a ring. The domain is notified once for all that a turn read and wrote."""

    def __init__(self, domid: int, way: RingTransport) -> None:
        self._domid = domid
        self._way = way
        self._page = XenstorePage(way.page)
        self._incoming, self._outgoing = self._page.daemon_side()
        self._page.server_features = _FEATURES
        self._touched = False

    def attach(self, wake: Callable[[], None]) -> None:
        self._way.port.on_event = wake

    def restarted(self) -> bool:
        """Answer the domain's request to start anew, if there is one."""
        if self._page.connection != XENSTORE_RECONNECT:
            return False
        self._page.reconnect()
        self._touched = True
        return True

    def fill(self) -> bytes:
        """Take in what the ring holds: it has room then for as much again."""
        data = self._incoming.read()
        if data:
            self._touched = True
        return data

    def flush(self, output: Output) -> bool:
        """Write until the output is empty or the ring full: we wait for the domain only if it knows that."""
        ring = self._outgoing
        while output and (room := ring.writable):
            ring.write(output.take(room))
            self._touched = True
            fence()
        if self._touched:
            self._touched = False
            self._notify()
        return self._incoming.readable > 0

    def fail(self, failure: Failure) -> None:
        """Leave the reason in the page."""
        self._page.error = failure.value
        self._notify()

    def _notify(self) -> None:
        try:
            self._way.port.notify()
        except KernelError as error:
            raise ConnectionLost(self._domid, str(error)) from error

    def close(self) -> None:
        self._way.port.on_event = None
        self._page.detach()
        self._way.close()
