"""One end of an event channel, and what it can be bound to.

The states are those that EVTCHNOP_status reports (public/event_channel.h). event_channels.py owns the
channels.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from hypervisor.abi.event_channel import (
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
)
from hypervisor.abi.xen import VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU
from hypervisor.event_2l import EVENT_WORD_BITS

if TYPE_CHECKING:
    from hypervisor.event_channels import EventChannels

VCPU_VIRQS: Final = frozenset((VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU))
"""each vCPU has its own; every other VIRQ is global and starts on vCPU 0"""


class ChannelState(IntEnum):
    """What a port in use is bound to, as EVTCHNOP_status reports it. A free port has no channel."""

    UNBOUND = EVTCHNSTAT_unbound
    INTERDOMAIN = EVTCHNSTAT_interdomain
    VIRQ = EVTCHNSTAT_virq
    IPI = EVTCHNSTAT_ipi


class Channel:
    """One end of an event channel."""

    __slots__ = ("bit", "owner", "peer", "port", "remote_domid", "state", "vcpu_id", "virq", "word")

    def __init__(self, owner: EventChannels, port: int, state: ChannelState, vcpu_id: int = 0) -> None:
        self.owner = owner
        self.port = port
        self.word, offset = divmod(port, EVENT_WORD_BITS)
        self.bit = 1 << offset
        self.state = state
        self.vcpu_id = vcpu_id
        self.remote_domid = 0
        """UNBOUND: who may bind to it"""
        self.peer: Channel | None = None
        """INTERDOMAIN, and only then: the other end"""
        self.virq = 0

    @property
    def virq_key(self) -> tuple[int, int]:
        """The (vCPU, VIRQ) that its owner finds it by: a global VIRQ under vCPU 0, wherever it is sent."""
        return (self.vcpu_id if self.virq in VCPU_VIRQS else 0, self.virq)


class Status(NamedTuple):
    """What EVTCHNOP_status tells. `domid` and `port` are those of the peer, `virq` that of a VIRQ."""

    status: int
    vcpu_id: int = 0
    domid: int = 0
    port: int = 0
    virq: int = 0
