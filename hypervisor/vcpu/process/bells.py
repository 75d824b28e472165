"""The bells between processes: one for each pair of domains in each direction, while a channel connects them.

For every interdomain channel of a process domain, its process learns by which bell an event reaches the other
end: the other domain's own, if that is a process too, or the hypervisor's.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final, Protocol

from hypervisor.vcpu.process.doorbell import Bell
from hypervisor.vcpu.process.wire import TO_HYPERVISOR, Change, ChangeKind

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.event_channel import Channel

FIRST_NUMBER: Final = 2


class Told(Protocol):
    """A process that is told of changes."""

    def tell(self, change: Change) -> None:
        """It will know when it has made its next request, and is made to ask."""


class _Pair:
    """A bell from one domain to another, and the listener's ports that it rings for."""

    __slots__ = ("bell", "number", "ports")

    def __init__(self, number: int) -> None:
        self.number = number
        self.bell = Bell()
        self.ports: set[int] = set()


class Bells:
    """All processes of a machine, and the bells between them."""

    def __init__(self) -> None:
        self._processes: dict[Domain, Told] = {}
        self._pairs: dict[tuple[Domain, Domain], _Pair] = {}
        self._numbers = count(FIRST_NUMBER)

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, domain: Domain, process: Told) -> None:
        """`domain` is a process from now on: connect it to all that it has channels to."""
        self._processes[domain] = process
        domain.events.watcher = self
        for channel in domain.events.links():
            self.linked(channel)
            peer = channel.peer
            if peer is not None and peer.owner.domain in self._processes:
                self.linked(peer)

    def remove(self, domain: Domain) -> None:
        """It is none any more; who listened to it does so no more. Those that still ring for it learn so when
        its channels close.
        """
        del self._processes[domain]
        domain.events.watcher = None
        for sender, listener in [pair for pair in self._pairs if domain in pair]:
            pair = self._pairs.pop((sender, listener))
            if sender is domain:
                for port in pair.ports:
                    self._processes[listener].tell(Change(ChangeKind.DEAF, port, 0, pair.number))
            pair.bell.close()

    def linked(self, channel: Channel) -> None:
        """Tell the owner of `channel` how to reach the other end. Where the host has no descriptors for a bell,
        or needs none, by way of the hypervisor.
        """
        peer = channel.peer
        assert peer is not None
        sender, listener = channel.owner.domain, peer.owner.domain
        process = self._processes[sender]
        hears = self._processes.get(listener)
        if hears is None or hears is process or not self._connect(channel, peer, process, hears):
            process.tell(Change(ChangeKind.RING, channel.port, 0, TO_HYPERVISOR, channel.port))

    def _connect(self, channel: Channel, peer: Channel, process: Told, hears: Told) -> bool:
        key = channel.owner.domain, peer.owner.domain
        pair = self._pairs.get(key)
        try:
            if pair is None:
                pair = self._pairs[key] = _Pair(next(self._numbers))
                bell = pair.bell
                hears.tell(_with_bell(ChangeKind.LISTEN, peer.port, pair, 0, bell.listener_end))
                process.tell(_with_bell(ChangeKind.RING, channel.port, pair, peer.port, bell.sender_end))
            else:
                hears.tell(Change(ChangeKind.LISTEN, peer.port, 0, pair.number))
                process.tell(Change(ChangeKind.RING, channel.port, 0, pair.number, peer.port))
        except OSError:
            if pair is not None and not pair.ports:
                hears.tell(Change(ChangeKind.DEAF, peer.port, 0, pair.number))
                self._pairs.pop(key).bell.close()
            return False
        pair.ports.add(peer.port)
        return True

    def unlinked(self, channel: Channel) -> None:
        """Tell both ends that the owner of `channel` reaches the other end no more."""
        peer = channel.peer
        assert peer is not None
        sender, listener = channel.owner.domain, peer.owner.domain
        self._processes[sender].tell(Change(ChangeKind.SILENCE, channel.port))
        pair = self._pairs.get((sender, listener))
        if pair is None or peer.port not in pair.ports:
            return
        pair.ports.discard(peer.port)
        self._processes[listener].tell(Change(ChangeKind.DEAF, peer.port, 0, pair.number))
        if not pair.ports:
            del self._pairs[sender, listener]
            pair.bell.close()


def _with_bell(kind: ChangeKind, port: int, pair: _Pair, offset: int, end: int) -> Change:
    return Change(kind, port, 1, pair.number, offset, (pair.bell.memory_fd, end))
