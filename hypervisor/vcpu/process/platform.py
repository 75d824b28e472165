"""The machine as a kernel sees it that runs in a process of its own.

Memory is mapped from descriptors, hypercalls travel over the channel, events come by doorbells. Two things are
done here, in the domain's own process, that elsewhere the hypervisor does: what has been rung is entered into
the domain's own shared_info, and an event for another process rings its bell. The program trusts this code; the
hypervisor and everybody else trust nothing of it.

Waking a process that sleeps costs as much as a hundred requests of a ring. So a vCPU that was woken soon after
it had fallen asleep looks at its bells for a while before it sleeps again, and one that was not stops doing so.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Sequence
from typing import Final

from anyio import wait_readable
from anyio.lowlevel import checkpoint

from hypervisor.abi.event_channel import EVTCHNOP_send
from hypervisor.abi.vcpu import VCPUOP_register_vcpu_info, vcpu_register_vcpu_info
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as HYPERVISOR_event_channel_op
from hypervisor.abi.xen import __HYPERVISOR_vcpu_op as HYPERVISOR_vcpu_op
from hypervisor.abi.xen import shared_info
from hypervisor.vcpu.process.address_space import PAGE_SHIFT, PAGE_SIZE, AddressSpace, SharedPages
from hypervisor.vcpu.process.doorbell import BellMemory, Listener, Ringer
from hypervisor.vcpu.process.wire import (
    MAX_PFNS,
    REQUEST,
    TO_HYPERVISOR,
    Change,
    ChangeKind,
    RequestKind,
    receive_reply,
)
from ringbuffers.atomics import fence

WORD_BITS: Final = 64
VCPU_INFO_BYTES: Final = 64
UPCALL_PENDING: Final = 0
SELECTOR_WORD: Final = 1
SHORTEST_POLL_NS: Final = 20_000
LONGEST_POLL_NS: Final = 200_000

_PENDING: Final = shared_info.offsets["evtchn_pending"]
_MASK: Final = shared_info.offsets["evtchn_mask"]
_HYPERCALL: Final = int(RequestKind.HYPERCALL)


class ProcessPlatform:
    """Made of the channel, the hypervisor's bell and the machine's clock (CLOCK_MONOTONIC when system time
    was 0). The constructor asks for the memory and maps it.
    """

    def __init__(self, channel: socket.socket, bell: Listener, to_hypervisor: Ringer, origin_ns: int) -> None:
        self.polls = os.sched_getaffinity(0) != {0} and len(os.sched_getaffinity(0)) > 1
        self._channel = channel
        self._origin_ns = origin_ns
        self._space = AddressSpace()
        self.memory = SharedPages(self._space, self._share, self._reclaim)
        self._bell = bell
        self._listeners: dict[int, Listener] = {0: bell}
        self._all_listeners = [bell]
        self._to_hypervisor = to_hypervisor
        self._ringers = {TO_HYPERVISOR: to_hypervisor}
        self._routes: dict[int, tuple[Ringer, int]] = {}
        self._sleepers = select.epoll()
        self._sleepers.register(bell.pipe, select.EPOLLIN)
        self._poll_ns = 0
        self._sent = 0
        self._received = 0
        self._upcalls = 0
        self._info: memoryview
        self._info_words: memoryview
        self._pending: memoryview
        self._mask: memoryview
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
        if number == HYPERVISOR_event_channel_op and args[0] == EVTCHNOP_send:
            route = self._routes.get(self._space.word(args[1]))
            if route is not None:
                ringer, port = route
                ringer.ring(port)
                self._sent += ringer is not self._to_hypervisor
                return 0
        result = self._enter(_HYPERCALL, number, args)
        if number == HYPERVISOR_vcpu_op and args[0] == VCPUOP_register_vcpu_info and not result:
            self._place_info(args[2])
        return result

    async def wait_upcall(self) -> None:
        """Block the vCPU until an upcall is pending. Others get their turn even if one is pending already."""
        if self._take() or self._info[UPCALL_PENDING]:
            await checkpoint()
            return
        if self._poll_ns and await self._poll():
            return
        began_ns = time.monotonic_ns()
        await self._sleep()
        if self.polls:
            self._adapt(time.monotonic_ns() - began_ns)

    async def _poll(self) -> bool:
        """Look at the bells for a while, and let others go on between; whether something came."""
        until_ns = time.monotonic_ns() + self._poll_ns
        while time.monotonic_ns() < until_ns:
            await checkpoint()
            if self._take():
                return True
        return False

    async def _sleep(self) -> None:
        while True:
            for listener in self._all_listeners:
                listener.fall_asleep()
            fence()
            try:
                if self._take():
                    return
                await wait_readable(self._sleepers.fileno())
            finally:
                for listener in self._all_listeners:
                    listener.awake()
            for listener in self._all_listeners:
                listener.drain()
            if self._take():
                return

    def _adapt(self, slept_ns: int) -> None:
        if slept_ns < LONGEST_POLL_NS:
            self._poll_ns = min(LONGEST_POLL_NS, max(SHORTEST_POLL_NS, 2 * self._poll_ns))
        else:
            self._poll_ns = self._poll_ns // 2 if self._poll_ns > SHORTEST_POLL_NS else 0

    # Events

    def _take(self) -> bool:
        """Enter what has been rung into shared_info; whether an upcall is pending."""
        for listener in self._all_listeners:
            for port in listener.collect():
                self._set_pending(port)
        if self._bell.wants_sync:
            self._bell.synced()
            self._ask(RequestKind.SYNC)
        return bool(self._info[UPCALL_PENDING])

    def _set_pending(self, port: int) -> None:
        """As event_2l.py does it for domains of the hypervisor's own process."""
        word, offset = divmod(port, WORD_BITS)
        bit = 1 << offset
        if self._pending[word] & bit:
            return
        self._pending[word] |= bit
        self._received += 1
        if not self._mask[word] & bit:
            self._info_words[SELECTOR_WORD] |= 1 << word
            self._upcalls += not self._info[UPCALL_PENDING]
            self._info[UPCALL_PENDING] = 1

    def _place_info(self, address: int) -> None:
        """vcpu_info has moved to where the guest asked for it."""
        request = vcpu_register_vcpu_info.unpack(
            self._space.page(address >> PAGE_SHIFT), address & (PAGE_SIZE - 1)
        )
        at = request.offset
        self._use_info(self._space.page(request.mfn)[at : at + VCPU_INFO_BYTES])

    def _use_info(self, info: memoryview) -> None:
        self._info = info
        self._info_words = info.cast("Q")

    # The channel

    def _share(self, domid: int, pfns: Sequence[int], readonly: bool) -> bool:
        """Raises OSError: the hypervisor refused."""
        for first in range(0, len(pfns), MAX_PFNS):
            result = self._ask(RequestKind.SHARE, (domid, int(readonly)), pfns[first : first + MAX_PFNS])
            if result <= 0:
                if result:
                    raise OSError(-result, f"pages from pfn {pfns[first]:#x} cannot be shared with {domid}")
                return False
        return True

    def _reclaim(self, pfn: int, count: int) -> None:
        result = self._ask(RequestKind.RECLAIM, (pfn, count))
        if result:
            raise OSError(-result, f"{count} pages from pfn {pfn:#x} cannot be taken back")

    def _ask(self, kind: RequestKind, args: Sequence[int] = (), pfns: Sequence[int] = ()) -> int:
        return self._enter(int(kind), 0, args, b"".join(pfn.to_bytes(8, "little") for pfn in pfns))

    def _enter(self, kind: int, number: int, args: Sequence[int], payload: bytes = b"") -> int:
        channel = self._channel
        six = (*args, 0, 0, 0, 0, 0, 0)[:6]
        counted = self._sent, self._received, self._upcalls
        channel.send(REQUEST.pack(kind, number, *six, *counted) + payload)
        result, changes = receive_reply(channel)
        for change in changes:
            self._apply(change)
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
        elif kind is ChangeKind.SHARED_INFO:
            self._use_shared_info(self._space.own_page(number, offset))
        else:
            self._apply_to_bells(change)

    def _use_shared_info(self, page: memoryview) -> None:
        words = page.cast("Q")
        self._pending = words[_PENDING // 8 : _PENDING // 8 + WORD_BITS]
        self._mask = words[_MASK // 8 : _MASK // 8 + WORD_BITS]
        self._use_info(page[:VCPU_INFO_BYTES])

    def _apply_to_bells(self, change: Change) -> None:
        kind, port, _, number, offset, fds = change
        if kind is ChangeKind.RING:
            if fds:
                self._ringers[number] = Ringer(_mapped(fds[0]), fds[1])
            self._routes[port] = self._ringers[number], offset
        elif kind is ChangeKind.SILENCE:
            self._silence(port)
        elif kind is ChangeKind.LISTEN:
            if fds:
                self._listen(number, Listener(_mapped(fds[0]), fds[1], set()))
            bound = self._listeners[number].bound
            if bound is not None:
                bound.add(port)
        elif kind is ChangeKind.DEAF:
            self._go_deaf(number, port)

    def _listen(self, number: int, listener: Listener) -> None:
        self._listeners[number] = listener
        self._all_listeners = list(self._listeners.values())
        self._sleepers.register(listener.pipe, select.EPOLLIN)

    def _go_deaf(self, number: int, port: int) -> None:
        listener = self._listeners.get(number)
        if listener is None or listener.bound is None:
            return
        listener.bound.discard(port)
        if not listener.bound:
            del self._listeners[number]
            self._all_listeners = list(self._listeners.values())
            self._sleepers.unregister(listener.pipe)
            listener.close()

    def _silence(self, port: int) -> None:
        route = self._routes.pop(port, None)
        if route is None:
            return
        ringer = route[0]
        if ringer is self._to_hypervisor:
            return
        if all(other is not ringer for other, _ in self._routes.values()):
            for number in [number for number, other in self._ringers.items() if other is ringer]:
                del self._ringers[number]
            ringer.close()


def _mapped(fd: int) -> BellMemory:
    """Map a bell; the descriptor is used up."""
    try:
        return BellMemory(fd)
    finally:
        os.close(fd)


def attach(fds: Sequence[int], origin_ns: int) -> ProcessPlatform:
    """The platform of this process, made of what the hypervisor handed to it: the channel, and memory and
    pipe of its bell and of the one that it rings.
    """
    channel_fd, memory, listener_pipe, other_memory, sender_pipe = fds
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(True)
    bell = Listener(_mapped(memory), listener_pipe, None)
    return ProcessPlatform(channel, bell, Ringer(_mapped(other_memory), sender_pipe), origin_ns)
