"""What a domain's process has not been told yet of its address space and its bells.

What has changed is noted here; what stands there is looked up when a packet is about to be sent, and sent in the
same step. So nothing is told that is over, a descriptor that is sent is what it was looked up for, none is
held meanwhile, and however often things change, no more is noted than there are pages and ports.

While the process makes a request it stands still, and will be told with the answer. Otherwise it is asked to make
one (`wanted`) before anybody else is told of the same change: a bell that rings for a port is never ahead of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from hypervisor.vcpu.process.bell_changes import BellChanges
from hypervisor.vcpu.process.memory_changes import MemoryChanges
from hypervisor.vcpu.process.wire import MAX_CHANGES, MAX_DESCRIPTORS, Change, ChangeKind

if TYPE_CHECKING:
    from hypervisor.domain import Domain

MANY: Final = 256
STEP_CHANGES: Final = 5
"""at most so many changes, with so many descriptors, are added to a packet after it was seen to have room"""


class Packet:
    """The changes of one packet, while they are gathered, and how to forget that they are told."""

    __slots__ = ("changes", "descriptors", "undo")

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.descriptors = 0
        self.undo: list[Callable[[], object]] = []

    @property
    def has_room(self) -> bool:
        return (
            len(self.changes) + STEP_CHANGES <= MAX_CHANGES
            and self.descriptors + STEP_CHANGES <= MAX_DESCRIPTORS
        )

    def add(self, change: Change) -> None:
        self.changes.append(change)
        self.descriptors += len(change.fds)


class Changes:
    """For one process, from its start on. asked: it has made a request, which is not answered."""

    def __init__(self, domain: Domain, wanted: Callable[[], None]) -> None:
        self.asked = False
        self._answering = False
        self.memory = MemoryChanges(domain, self._noted)
        self.bells = BellChanges(domain.events, self._noted)
        self._wanted = wanted
        self._packet = Packet()
        self._orders: list[Change] = []

    def __bool__(self) -> bool:
        return bool(self.memory.noted or self.bells.noted or self._orders)

    def order(self, kind: ChangeKind, fd: int) -> None:
        """SAVE or AUDIT: what the process is to do when it has done all else."""
        self._orders.append(Change(kind, fds=(fd,)))
        self._noted()

    @property
    def are_many(self) -> bool:
        """Whether it is time to send what there is, so that nobody makes this process remember more and more."""
        return len(self.memory.noted) > MANY

    @property
    def stands_still(self) -> bool:
        """Whether what changes now is done before the process goes on."""
        return self.asked and not self._answering

    def ask(self) -> None:
        """Let the process make a request soon."""
        self._wanted()

    def moved(self, pfns: Iterable[int]) -> None:
        """Pages of the domain's own lie elsewhere from now on."""
        self.memory.moved(pfns)

    def begin(self) -> None:
        """An answer, or a part of it, begins: what is noted from now on is left for the next one."""
        self._answering = True
        self.memory.begin()
        self.bells.begin()

    def take(self) -> list[Change]:
        """The next packet of the answer, to be sent before anything else happens."""
        self._packet = packet = Packet()
        self.memory.fill(packet)
        self.bells.fill(packet)
        while self._orders and packet.has_room and not self.left:
            order = self._orders.pop(0)
            packet.add(order)
            packet.undo.append(partial(self._orders.insert, 0, order))
        return packet.changes

    @property
    def left(self) -> bool:
        """Whether there is more to be sent with this answer."""
        return bool(self.memory.due or self.bells.due)

    def put_back(self) -> None:
        """The packet was not sent."""
        for undo in reversed(self._packet.undo):
            undo()

    def sent(self) -> None:
        """The packet was sent, and is remembered no more."""
        self._packet = Packet()

    def end_part(self) -> None:
        """All of this part is sent; more of the answer follows, or none."""
        self._answering = False

    def answered(self) -> None:
        """The process goes on when it gets the next packet."""
        self.asked = False
        if self:
            self._wanted()

    def close(self) -> None:
        """Nobody is told anything any more."""
        self.memory.close()
        self._packet = Packet()

    def _noted(self) -> None:
        if not self.asked:
            self._wanted()
