"""Where the hypervisor's process gets processes for domains from: a fork server of its own, and its children.

    async with Spawner.running(PRELOADED) as spawner:
        spawner.warm()
        ...
        child = await spawner.spawn("kernel.process:main", payload, [channel, bell], output)
        ...
        print((await child.wait()).describe())

The children are the server's, so that the hypervisor's process cannot wait for them and need not: the server
reports each end, and a pidfd sends signals that cannot reach anybody else. Leaving the context kills them all.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from errno import EMFILE
from typing import Final

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from hypervisor.vcpu.process import fork_messages
from hypervisor.vcpu.process.child import Child, Exit
from hypervisor.vcpu.process.fork_messages import MAX_FDS, MAX_MESSAGE_BYTES, Kind, Message, payload_memfd
from hypervisor.vcpu.process.server_process import ServerProcess

ENDING_SECONDS: Final = 5.0
"""how long killed children, and then the server, may take to be gone"""


class SpawnError(Exception):
    """No process could be made."""


class ForkServerFailed(SpawnError):
    """The fork server did not start, or has ended; `output` is what it said."""

    def __init__(self, what: str, exit_: Exit, output: str) -> None:
        super().__init__(f"the fork server {what}, {exit_.describe()}: {output.strip()}")
        self.exit = exit_
        self.output = output


class SpawnRefused(SpawnError):
    """The system has made no process for `entry`; errno as of fork(2), or EMFILE."""

    def __init__(self, entry: str, errno: int) -> None:
        super().__init__(f"no process for {entry}: {os.strerror(errno)}")
        self.entry = entry
        self.errno = errno


class SpawnerClosed(SpawnError):
    """The spawner's context was left before the process was there."""

    def __init__(self) -> None:
        super().__init__("the spawner is closed")


class SpawnMisuse(SpawnError):
    """What was asked for fits no message: too many descriptors, names that are too long."""


class _Pending:
    """A request whose answer is not there yet; `abandoned` when nobody waits for it any more."""

    def __init__(self, entry: str) -> None:
        self.entry = entry
        self.answered = anyio.Event()
        self.abandoned = False
        self.child: Child | None = None
        self.error: SpawnError | None = None

    def answer(self, child: Child | None, error: SpawnError | None = None) -> None:
        self.child, self.error = child, error
        self.answered.set()
        if self.abandoned and child is not None:
            child.kill()


class Spawner:
    """Made by `running`. The server starts with the first `warm` or `spawn`, once."""

    def __init__(self, preload: Sequence[str], tasks: TaskGroup) -> None:
        self._preload = preload
        self._tasks = tasks
        self._server: ServerProcess | None = None
        self._up = anyio.Event()  # it answers requests, or never will: see _failure
        self._failure: SpawnError | None = None
        self._sending = anyio.Lock()
        self._requests = 0
        self._pending: dict[int, _Pending] = {}
        self._children: dict[int, Child] = {}
        self._fewer = anyio.Event()  # set when something is no longer pending, or no longer a child
        self._over = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def running(cls, preload: Sequence[str] = ()) -> AsyncIterator[Spawner]:
        """Spawn inside this context. `preload`: modules that the children shall find imported. What the body
        raises passes as it is.
        """
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            spawner = cls(preload, tasks)
            try:
                yield spawner
            except Exception as error:
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await spawner._end()
        if failure is not None:
            raise failure

    @property
    def server_pid(self) -> int | None:
        """The fork server's, once it was started."""
        return None if self._server is None else self._server.pid

    def warm(self) -> None:
        """Start the server, if it was not, while the caller does something else. Errors come with `spawn`."""
        if self._server is not None or self._failure is not None:
            return
        try:
            self._server = ServerProcess.launched(self._preload)
        except OSError as error:
            self._failure = SpawnError(f"the fork server cannot be started: {error}")
            self._up.set()
        else:
            self._tasks.start_soon(self._follow, self._server, name="fork server")

    async def spawn(
        self, entry: str, payload: bytes, fds: Sequence[int], output_fd: int, name: str = "domzero-domain"
    ) -> Child:
        """A new process that calls `entry`, "module:function", with `payload` and its copies of `fds`.

        output_fd: its stdout and stderr. name: for ps, at most 15 bytes. All descriptors remain the caller's.
        The entry is trusted: it gives up what its program shall not have (confinement.confine). What it
        raises goes to the output, and is exit code 1.

        Raises ForkServerFailed, SpawnRefused, SpawnerClosed, SpawnMisuse.
        """
        self.warm()
        await self._up.wait()
        pending = _Pending(entry)
        try:
            await self._request(pending, payload, [output_fd, *fds], name)
            await pending.answered.wait()
        except BaseException:
            pending.abandoned = True
            if pending.child is not None:
                pending.child.kill()
            raise
        if pending.child is None:
            raise pending.error or SpawnerClosed()
        return pending.child

    # ---- requests

    async def _request(self, pending: _Pending, payload: bytes, fds: Sequence[int], name: str) -> None:
        text = (pending.entry, name)
        if len(fds) >= MAX_FDS or len("\0".join(text).encode()) > MAX_MESSAGE_BYTES // 2:
            raise SpawnMisuse(f"{pending.entry}: {len(fds)} descriptors, name {name!r}")
        async with self._sending:
            if self._failure is not None or self._server is None:
                raise self._failure or SpawnerClosed()
            try:
                memfd = payload_memfd(payload)
            except OSError as error:
                raise SpawnRefused(pending.entry, error.errno or 0) from error
            try:
                self._requests = number = (self._requests + 1) & 0xFFFF_FFFF
                request = Message(Kind.SPAWN, number, 1 + len(fds), text)
                self._pending[number] = pending
                await self._send(self._server.control, request, [memfd, *fds])
            except BaseException:
                self._pending.pop(number, None)  # a packet goes whole or not at all
                raise
            finally:
                os.close(memfd)

    async def _send(self, control: socket.socket, message: Message, fds: Sequence[int]) -> None:
        while True:
            try:
                fork_messages.send(control, message, fds)
            except BlockingIOError:
                await anyio.wait_writable(control)
            except BrokenPipeError:
                return  # the server has ended; whoever follows it tells those who wait
            except OSError as error:  # above all, too many descriptors under way
                raise SpawnRefused(message.text[0], error.errno or 0) from error
            else:
                return

    # ---- answers

    async def _follow(self, server: ServerProcess) -> None:
        with anyio.CancelScope(shield=True):  # whoever is cancelled still has children to end
            while (received := await _next_message(server.control)) is not None:
                self._take(*received)
            await self._server_gone(server)

    def _take(self, message: Message, fds: list[int]) -> None:
        kind, number, value, _ = message
        if kind is Kind.READY:
            self._up.set()
        elif kind is Kind.SPAWNED:
            self._born(self._pending.pop(number), value, fds)
        elif kind is Kind.REFUSED:
            pending = self._pending.pop(number)
            pending.answer(None, SpawnRefused(pending.entry, value))
            self._count_down()
        elif kind is Kind.EXITED:
            self._children.pop(number).ended(Exit.of(value))
            self._count_down()

    def _born(self, pending: _Pending, pid: int, fds: list[int]) -> None:
        self._children[pid] = child = Child(pid, fds[0] if fds else None)
        if fds:
            pending.answer(child)
        else:  # no descriptor left here; the pid is the child's until its end is reported
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            pending.answer(None, SpawnRefused(pending.entry, EMFILE))

    def _count_down(self) -> None:
        self._fewer.set()
        self._fewer = anyio.Event()

    # ---- ends

    async def _server_gone(self, server: ServerProcess) -> None:
        """The kernel kills its children with it; their ends are seen on their pidfds."""
        exit_ = await server.ended()
        what = "has ended" if self._up.is_set() else "did not start"
        self._failure = self._failure or ForkServerFailed(what, exit_, server.output())
        server.close()
        for child in self._children.values():
            await child.gone()
        self._children.clear()
        for pending in self._pending.values():
            pending.answer(None, self._failure)
        self._pending.clear()
        self._up.set()
        self._count_down()
        self._over.set()

    async def _end(self) -> None:
        """Kill and wait for everybody. Bounded: who is not gone in time is left to the kernel."""
        server, failure = self._server, self._failure
        self._failure = failure or SpawnerClosed()
        if server is None or self._over.is_set():
            return
        if not self._up.is_set():
            server.kill()
        with anyio.move_on_after(ENDING_SECONDS):
            await self._end_children()
            server.leave()
            await self._over.wait()
        if not self._over.is_set():
            server.kill()
            await self._over.wait()

    async def _end_children(self) -> None:
        while self._pending or self._children:
            for pending in self._pending.values():
                pending.abandoned = True
            for child in self._children.values():
                child.kill()
            await self._fewer.wait()


async def _next_message(control: socket.socket) -> tuple[Message, list[int]] | None:
    while True:
        try:
            received = fork_messages.receive(control)
        except BlockingIOError:
            await anyio.wait_readable(control)
        else:
            await checkpoint()
            return received
