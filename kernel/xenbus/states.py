"""The states of a split device, as both ends write them to their `state` node (public/io/xenbus.h)."""

from enum import Enum, IntEnum

from kernel.errors import KernelError


class XenbusState(IntEnum):
    """A device's state as one end sees and says it. Unknown: there is no such node."""

    Unknown = 0
    Initialising = 1
    InitWait = 2
    Initialised = 3
    Connected = 4
    Closing = 5
    Closed = 6
    Reconfiguring = 7
    Reconfigured = 8


class Side(Enum):
    """Which end of the device this is."""

    FRONTEND = "frontend"
    BACKEND = "backend"


class BadPeerState(KernelError):
    """The peer wrote something to its `state` node that is no state."""

    def __init__(self, path: str, found: str) -> None:
        shown = found if len(found) <= 32 else found[:32] + "…"
        super().__init__(f"{path} is {shown!r}, expected a state from 0 to 8")
        self.path = path
        self.found = found


def parse_state(path: str, text: str) -> XenbusState:
    """The state that `text`, read from `path`, stands for. Raises BadPeerState."""
    if len(text) == 1 and text in "012345678":
        return XenbusState(int(text))
    raise BadPeerState(path, text)
