"""Of a process's bells: which it rings for each of its ports and which it hears, and what it knows of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from hypervisor.vcpu.process.doorbell import Bell
from hypervisor.vcpu.process.wire import TO_HYPERVISOR, Change, ChangeKind

if TYPE_CHECKING:
    from hypervisor.event_channels import EventChannels
    from hypervisor.vcpu.process.changes import Packet

T = TypeVar("T")


class Pair:
    """A bell from one domain to another, and the ports that it is for: the sender's by the listener's."""

    __slots__ = ("bell", "number", "ports")

    def __init__(self, number: int) -> None:
        """OSError: no descriptors left."""
        self.number = number
        self.bell = Bell()
        self.ports: dict[int, int] = {}


class Route(NamedTuple):
    """An event rings this bell, or the hypervisor's, at `far_port`."""

    pair: Pair | None
    far_port: int


class BellChanges:
    """noted: ports of which something has changed. due: those of the answer that is being sent. on_first: called
    when something is noted.
    """

    def __init__(self, events: EventChannels, on_first: Callable[[], None]) -> None:
        self.noted: dict[int, None] = {}
        self.due: dict[int, None] = {}
        self._events = events
        self._on_first = on_first
        self._routes: dict[int, Route] = {}
        self._hears: dict[int, Pair] = {}
        self._told_routes: dict[int, Route] = {}
        self._told_hears: dict[int, Pair] = {}
        self._rung: Counter[Pair] = Counter()
        self._heard: Counter[Pair] = Counter()
        """for how many ports the process knows a bell; it gives up one that it knows for none"""

    # What holds

    def route(self, port: int, pair: Pair | None, far_port: int) -> None:
        """An event for `port` rings the other domain's bell, or, without a pair, the hypervisor's."""
        self._routes[port] = Route(pair, far_port)
        self._note(port)

    def unroute(self, port: int) -> None:
        """An event for `port` takes a hypercall."""
        self._routes.pop(port, None)
        self._note(port)

    def listen(self, port: int, pair: Pair) -> None:
        """The bell rings for `port`."""
        self._hears[port] = pair
        self._note(port)

    def unlisten(self, port: int) -> None:
        """No bell does."""
        self._hears.pop(port, None)
        self._note(port)

    def _note(self, port: int) -> None:
        is_first = not self.noted
        self.noted[port] = None
        if is_first:
            self._on_first()

    # For an answer

    def begin(self) -> None:
        """Send what has been noted."""
        self.due |= self.noted
        self.noted.clear()

    def fill(self, packet: Packet) -> None:
        """Add what fits."""
        while self.due and packet.has_room:
            port, _ = self.due.popitem()
            packet.undo.append(partial(self.due.__setitem__, port, None))
            self._tell_route(packet, port)
            self._tell_bell(packet, port)

    def _tell_route(self, packet: Packet, port: int) -> None:
        before, now = self._told_routes.get(port), self._routes.get(port)
        if before == now:
            return
        if before is not None:
            packet.add(Change(ChangeKind.SILENCE, port))
            _count(packet, self._rung, before.pair, -1)
        if now is not None:
            pair = now.pair
            is_new = pair is not None and not self._rung[pair]
            fds = (pair.bell.memory_fd, pair.bell.sender_end) if pair is not None and is_new else ()
            number = TO_HYPERVISOR if pair is None else pair.number
            packet.add(Change(ChangeKind.RING, port, int(is_new), number, now.far_port, fds))
            _count(packet, self._rung, pair, 1)
        _put(self._told_routes, port, now)
        packet.undo.append(partial(_put, self._told_routes, port, before))

    def _tell_bell(self, packet: Packet, port: int) -> None:
        before, now = self._told_hears.get(port), self._hears.get(port)
        if before is now:
            return
        if before is not None:
            still_there = self._events.lookup(port) is not None
            packet.add(Change(ChangeKind.DEAF, port, int(still_there), before.number))
            _count(packet, self._heard, before, -1)
        if now is not None:
            is_new = not self._heard[now]
            fds = (now.bell.memory_fd, now.bell.listener_end) if is_new else ()
            packet.add(Change(ChangeKind.LISTEN, port, int(is_new), now.number, 0, fds))
            _count(packet, self._heard, now, 1)
        _put(self._told_hears, port, now)
        packet.undo.append(partial(_put, self._told_hears, port, before))


def _count(packet: Packet, known: Counter[Pair], pair: Pair | None, more: int) -> None:
    if pair is not None:
        _add(known, pair, more)
        packet.undo.append(partial(_add, known, pair, -more))


def _add(known: Counter[Pair], pair: Pair, more: int) -> None:
    known[pair] += more
    if not known[pair]:
        del known[pair]


def _put(ports: dict[int, T], port: int, value: T | None) -> None:
    if value is None:
        ports.pop(port, None)
    else:
        ports[port] = value
