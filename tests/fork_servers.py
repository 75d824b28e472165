"""Fork servers that start in milliseconds: one process a session imports everything, and each machine's fork server
is a child of it. What the spawner and its children see is what they always see.
"""

import os
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final
from unittest.mock import patch

import anyio

from dom0.isolation import PRELOADED
from hypervisor.vcpu.process import fork_messages
from hypervisor.vcpu.process.child import Exit
from hypervisor.vcpu.process.fork_messages import Kind, Message
from hypervisor.vcpu.process.fork_server import NAME, ForkServer
from hypervisor.vcpu.process.newborn import live
from hypervisor.vcpu.process.server_process import SHOWN_BYTES, ServerProcess

TESTS_TOO: Final = ("pytest", "tests.steps")
"""what steps need besides"""
PATIENCE_S: Final = 30.0


def serve(_payload: bytes, fds: Sequence[int]) -> None:
    """What such a fork server executes."""
    birth = ForkServer(socket.socket(fileno=fds[0])).serve()
    if birth is not None:
        live(birth)


class Nursery:
    """The process that all of them are forked from; it is a fork server itself."""

    def __init__(self) -> None:
        self._server = ServerProcess.launched((*PRELOADED, *TESTS_TOO))
        self._ends: dict[int, Exit] = {}
        self._next = 0
        self._await(Kind.READY)

    def launched(self, preload: Sequence[str]) -> "BornServer | ServerProcess":
        """As ServerProcess.launched."""
        if tuple(preload) != PRELOADED:
            return ServerProcess.launched(preload)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        output = os.memfd_create("fork server", os.MFD_CLOEXEC)
        payload = fork_messages.payload_memfd(b"")
        self._next += 1
        with theirs:
            fds = [payload, output, theirs.fileno()]
            request = Message(Kind.SPAWN, self._next, len(fds), (f"{__name__}:serve", NAME))
            fork_messages.send(self._server.control, request, fds)
        os.close(payload)
        message, (pidfd,) = self._await(Kind.SPAWNED)
        return BornServer(self, message.value, pidfd, ours, output)

    def end_of(self, pid: int) -> Exit:
        """How a server has ended that has ended."""
        while pid not in self._ends:
            self._take()
        return self._ends.pop(pid)

    def close(self) -> None:
        self._server.kill()  # and all of its children
        self._server._process.wait()
        self._server.close()

    def _await(self, kind: Kind) -> tuple[Message, list[int]]:
        while True:
            message, fds = self._take()
            if message.kind is kind:
                return message, fds

    def _take(self) -> tuple[Message, list[int]]:
        assert select.select([self._server.control], [], [], PATIENCE_S)[0], self._server.output()
        received = fork_messages.receive(self._server.control)
        assert received is not None, self._server.output()
        if received[0].kind is Kind.EXITED:
            self._ends[received[0].number] = Exit.of(received[0].value)
        return received


class BornServer:
    """Stands for a ServerProcess."""

    def __init__(self, nursery: Nursery, pid: int, pidfd: int, control: socket.socket, output: int) -> None:
        self.control = control
        self._nursery = nursery
        self._pid = pid
        self._pidfd = pidfd
        self._output = output

    async def ended(self) -> Exit:
        await anyio.wait_readable(self._pidfd)
        return self._nursery.end_of(self._pid)

    def output(self) -> str:
        size = os.fstat(self._output).st_size
        return os.pread(self._output, SHOWN_BYTES, max(0, size - SHOWN_BYTES)).decode(errors="replace")

    def leave(self) -> None:
        self.control.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        self.control.close()
        os.close(self._pidfd)
        os.close(self._output)


@contextmanager
def quick_servers() -> Iterator[None]:
    """Machines that are started inside the context have such fork servers."""
    nursery = Nursery()
    with patch("hypervisor.vcpu.process.spawner.ServerProcess", nursery):
        yield
    nursery.close()
