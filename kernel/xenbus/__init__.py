"""XenBus: how the two ends of a split device meet and agree, over XenStore (public/io/xenbus.h)."""

from kernel.xenbus.backend import BackendDevice
from kernel.xenbus.bus import BackendBus, FrontendBus
from kernel.xenbus.drivers import (
    BackendDriver,
    ClosedByPeer,
    ClosedByUs,
    DeviceClosed,
    DeviceFailed,
    DeviceRemoved,
    FrontendDriver,
    Keys,
    PeerDomainGone,
    PeerGone,
)
from kernel.xenbus.frontend import BadDeviceFolder, FrontendDevice
from kernel.xenbus.states import BadPeerState, Side, XenbusState
from kernel.xenbus.table import TRANSITIONS, HandshakeError

__all__ = [
    "TRANSITIONS",
    "BackendBus",
    "BackendDevice",
    "BackendDriver",
    "BadDeviceFolder",
    "BadPeerState",
    "ClosedByPeer",
    "ClosedByUs",
    "DeviceClosed",
    "DeviceFailed",
    "DeviceRemoved",
    "FrontendBus",
    "FrontendDevice",
    "FrontendDriver",
    "HandshakeError",
    "Keys",
    "PeerDomainGone",
    "PeerGone",
    "Side",
    "XenbusState",
]
