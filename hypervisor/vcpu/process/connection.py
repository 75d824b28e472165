"""The hypervisor as a domain's process sees it: requests on the channel, what they change of its memory, events.

Two kinds of processes hold one: of domains whose kernel is Python, and of native domains. What the hypervisor says
of memory and events is done before a request returns.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NoReturn, Protocol

from hypervisor.vcpu.process.address_space import AddressSpace
from hypervisor.vcpu.process.doorbell import Listener, Ringer
from hypervisor.vcpu.process.listening import Listening, Routes, mapped
from hypervisor.vcpu.process.wire import (
    REQUEST,
    Change,
    ChangeKind,
    ChannelBroken,
    RequestKind,
    receive_packet,
)

_SIX: Final = (0, 0, 0, 0, 0, 0)


class Resident(Protocol):
    """What lives in the process, as far as the hypervisor's changes concern it. received, upcalls: events that it
    has entered into its shared_info, and how often that raised an upcall.
    """

    @property
    def received(self) -> int: ...

    @property
    def upcalls(self) -> int: ...

    def place_shared_info(self, page: memoryview) -> None:
        """Its shared_info lies there."""

    def place_vcpu_info(self, page: memoryview, offset: int) -> None:
        """vCPU 0's vcpu_info lies at `offset` of an own page."""

    def appeared(self, change: Change) -> None:
        """RAM, or a page of somebody else's, is there now."""

    def vanished(self, gpfn: int, count: int) -> None:
        """Pages are there no more."""

    def save_to(self, fd: int) -> None:
        """Write your state there when you stand still, and end."""

    def audit_to(self, fd: int) -> None:
        """Count everything again when you stand still, and write there what does not agree."""


class Connection:
    """Made of the channel, the bell that it hears and the one that it rings."""

    def __init__(self, channel: socket.socket, bell: Listener, to_hypervisor: Ringer) -> None:
        self.space = AddressSpace()
        self.listening = Listening(bell)
        self.routes = Routes(to_hypervisor)
        self._channel = channel
        self._resident: Resident | None = None

    def begin(self, resident: Resident) -> None:
        """Ask for the memory, and map it."""
        self._resident = resident
        self.request(RequestKind.SYNC)

    def request(
        self,
        kind: int,
        number: int = 0,
        args: Sequence[int] = _SIX,
        payload: bytes = b"",
        *,
        root: int = 0,
        vcpu: int = 0,
    ) -> int:
        """The hypervisor's answer, when it has given one. There is no going on without it."""
        resident, channel = self._resident, self._channel
        assert resident is not None
        six = args if len(args) == 6 else (*args, *_SIX)[:6]
        counted = self.routes.sent, resident.received, resident.upcalls
        try:
            channel.send(REQUEST.pack(kind, number, *six, *counted, root, vcpu) + payload)
            more = True
            while more:
                result, more, changes = receive_packet(channel)
                for change in changes:
                    self._apply(change)
        except (ChannelBroken, OSError) as error:
            halt(error)
        return result

    def collect(self, enter: Callable[[int], None]) -> None:
        """Enter the ports that were rung for since the last time, and do what has changed meanwhile."""
        listening = self.listening
        for port in listening.collect():
            enter(port)
        hypervisor = listening.hypervisor
        if hypervisor.wants_sync:
            listening.put_back()
            hypervisor.synced()
            self.request(RequestKind.SYNC)
            for port in listening.collect():
                enter(port)

    def _apply(self, change: Change) -> None:
        resident = self._resident
        assert resident is not None
        kind = change.kind
        if kind in _OF_MEMORY:
            self._change_memory(resident, change)
        elif kind is ChangeKind.RING:
            self.routes.ring(change)
        elif kind is ChangeKind.SILENCE:
            self.routes.silence(change)
        elif kind is ChangeKind.LISTEN:
            self.listening.listen(change)
        elif kind is ChangeKind.DEAF:
            self.listening.go_deaf(change)
        elif kind is ChangeKind.SAVE:
            resident.save_to(change.fds[0])
        else:
            resident.audit_to(change.fds[0])

    def _change_memory(self, resident: Resident, change: Change) -> None:
        kind, gpfn, pages, number, offset, fds = change
        space = self.space
        if kind is ChangeKind.MAP_PAGE:
            space.map_page(gpfn, fds[0], writable=bool(pages))
            resident.appeared(change)
        elif kind is ChangeKind.UNMAP:
            space.unmap(gpfn, pages)
            resident.vanished(gpfn, pages)
        elif kind is ChangeKind.MOVE_PAGE:
            space.move_page(gpfn, fds[0])
            resident.appeared(change)
        elif kind is ChangeKind.MAP_RAM:
            space.map_ram(gpfn, pages, number, offset)
            resident.appeared(change)
        elif kind is ChangeKind.EXTENT:
            space.add_extent(number, fds[0])
        elif kind is ChangeKind.DROP_EXTENT:
            space.drop_extent(number)
        elif kind is ChangeKind.SHARED_INFO:
            resident.place_shared_info(space.own_page(number, offset))
        else:
            resident.place_vcpu_info(space.page(gpfn), offset)


_OF_MEMORY: Final = frozenset(
    {
        ChangeKind.EXTENT,
        ChangeKind.DROP_EXTENT,
        ChangeKind.SHARED_INFO,
        ChangeKind.VCPU_INFO,
        ChangeKind.MAP_RAM,
        ChangeKind.MAP_PAGE,
        ChangeKind.MOVE_PAGE,
        ChangeKind.UNMAP,
    }
)


def connect(fds: Sequence[int]) -> Connection:
    """Of this process, made of what the hypervisor handed to it: the channel, and memory and pipe of its bell and
    of the one that it rings.
    """
    channel_fd, memory, listener_pipe, other_memory, sender_pipe = fds
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(True)
    bell = Listener(mapped(memory), listener_pipe, None)
    return Connection(channel, bell, Ringer(mapped(other_memory), sender_pipe))


def halt(error: Exception) -> NoReturn:
    """The machine is broken: its hypervisor is gone, or some of its memory is not there. A program that caught this
    would go on without.
    """
    with suppress(OSError):
        sys.stdout.flush()
        print(f"the machine halts: {error}", file=sys.stderr, flush=True)
    os._exit(1)
