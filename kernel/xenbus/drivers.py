"""What a driver of a split device gives to the shell that runs its handshake, and why a device can end.

A driver never reads or writes a `state` node. The shell calls one method at a time; each may take its time
and may raise, which closes the device and is reported in its error node. A driver that finds out later, from
its ring, that the peer breaks the rules calls `device.fail(error)`.
"""

from collections.abc import Mapping
from typing import Final, Protocol

from kernel.errors import KernelError
from kernel.xenbus.table import Event

Keys = Mapping[str, str]
"""Names and values of the nodes in a device's folder."""


class FrontendDriver(Protocol):
    """The guest's end of a device. `negotiate` to `closing` happen once for each connection, and may happen
    again.
    """

    async def negotiate(self, backend_keys: Keys) -> Keys:
        """The backend waits: grant rings, open event channels, and return the keys to publish, all in one
        transaction, before the state Initialised.
        """

    async def connected(self, backend_keys: Keys) -> None:
        """The backend is connected and has written its keys; the state Connected follows."""

    async def changed(self, backend_keys: Keys) -> None:
        """The backend wrote its state again while connected: its keys (a disk's size) may have changed."""

    async def closing(self) -> None:
        """The connection ends; `device.closed` says why. Give back what `negotiate` took and end all requests
        in flight.
        """

    async def forsaken(self) -> None:
        """The peer's nodes are gone and there is no connection: none will come by itself any more.
        `device.closed` says why there is none. This may be said again, and is when the device was asked to
        reopen.
        """


class BackendDriver(Protocol):
    """The serving end of a device. `features` to `disconnect` happen once for each connection, and may happen
    again.
    """

    async def features(self) -> Keys:
        """What can be offered, written before the state InitWait."""

    async def connect(self, frontend_keys: Keys) -> Keys:
        """The frontend has published its rings: map and serve them, look at them at once. The keys returned
        are written in one transaction, before the state Connected.
        """

    async def disconnect(self) -> None:
        """The connection ends; `device.closed` says why. Give back everything that `features` and `connect`
        took.
        """


class DeviceClosed(KernelError):
    """The device is not connected any more. Subclasses say who ended it."""

    why = "closed"

    def __init__(self, path: str, cause: Exception | None = None) -> None:
        super().__init__(f"{path}: {self.why}" + (f" ({cause})" if cause else ""))
        self.path = path
        self.cause = cause

    def again(self) -> "DeviceClosed":
        """The same, to be raised once more with a traceback of its own."""
        return type(self)(self.path, self.cause)


class ClosedByUs(DeviceClosed):
    """This domain closed it."""

    why = "closed by this domain"


class ClosedByPeer(DeviceClosed):
    """The other end, or the toolstack, closed it."""

    why = "closed by the peer"


class PeerGone(DeviceClosed):
    """The other end's nodes have vanished, as when its domain has died; `cause` names that domain."""

    why = "the peer is gone"


class PeerDomainGone(KernelError):
    """Domain `domid`, one end of a device, has ended, or has removed its nodes. side: which end it was."""

    def __init__(self, side: str, domid: int) -> None:
        super().__init__(f"{side} domain {domid} has ended, or has removed the device")
        self.side = side
        self.domid = domid


class DeviceRemoved(DeviceClosed):
    """The toolstack has removed the device."""

    why = "removed"


class DeviceFailed(DeviceClosed):
    """The driver failed, or found that its peer breaks the protocol; `cause` is what it raised."""

    why = "failed"


_REASONS: Final[Mapping[Event, type[DeviceClosed]]] = {
    Event.CLOSE: ClosedByUs,
    Event.REMOVED: DeviceRemoved,
    Event.OFFLINE: DeviceRemoved,
    Event.FAIL: DeviceFailed,
}


def reason_of(event: Event, path: str, cause: Exception | None) -> DeviceClosed:
    """Why a device that was ended by `event` is closed."""
    return _REASONS.get(event, ClosedByPeer)(path, cause)
