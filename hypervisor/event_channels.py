"""The event channels of one domain: which ports exist, what each is bound to, and how an event travels.

Follows xen/common/event_channel.c of Xen 4.17 with the two-level ABI (event_2l.py holds the bits). A domain's
EventChannels owns its channels. The two ends of an interdomain channel refer to each other and are linked and
unlinked together, in one step after everything was checked. No guest memory is read here, and no operation
waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, Protocol

from hypervisor.abi.event_channel import EVTCHN_2L_NR_CHANNELS, EVTCHNSTAT_closed
from hypervisor.abi.xen import NR_VIRQS
from hypervisor.errors import AlreadyExists, BadPort, Busy, InvalidArgument, NoSpace, NotFound, TryAgain
from hypervisor.event_2l import EventBits
from hypervisor.event_channel import VCPU_VIRQS, Channel, ChannelState, Status

if TYPE_CHECKING:
    from hypervisor.domain import Domain

PORTS_PER_BUCKET: Final = 64
"""Xen makes ports a page at a time; a port is valid, though closed, as soon as its bucket exists"""
HIGHEST_PORT: Final = EVTCHN_2L_NR_CHANNELS - 1


class LinkWatcher(Protocol):
    """Who is told of the interdomain channels of a domain as they come and go."""

    def linked(self, channel: Channel) -> None:
        """`channel` is connected to `channel.peer`."""

    def unlinked(self, channel: Channel) -> None:
        """It is about to be connected to nothing any more."""


class EventChannels:
    """The port table of a domain. Ports are handed out lowest first; port 0 never.

    watcher: is told of interdomain channels.
    """

    def __init__(self, domain: Domain, max_port: int = HIGHEST_PORT) -> None:
        self.domain = domain
        self.bits = EventBits(domain)
        self.watcher: LinkWatcher | None = None
        self._counters = domain.counters
        self._max_port = min(max_port, HIGHEST_PORT)
        self._channels: list[Channel | None] = [None] * PORTS_PER_BUCKET
        self._fresh = 1
        """the lowest port never used yet; below it, the free ones are in `_freed`"""
        self._freed: list[int] = []
        self._virqs: dict[tuple[int, int], Channel] = {}
        self._reset_at = 0
        """where an EVTCHNOP_reset under way goes on; 0 when none is"""
        self.active = 0

    # ---- binding

    def alloc_unbound(self, remote_domid: int) -> int:
        """A new port that `remote_domid` may bind to. NoSpace, InvalidArgument (dying)."""
        port = self._free_port()
        channel = Channel(self, port, ChannelState.UNBOUND)
        channel.remote_domid = remote_domid
        return self._install(channel)

    def bind_interdomain(self, remote: EventChannels, remote_port: int) -> int:
        """Connect a new local port to an unbound port of `remote` that awaits this domain.

        Notifications sent to the unbound port may have been lost, so the local port starts pending. BadPort,
        NoSpace.
        """
        port = self._free_port()
        peer = remote.lookup(remote_port)
        if peer is None or peer.state is not ChannelState.UNBOUND or peer.remote_domid != self.domain.domid:
            raise BadPort(remote.domain.domid, remote_port, f"does not await domain {self.domain.domid}")
        channel = Channel(self, port, ChannelState.INTERDOMAIN)
        channel.peer, peer.peer = peer, channel
        peer.state = ChannelState.INTERDOMAIN
        self._install(channel)
        for end in (channel, peer):
            if end.owner.watcher is not None:
                end.owner.watcher.linked(end)
        self.bits.set_pending(channel)
        return port

    def bind_virq(self, virq: int, vcpu_id: int) -> int:
        """A new port for a VIRQ. InvalidArgument, NotFound (vCPU), AlreadyExists, NoSpace."""
        if virq >= NR_VIRQS:
            raise InvalidArgument("virq", virq, f"below {NR_VIRQS}")
        if virq not in VCPU_VIRQS and vcpu_id != 0:
            raise InvalidArgument("vcpu", vcpu_id, "0, for a global VIRQ")
        self._require_vcpu(vcpu_id)
        if (vcpu_id, virq) in self._virqs:
            raise AlreadyExists(f"domain {self.domain.domid} vcpu {vcpu_id} virq {virq}")
        channel = Channel(self, self._free_port(), ChannelState.VIRQ, vcpu_id)
        channel.virq = virq
        self._virqs[channel.virq_key] = channel
        return self._install(channel)

    def bind_ipi(self, vcpu_id: int) -> int:
        """A new port by which the domain's vCPUs notify this one. NotFound (vCPU), NoSpace."""
        self._require_vcpu(vcpu_id)
        return self._install(Channel(self, self._free_port(), ChannelState.IPI, vcpu_id))

    def bind_vcpu(self, port: int, vcpu_id: int) -> None:
        """Let another vCPU be notified. NotFound (vCPU), BadPort: free, IPI, or the VIRQ of one vCPU."""
        self._require_vcpu(vcpu_id)
        channel = self._require(port)
        if channel.state is ChannelState.IPI or (
            channel.state is ChannelState.VIRQ and channel.virq in VCPU_VIRQS
        ):
            raise BadPort(self.domain.domid, port, "belongs to one vCPU")
        channel.vcpu_id = vcpu_id

    # ---- events

    def send(self, port: int) -> None:
        """Notify the other end. To an unbound port it goes nowhere; BadPort if free or a VIRQ."""
        channel = self._require(port)
        self._counters.events_sent += 1
        peer = channel.peer
        if peer is not None:
            peer.owner.bits.set_pending(peer)
        elif channel.state is ChannelState.IPI:
            self.bits.set_pending(channel)
        elif channel.state is not ChannelState.UNBOUND:
            raise BadPort(self.domain.domid, port, "only the hypervisor raises a VIRQ")

    def raise_virq(self, virq: int, vcpu_id: int = 0) -> None:
        """The hypervisor's own events; nothing happens if the domain has not bound this one."""
        channel = self._virqs.get((vcpu_id, virq))
        if channel is not None:
            self.bits.set_pending(channel)

    def unmask(self, port: int) -> None:
        """Clear the mask bit and deliver what waited behind it; free ports are left alone. BadPort."""
        channel = self.lookup(port)
        if channel is not None:
            self.bits.unmask(channel)
        elif port >= len(self._channels):
            raise BadPort(self.domain.domid, port)

    def poll(self, port: int) -> bool:
        """Whether an event is pending at a port in use. BadPort."""
        return self.bits.is_pending(self._require(port))

    def status(self, port: int) -> Status:
        """What a port is bound to. BadPort if it is beyond all buckets made so far."""
        channel = self.lookup(port)
        if channel is None:
            if port >= len(self._channels):
                raise BadPort(self.domain.domid, port)
            return Status(EVTCHNSTAT_closed)
        if channel.peer is not None:
            peer = channel.peer
            return Status(channel.state, channel.vcpu_id, peer.owner.domain.domid, peer.port)
        return Status(channel.state, channel.vcpu_id, channel.remote_domid, virq=channel.virq)

    # ---- closing

    def close(self, port: int) -> None:
        """Free a port; the other end of an interdomain channel becomes unbound, for this domain. BadPort."""
        channel = self._require(port)
        if channel.state is ChannelState.VIRQ:
            del self._virqs[channel.virq_key]
        peer = channel.peer
        if peer is not None:
            for end in (channel, peer):
                if end.owner.watcher is not None:
                    end.owner.watcher.unlinked(end)
            channel.peer = peer.peer = None
            peer.state = ChannelState.UNBOUND
            peer.remote_domid = self.domain.domid
        self.bits.clear_pending(channel)
        self._channels[port] = None
        heappush(self._freed, port)
        self.active -= 1

    def reset(self, budget: int, *, resuming: bool) -> bool:
        """Close every port, at most `budget` of them now; False: call again with `resuming`.

        Busy if a reset is under way, or none is to resume; TryAgain if ports were bound behind its back.
        """
        if bool(self._reset_at) != resuming:
            raise Busy(f"reset of the event channels of domain {self.domain.domid}")
        first = self._reset_at or 1
        self._reset_at = self._close_range(first, budget)
        if self._reset_at:
            return False
        if self.active:
            raise TryAgain(f"domain {self.domain.domid} has bound ports during a reset")
        return True

    def relinquish(self, budget: int) -> bool:
        """Part of a death: close at most `budget` ports. True when all are, and the shared page is let go."""
        if self._close_range(1, budget):
            return False
        self._channels = [None]
        self.bits.release()
        return True

    def _close_range(self, first: int, budget: int) -> int:
        """Close at most `budget` ports from `first` on; the port to go on from, 0 when no port is left."""
        for port in range(first, len(self._channels)):
            if not self.active:
                return 0
            if self._channels[port] is not None:
                if budget == 0:
                    return port
                self.close(port)
                budget -= 1
        return 0

    # ---- the table

    def links(self) -> Iterator[Channel]:
        """The interdomain channels."""
        return (channel for channel in self._channels if channel is not None and channel.peer is not None)

    def lookup(self, port: int) -> Channel | None:
        """The channel at `port`; None if it is free or there is no such port."""
        channels = self._channels
        return channels[port] if 0 <= port < len(channels) else None

    def _require(self, port: int) -> Channel:
        channels = self._channels
        channel = channels[port] if 0 <= port < len(channels) else None
        if channel is None:
            raise BadPort(self.domain.domid, port)
        return channel

    def _require_vcpu(self, vcpu_id: int) -> None:
        if not 0 <= vcpu_id < len(self.domain.vcpus):
            raise NotFound(f"vcpu {vcpu_id} of domain {self.domain.domid}")

    def _free_port(self) -> int:
        """The lowest free port, which `_install` takes. A bucket made for it stays in any case."""
        if self.domain.is_dying:
            raise InvalidArgument("event channels", "dying", "a live domain")
        if self._freed:
            return self._freed[0]
        if self._fresh > self._max_port:
            raise NoSpace(f"event channels of domain {self.domain.domid}")
        if self._fresh >= len(self._channels):
            self._channels.extend([None] * PORTS_PER_BUCKET)
        return self._fresh

    def _install(self, channel: Channel) -> int:
        port = channel.port
        if self._freed:
            heappop(self._freed)
        else:
            self._fresh = port + 1
        self._channels[port] = channel
        self.active += 1
        return port

    def audit(self) -> list[str]:
        """Recount everything from the channels; what disagrees, in words. Empty when all is well."""
        return [f"domain {self.domain.domid} {what}" for what in self._discrepancies()]

    def _discrepancies(self) -> Iterator[str]:
        used = [channel for channel in self._channels if channel is not None]
        free = [port for port in range(1, self._fresh) if self.lookup(port) is None]
        virqs = {channel.virq_key: channel for channel in used if channel.state is ChannelState.VIRQ}
        if self.active != len(used):
            yield f"counts {self.active} ports in use, has {len(used)}"
        if sorted(self._freed) != free:
            yield f"holds {sorted(self._freed)} for free, which are {free}"
        if any(self._channels[self._fresh :]) or self._channels[0] is not None:
            yield "uses a port that was never handed out"
        polling = {vcpu for vcpu in self.domain.vcpus if vcpu.poll_port is not None}
        if self.bits.pollers != polling:
            yield f"would wake pollers {self.bits.pollers}, which are {polling}"
        if self._virqs != virqs:
            yield f"finds VIRQs at {sorted(self._virqs)}, has bound {sorted(virqs)}"
        for port, channel in enumerate(self._channels):
            if channel is not None:
                yield from self._channel_discrepancies(port, channel)

    def _channel_discrepancies(self, port: int, channel: Channel) -> Iterator[str]:
        if channel.owner is not self or channel.port != port:
            yield f"port {port} holds the channel of port {channel.port}"
        if channel.vcpu_id >= len(self.domain.vcpus):
            yield f"port {port} notifies vcpu {channel.vcpu_id}, which does not exist"
        peer = channel.peer
        if (peer is not None) != (channel.state is ChannelState.INTERDOMAIN):
            yield f"port {port} is {channel.state.name} and yet has peer {peer and peer.port}"
        if peer is not None and (peer.peer is not channel or peer.owner.lookup(peer.port) is not peer):
            yield f"port {port} is connected to one that is not connected to it"
