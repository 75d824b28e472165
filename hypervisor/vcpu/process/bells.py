"""The bells between processes: one for each pair of domains in each direction, while a channel connects them.

For every interdomain channel of a process domain, its process learns by which bell an event reaches the other
end: the other domain's own, if that is a process too, or the hypervisor's.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final

from hypervisor.vcpu.process.bell_changes import BellChanges, Pair

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.event_channel import Channel

FIRST_NUMBER: Final = 2


class Bells:
    """All processes of a machine, and the bells between them."""

    def __init__(self) -> None:
        self._processes: dict[Domain, BellChanges] = {}
        self._pairs: dict[tuple[Domain, Domain], Pair] = {}
        self._numbers = count(FIRST_NUMBER)

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, domain: Domain, process: BellChanges) -> None:
        """`domain` is a process from now on: connect it to all that it has channels to."""
        self._processes[domain] = process
        domain.events.watcher = self
        for channel in domain.events.links():
            self.linked(channel)
            peer = channel.peer
            if peer is not None and peer.owner.domain in self._processes:
                self.linked(peer)

    def remove(self, domain: Domain) -> None:
        """It is none any more: it listens to nobody, nobody to it, and events for it are the hypervisor's."""
        del self._processes[domain]
        domain.events.watcher = None
        for sender, listener in [pair for pair in self._pairs if domain in pair]:
            pair = self._pairs.pop((sender, listener))
            for far_port, port in pair.ports.items():
                if sender is domain:
                    self._processes[listener].unlisten(far_port)
                else:
                    self._processes[sender].route(port, None, port)
            pair.bell.close()

    def linked(self, channel: Channel) -> None:
        """Tell the owner of `channel` how to reach the other end, and the other end that it may. Where the host
        has no descriptors for a bell, or needs none, by way of the hypervisor.
        """
        peer = channel.peer
        assert peer is not None
        sender, listener = channel.owner.domain, peer.owner.domain
        process, hears = self._processes[sender], self._processes.get(listener)
        pair = None if hears is None or hears is process else self._pair(sender, listener)
        if hears is None or pair is None:
            process.route(channel.port, None, channel.port)
            return
        pair.ports[peer.port] = channel.port
        # The listener first: its process is asked to look before the sender's can ring.
        hears.listen(peer.port, pair)
        process.route(channel.port, pair, peer.port)

    def _pair(self, sender: Domain, listener: Domain) -> Pair | None:
        pair = self._pairs.get((sender, listener))
        if pair is None:
            try:
                pair = self._pairs[sender, listener] = Pair(next(self._numbers))
            except OSError:
                return None
        return pair

    def unlinked(self, channel: Channel) -> None:
        """Tell both ends that the owner of `channel` reaches the other end no more."""
        peer = channel.peer
        assert peer is not None
        sender, listener = channel.owner.domain, peer.owner.domain
        self._processes[sender].unroute(channel.port)
        pair = self._pairs.get((sender, listener))
        if pair is None or peer.port not in pair.ports:
            return
        del pair.ports[peer.port]
        self._processes[listener].unlisten(peer.port)
        if not pair.ports:
            del self._pairs[sender, listener]
            pair.bell.close()
