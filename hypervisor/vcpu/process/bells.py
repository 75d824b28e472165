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
        """Tell the owner of `channel` how to reach the other end."""
        peer = channel.peer
        assert peer is not None
        sender, listener = channel.owner.domain, peer.owner.domain
        process = self._processes[sender]
        hears = self._processes.get(listener)
        if hears is None or hears is process:
            process.tell(Change(ChangeKind.RING, channel.port, 0, TO_HYPERVISOR, channel.port))
            return
        pair = self._pairs.get((sender, listener))
        sender_fds: tuple[int, ...] = ()
        listener_fds: tuple[int, ...] = ()
        if pair is None:
            pair = self._pairs[sender, listener] = _Pair(next(self._numbers))
            bell = pair.bell
            sender_fds, listener_fds = (bell.memory_fd, bell.sender_end), (bell.memory_fd, bell.listener_end)
        pair.ports.add(peer.port)
        two = 1 if sender_fds else 0
        hears.tell(Change(ChangeKind.LISTEN, peer.port, two, pair.number, 0, listener_fds))
        process.tell(Change(ChangeKind.RING, channel.port, two, pair.number, peer.port, sender_fds))

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
