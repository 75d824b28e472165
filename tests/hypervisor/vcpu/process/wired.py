"""Both ends of processes of domains in one thread of one process: the hypervisor's, without its loop, and the
platform of each, whose requests are served where they are made. Packets, descriptors, bells and memory are real.
"""

import ctypes
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from hypervisor.abi.event_channel import (
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_close,
    EVTCHNOP_send,
    evtchn_alloc_unbound,
    evtchn_bind_interdomain,
    evtchn_close,
    evtchn_send,
)
from hypervisor.abi.layout import Struct
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as EVENT_CHANNEL_OP
from hypervisor.continuation import Continuation
from hypervisor.errors import XenError
from hypervisor.page_sharing import Importer, reclaim_pages, share_pages
from hypervisor.vcpu.process.address_space import ADDRESS_BITS
from hypervisor.vcpu.process.bells import Bells
from hypervisor.vcpu.process.changes import Changes
from hypervisor.vcpu.process.connection import Connection
from hypervisor.vcpu.process.doorbell import Listener, Ringer
from hypervisor.vcpu.process.ends import Ends
from hypervisor.vcpu.process.execution import _reply
from hypervisor.vcpu.process.listening import mapped
from hypervisor.vcpu.process.platform import ProcessPlatform
from hypervisor.vcpu.process.wire import Request, RequestKind, ShareResult, decode_request
from tests.hypervisor.fakes import ARGUMENT, Guest
from tests.hypervisor.native_guest import NativeGuest

ROOM: Final = 1 << 22
"""for answers: nobody reads them before they are whole"""

S = TypeVar("S", bound=Struct)


class Served(socket.socket):
    """The process's end of a channel, at which everything that is sent is answered at once."""

    wired: "Wired"

    def send(self, data: Any, *_: Any) -> int:
        sent = super().send(data)
        self.wired.serve(data)
        return sent


class Wired:
    """The process of `guest`'s domain."""

    def __init__(self, guest: Guest | NativeGuest, bells: Bells) -> None:
        self.domain = guest.domain
        self.domain.isolated = True
        self.domain.memory.importer = Importer(self.domain)
        self._bells = bells
        self.ends = Ends()
        self.ends.channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
        self.changes = Changes(self.domain, self.ends.ringer.ask_to_sync)
        bells.add(self.domain, self.changes.bells)
        if self.domain.moves is not None:
            self.domain.moves.attach(self.changes)
        self.domain.events.bits.post = self.ends.ringer.ring
        channel, memory, pipe, other_memory, other_pipe = self.ends.of_process
        self.ends.of_process = [self.ends.output_of_process]
        self.ends.output_of_process = os.dup(self.ends.output_of_process)
        self._channel = Served(fileno=channel)
        self._channel.wired = self
        bell, ringer = Listener(mapped(memory), pipe, None), Ringer(mapped(other_memory), other_pipe)
        self.platform = ProcessPlatform(Connection(self._channel, bell, ringer), 0)

    # The hypervisor's side

    def serve(self, data: bytes) -> None:
        bits, post = self.domain.events.bits, self.domain.events.bits.post
        request = decode_request(data)
        assert self.ends.channel.recv(1 << 16) == data
        bits.post = None
        self.changes.asked = True
        if self.domain.moves is not None:
            self.domain.moves.stood_still()
        self.hear()
        try:
            result = self._result(request)
        except XenError as error:
            result = -error.errno
        bits.post = post
        run_at_once(_reply(self.ends.channel, result, self.changes))

    def _result(self, request: Request) -> int:
        domain = self.domain
        if request.kind is RequestKind.HYPERCALL:
            result = domain.machine.hypercall(domain.vcpus[0], request.number, request.args)
            while isinstance(result, Continuation):
                self.wait()
                result = domain.machine.hypercall(domain.vcpus[0], result.number, result.args)
            return result
        if request.kind is RequestKind.SHARE:
            domid, readonly = request.args[:2]
            moved = share_pages(domain, domid, request.pfns, readonly=bool(readonly))
            if moved is None:
                return ShareResult.NO_PROCESS
            self.changes.memory.moved(moved)
            return ShareResult.SHARED
        if request.kind is RequestKind.RECLAIM:
            self.changes.memory.moved(reclaim_pages(domain, *request.args[:2]))
        return 0

    def wait(self) -> None:
        """Between two slices of a hypercall."""
        self.domain.awaits.clear()

    def hear(self) -> None:
        """The hypervisor sends what the process has rung for."""
        for port in self.ends.listener.collect():
            try:
                self.domain.events.send(port)
            except XenError:  # it has closed it meanwhile
                continue

    # The program's side

    def operate(self, number: int, operation: int, argument: S) -> tuple[int, S]:
        """A hypercall of the form (operation, struct): its result, and the struct afterwards."""
        page = self.platform.memory.page(0)
        packed = argument.pack()
        page[ARGUMENT : ARGUMENT + len(packed)] = packed
        result = self.platform.hypercall(number, operation, ARGUMENT)
        return result, type(argument).unpack(page, ARGUMENT)

    def take(self) -> None:
        """It looks at its bells, as its event loop does all the time."""
        self.platform._take()

    @property
    def is_settled(self) -> bool:
        """Whether it has been told everything."""
        return not self.changes and not self.changes.left

    def close(self) -> None:
        """The process ends."""
        self.domain.events.bits.post = None
        self._bells.remove(self.domain)
        if self.domain.moves is not None:
            self.domain.moves.detach()
        self.changes.close()
        self._channel.close()
        listening, routes = self.platform._connection.listening, self.platform._connection.routes
        listening._pipes.close()
        for listener in listening._listeners.values():
            listener.close()
        for ringer in routes._ringers.values():
            ringer.close()
        for fd in self.platform._connection.space._extents.values():
            os.close(fd)
        unmap(self.platform._connection.space._base, 1 << ADDRESS_BITS)
        self.ends.__exit__()


def run_at_once(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run what has no reason to wait."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


def unmap(address: int, length: int) -> None:
    """Nobody looks there any more."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert not libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(length))


def open_files() -> list[str]:
    """What the descriptors of this process are, but for the memory of machines, which lives as long as these do."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            found.append(f"{fd.name}: {fd.readlink()}")
    return sorted(file for file in found if "memfd:domzero " not in file)


def alloc_unbound(at: Guest, wired: Wired | None, remote: int) -> int:
    """A new port for `remote`, by the hypercall of a coroutine or of a process."""
    argument = evtchn_alloc_unbound(dom=0x7FF0, remote_dom=remote)
    result, after = (wired or at).operate(EVENT_CHANNEL_OP, EVTCHNOP_alloc_unbound, argument)
    assert result == 0
    return after.port


def bind_interdomain(at: Guest, wired: Wired | None, remote: int, remote_port: int) -> int:
    """A new port connected to that of `remote`."""
    argument = evtchn_bind_interdomain(remote_dom=remote, remote_port=remote_port)
    result, after = (wired or at).operate(EVENT_CHANNEL_OP, EVTCHNOP_bind_interdomain, argument)
    assert result == 0
    return after.local_port


def close(at: Guest, wired: Wired | None, port: int) -> None:
    """Free a port."""
    assert (wired or at).operate(EVENT_CHANNEL_OP, EVTCHNOP_close, evtchn_close(port))[0] == 0


def send(at: Guest, wired: Wired | None, port: int) -> int:
    """Notify the other end."""
    return (wired or at).operate(EVENT_CHANNEL_OP, EVTCHNOP_send, evtchn_send(port))[0]
