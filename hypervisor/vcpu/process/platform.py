"""The machine as a kernel sees it that runs in a process of its own.

Memory is mapped from descriptors, hypercalls travel over the channel, events come by bells. Two things are done
here, in the domain's own process, that elsewhere the hypervisor does: what has been rung is entered into the
domain's own shared_info, and an event for another process rings its bell. The program trusts this code; the
hypervisor and everybody else trust nothing of it.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NoReturn

from anyio.lowlevel import checkpoint

from hypervisor.abi.event_channel import EVTCHNOP_send
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as HYPERVISOR_event_channel_op
from hypervisor.vcpu.parking import Parker, new_parker
from hypervisor.vcpu.process.address_space import AddressSpace, SharedPages
from hypervisor.vcpu.process.doorbell import Listener, Ringer
from hypervisor.vcpu.process.event_page import VCPU_INFO_BYTES, EventPage
from hypervisor.vcpu.process.idling import Idling
from hypervisor.vcpu.process.listening import Listening, Routes, mapped
from hypervisor.vcpu.process.wire import (
    MAX_PFNS,
    REQUEST,
    Change,
    ChangeKind,
    ChannelBroken,
    RequestKind,
    ShareResult,
    receive_packet,
)

WORD_BYTES: Final = 4

_HYPERCALL: Final = int(RequestKind.HYPERCALL)
_SEND: Final = (EVTCHNOP_send,)


class ProcessPlatform:
    """Made of the channel, the hypervisor's bell, the one that it hears, and the machine's clock (CLOCK_MONOTONIC
    when system time was 0). The constructor asks for the memory and maps it. idling: for the event loop.
    """

    def __init__(self, channel: socket.socket, bell: Listener, to_hypervisor: Ringer, origin_ns: int) -> None:
        self._channel = channel
        self._origin_ns = origin_ns
        self._space = AddressSpace()
        self.memory = SharedPages(self._space, self._share, self._reclaim)
        self._listening = Listening(bell)
        self._routes = Routes(to_hypervisor)
        self._events: EventPage | None = None
        self._parker: Parker | None = None
        self._blocked = False
        self.idling = Idling(self._listening, self._look)
        self._ask(RequestKind.SYNC)
        self.nr_pages = self._space.count_from_zero()

    # What the kernel calls

    def now_ns(self) -> int:
        """System time in nanoseconds."""
        return time.monotonic_ns() - self._origin_ns

    def hypercall(self, number: int, *args: int) -> int:
        """Enter the hypervisor: Xen's number, up to six arguments, Xen's result (negative errno).

        An event for a port that is bound to another domain needs no entry: it rings.
        """
        if number == HYPERVISOR_event_channel_op and args[:1] == _SEND and self._rings(args[1:2]):
            return 0
        return self._enter(_HYPERCALL, number, args)

    def _rings(self, address: Sequence[int]) -> bool:
        """Whether the event needs no hypercall: neither its port nor an argument that is none."""
        try:
            return not address[0] % WORD_BYTES and self._routes.send(self._space.word(address[0]))
        except LookupError:
            return False

    async def wait_upcall(self) -> None:
        """Block the vCPU until an upcall is pending. Others get their turn even if one is pending already."""
        if self._take():
            await checkpoint()
            return
        if self._parker is None:
            self._parker = new_parker()
        self._blocked = True
        try:
            while not self._take():
                await self._parker.park()
        finally:
            self._blocked = False

    # Events

    def _take(self) -> bool:
        """Enter what has been rung into shared_info; whether an upcall is pending."""
        events = self._events
        assert events is not None  # SHARED_INFO is among the first changes
        for port in self._listening.collect():
            events.set_pending(port)
        hypervisor = self._listening.hypervisor
        if hypervisor.wants_sync:
            self._listening.put_back()
            hypervisor.synced()
            self._ask(RequestKind.SYNC)
            for port in self._listening.collect():
                events.set_pending(port)
        return events.upcall_pending

    def _look(self) -> bool:
        """The same, for the event loop: the vCPU is woken. False if it was not blocked: it will see by itself."""
        if not self._take() or not self._blocked or self._parker is None:
            return False
        self._parker.unpark()
        return True

    # The channel

    def _share(self, domid: int, pfns: Sequence[int], readonly: bool) -> ShareResult:
        """Raises OSError: the hypervisor refused."""
        for first in range(0, len(pfns), MAX_PFNS):
            result = self._ask(RequestKind.SHARE, (domid, int(readonly)), pfns[first : first + MAX_PFNS])
            if result < 0:
                raise OSError(-result, f"pages from pfn {pfns[first]:#x} cannot be shared with {domid}")
            if result != ShareResult.SHARED:
                return ShareResult(result)
        return ShareResult.SHARED

    def _reclaim(self, pfn: int, count: int) -> None:
        result = self._ask(RequestKind.RECLAIM, (pfn, count))
        if result:
            raise OSError(-result, f"{count} pages from pfn {pfn:#x} cannot be taken back")

    def _ask(self, kind: RequestKind, args: Sequence[int] = (), pfns: Sequence[int] = ()) -> int:
        return self._enter(int(kind), 0, args, b"".join(pfn.to_bytes(8, "little") for pfn in pfns))

    def _enter(self, kind: int, number: int, args: Sequence[int], payload: bytes = b"") -> int:
        channel = self._channel
        six = (*args, 0, 0, 0, 0, 0, 0)[:6]
        events = self._events
        received, upcalls = (events.received, events.upcalls) if events is not None else (0, 0)
        try:
            channel.send(REQUEST.pack(kind, number, *six, self._routes.sent, received, upcalls) + payload)
            more = True
            while more:
                result, more, changes = receive_packet(channel)
                for change in changes:
                    self._apply(change)
        except (ChannelBroken, OSError) as error:
            _halt(error)
        return result

    def _apply(self, change: Change) -> None:
        kind, gpfn, pages, number, offset, fds = change
        if kind is ChangeKind.MAP_PAGE:
            self._space.map_page(gpfn, fds[0], writable=bool(pages))
        elif kind is ChangeKind.UNMAP:
            self._space.unmap(gpfn, pages)
        elif kind is ChangeKind.MOVE_PAGE:
            self._space.move_page(gpfn, fds[0])
        elif kind is ChangeKind.MAP_RAM:
            self._space.map_ram(gpfn, pages, number, offset)
        elif kind is ChangeKind.EXTENT:
            self._space.add_extent(number, fds[0])
        elif kind is ChangeKind.DROP_EXTENT:
            self._space.drop_extent(number)
        elif kind is ChangeKind.SHARED_INFO:
            self._events = EventPage(self._space.own_page(number, offset))
        elif kind is ChangeKind.VCPU_INFO:
            assert self._events is not None
            self._events.place_info(self._space.page(gpfn)[offset : offset + VCPU_INFO_BYTES])
        elif kind is ChangeKind.RING:
            self._routes.ring(change)
        elif kind is ChangeKind.SILENCE:
            self._routes.silence(change)
        elif kind is ChangeKind.LISTEN:
            self._listening.listen(change)
        else:
            self._listening.go_deaf(change)


def _halt(error: Exception) -> NoReturn:
    """The machine is broken: its hypervisor is gone, or some of its memory is not there. A program that caught this
    would go on without.
    """
    with suppress(OSError):
        sys.stdout.flush()
        print(f"the machine halts: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def attach(fds: Sequence[int], origin_ns: int) -> ProcessPlatform:
    """The platform of this process, made of what the hypervisor handed to it: the channel, and memory and
    pipe of its bell and of the one that it rings.
    """
    channel_fd, memory, listener_pipe, other_memory, sender_pipe = fds
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(True)
    bell = Listener(mapped(memory), listener_pipe, None)
    return ProcessPlatform(channel, bell, Ringer(mapped(other_memory), sender_pipe), origin_ns)
