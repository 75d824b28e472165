"""A vCPU that is a process of its own, as the hypervisor sees it.

The process makes one request at a time on its channel and waits for the answer; meanwhile its vCPU stands still,
and the core may touch what only the vCPU's own thread writes otherwise (shared_info, vcpu_info). While it runs,
events for it ring its bell, and it enters them itself. So it blocks by itself, too: a SCHEDOP_block or SCHEDOP_poll
that comes here nevertheless returns at once, as either may, since some bells that end it ring where nobody here
hears them.

A domain that is paused is stopped (SIGSTOP), and so is one that has suspended, until it is resumed. One that has
shut down otherwise, or dies, is killed, and one whose process ends by itself has crashed.

Nothing that the process sends is believed, and nobody waits for it but the task that serves it.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from traceback import format_exc
from typing import TYPE_CHECKING, ClassVar, Final

import anyio
from anyio import wait_readable, wait_writable
from anyio.lowlevel import checkpoint

from hypervisor.abi.sched import SHUTDOWN_suspend
from hypervisor.abi.vcpu import RUNSTATE_offline
from hypervisor.continuation import Continuation
from hypervisor.errors import XenError
from hypervisor.page_sharing import Importer, reclaim_pages, share_pages
from hypervisor.vcpu.clock import enter_running, publish_system_time, publish_wall_clock
from hypervisor.vcpu.parking import Parker, new_parker
from hypervisor.vcpu.process.changes import Changes
from hypervisor.vcpu.process.doorbell import ASLEEP, Listener
from hypervisor.vcpu.process.ends import Ends
from hypervisor.vcpu.process.spawner import SpawnError
from hypervisor.vcpu.process.wire import (
    MAX_REQUEST_BYTES,
    ChannelBroken,
    ChannelClosed,
    Request,
    RequestKind,
    ShareResult,
    decode_request,
    encode_reply,
    send_packet,
)
from ringbuffers.atomics import fence

if TYPE_CHECKING:
    from hypervisor.vcpu.process.bells import Bells
    from hypervisor.vcpu.process.child import Child
    from hypervisor.vcpu.process.spawner import Spawner
    from hypervisor.vcpu.state import Vcpu

OUTPUT_BYTES: Final = 4096
LAST_READS: Final = 16
"""of OUTPUT_BYTES, when it has ended: what a pipe holds"""
LEAVING_SECONDS: Final = 1.0
"""how long a process may take to end that has closed its channel"""
ENDING_SECONDS: Final = 10.0
"""how long a killed process may take to be gone"""
MOVING_SECONDS: Final = 1.0
"""how long one waits for the process of another domain to stand still"""
CROWDED_SECONDS: Final = 0.01
"""before descriptors are sent again of which the user's processes have too many under way (unix(7), ETOOMANYREFS)"""


@dataclass(frozen=True, slots=True)
class Image:
    """What a process executes: `entry` (module:function) is called with `payload` and the descriptors of the
    platform, of which platform.attach makes it.
    """

    entry: str
    payload: bytes


class ProcessVcpu:
    """One process. `failure` says how it ended if it did so by itself."""

    posts_always: ClassVar[bool] = False
    """whether its process enters events also while it waits for an answer, so that nobody here ever does"""

    def __init__(
        self,
        vcpu: Vcpu,
        image: Image,
        spawner: Spawner,
        bells: Bells,
        on_failure: Callable[[Vcpu, str], None],
    ) -> None:
        self.vcpu = vcpu
        self.failure: str | None = None
        self.finished = anyio.Event()
        self.child: Child | None = None
        self._domain = vcpu.domain
        self._image = image
        self._next_image: Image | None = image
        self._changes: Changes | None = None
        self._spawner = spawner
        self._bells = bells
        self._on_failure = on_failure
        self._scope = anyio.CancelScope()
        self._parker: Parker | None = None
        self._counted = (0, 0, 0)
        self._header: memoryview | None = None
        self._cpu_ns = 0
        self._paused = False
        self._broken = ""

    # ---- what the core asks

    @property
    def sleeps(self) -> bool:
        """Whether the process says that it waits for an upcall."""
        return self._header is not None and bool(self._header[ASLEEP])

    @property
    def cpu_ns(self) -> int:
        """Processor time of the process."""
        if self.child is not None:
            with suppress(OSError):  # it has ended, and nobody has seen that yet
                self._cpu_ns = time.clock_gettime_ns(_cpu_clock(self.child.pid))
        return self._cpu_ns

    # ---- what the host calls

    def wake(self) -> None:
        """The vCPU may have become runnable."""
        if self._paused and self.child is not None and self._domain.executing:
            self._paused = False
            self.child.resume()
        if self._parker is not None:
            self._parker.unpark()

    def stop(self) -> None:
        """The domain does not execute any more: for good, or until it is unpaused."""
        domain = self._domain
        if domain.is_dying or (domain.stopped and domain.shutdown_reason != SHUTDOWN_suspend):
            self._scope.cancel()
        elif self.child is not None:
            self._paused = True
            self.child.pause()

    def end(self) -> None:
        """Nothing more: it is killed when it is cancelled, and waited for a while."""

    async def run(self) -> None:
        """Execute the process from the domain's first unpause on. Raises nothing that it has caused."""
        self._domain.isolated = True
        self._domain.memory.importer = Importer(self._domain)
        try:
            with self._scope:
                self.stop()
                await self._until_runnable()
                self._prepare()
                await self._execute()
        except (SpawnError, OSError, XenError) as error:
            self._fail(f"its process cannot be started: {error}")
        except Exception:  # a fault of ours that this process has found: nobody else is to notice
            self._fail(format_exc())
        finally:
            self.vcpu.enter_runstate(RUNSTATE_offline, self._domain.machine.host.now_ns())
            self.finished.set()

    # ---- its life

    def _prepare(self) -> None:
        """What the guest finds in its memory, written before there is a process."""
        enter_running(self.vcpu)
        publish_wall_clock(self._domain)
        publish_system_time(self.vcpu)

    @contextmanager
    def _scheduled(self, _ends: Ends, _child: Child) -> Iterator[None]:
        """The process runs whenever the host lets it."""
        yield

    def _audited(self, _request: Request) -> None:
        """It has written down what a recount has found. Raises ChannelBroken."""
        raise ChannelBroken("it has counted what nobody has asked for")

    def _is_ready(self) -> None:
        """Its process says that it executes the domain."""

    def _descriptors(self) -> Sequence[int]:
        """Handed to the process beside its ends; they stay ours."""
        return ()

    async def _execute(self) -> None:
        """One process after the other, each of which goes on where the one before has saved its state."""
        while self._next_image is not None:
            self._image, self._next_image = self._next_image, None
            await self._execute_once()

    async def _execute_once(self) -> None:
        with Ends() as ends, self._connected(ends) as changes:
            self._changes = changes
            child = await self._spawner.spawn(
                self._image.entry,
                self._image.payload,
                [*ends.of_process, *self._descriptors()],
                ends.output_of_process,
            )
            ends.hand_over()
            self.child = child
            self._header = ends.ringer.memory.header
            self.vcpu.elsewhere = self
            try:
                if not self._domain.executing:
                    self.stop()
                with self._scheduled(ends, child):
                    await self._serve(ends, changes, child)
            finally:
                self._cpu_ns = self.cpu_ns
                self._changes = self.child = self._header = None
                with anyio.move_on_after(ENDING_SECONDS, shield=True):
                    child.kill()
                    await child.wait()
                self._print_last(ends.output)

    @contextmanager
    def _connected(self, ends: Ends) -> Iterator[Changes]:
        """The core knows of the process: what changes for it, and how events reach it."""
        domain = self._domain
        changes = Changes(domain, ends.ringer.ask_to_sync)
        try:
            self._bells.add(domain, changes.bells)
            domain.events.bits.post = ends.ringer.ring
            if domain.moves is not None:
                domain.moves.attach(changes)
            try:
                yield changes
            finally:
                domain.events.bits.post = self._missed if self._next_image is not None else None
                self._bells.remove(domain)
                if domain.moves is not None:
                    domain.moves.detach()
        finally:
            changes.close()

    async def _serve(self, ends: Ends, changes: Changes, child: Child) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._answer_requests, ends, changes, child)
            tasks.start_soon(self._hear, ends.listener, child)
            tasks.start_soon(self._pass_on, ends.output)
            exit_ = await child.wait()
            self._send_rung(ends.listener)
            tasks.cancel_scope.cancel()
        self._print_last(ends.output)
        if self._next_image is not None:
            return
        killed = exit_.signal == signal.SIGKILL
        self._fail(self._broken if killed and self._broken else f"its process has ended: {exit_.describe()}")

    def _fail(self, why: str) -> None:
        if not self._domain.stopped:
            self.failure = why
            self._on_failure(self.vcpu, why + "\n")
            self._domain.crash()

    async def _until_runnable(self) -> None:
        if self._parker is None:
            self._parker = new_parker()
        while not self.vcpu.runnable:
            await self._parker.park()

    # ---- requests

    async def _answer_requests(self, ends: Ends, changes: Changes, child: Child) -> None:
        """Until the process does what no process does: then it is killed."""
        bits, post, moves = self._domain.events.bits, ends.ringer.ring, self._domain.moves
        channel = ends.channel
        try:
            while True:
                request = decode_request(await _receive(channel))
                if not self.posts_always:
                    bits.post = None
                changes.asked = True
                if moves is not None:
                    moves.stood_still()
                self._count(request)
                self._send_rung(ends.listener)  # it has rung before it asked: a port may be closed by this
                if request.kind is RequestKind.SAVED:
                    self._next_image = self._resumed(request)
                    child.kill()
                    return
                result = await self._answer(request, channel, changes)
                bits.post = post
                await _reply(channel, result, changes)
                await checkpoint()  # one that asks and asks leaves others their turn
        except ChannelClosed as closed:
            await self._let_it_end(child, str(closed))
        except ChannelBroken as broken:
            self._broken = str(broken)
            child.kill()

    async def _let_it_end(self, child: Child, why: str) -> None:
        """A process that ends closes its channel first; one that goes on without is killed."""
        with anyio.move_on_after(LEAVING_SECONDS):
            await child.wait()
            return
        self._broken = why
        child.kill()

    def _count(self, request: Request) -> None:
        """What the process says of itself is shown in reports and used for nothing else."""
        counters = self._domain.counters
        sent, received, upcalls = (
            max(0, now - before) for now, before in zip(request.counted, self._counted)
        )
        counters.events_sent += sent
        counters.events_received += received
        counters.upcalls += upcalls
        self._counted = request.counted

    async def _answer(self, request: Request, channel: socket.socket, changes: Changes) -> int:
        await self._until_runnable()
        try:
            if request.kind is RequestKind.HYPERCALL:
                return await self._hypercall(request, channel, changes)
            if request.kind is RequestKind.SHARE:
                return self._share(changes, request)
            if request.kind is RequestKind.READY:
                self._is_ready()
            elif request.kind is RequestKind.AUDITED:
                self._audited(request)
            elif request.kind is RequestKind.RECLAIM:
                pfn, count = request.args[:2]
                changes.memory.moved(reclaim_pages(self._domain, pfn, count))
        except XenError as error:
            return -error.errno
        return 0

    def _share(self, changes: Changes, request: Request) -> int:
        domid, readonly = request.args[:2]
        if domid not in self._domain.machine.domains:
            return ShareResult.NOBODY
        moved = share_pages(self._domain, domid, request.pfns, readonly=bool(readonly))
        if moved is None:
            return ShareResult.NO_PROCESS
        changes.memory.moved(moved)
        return ShareResult.SHARED

    async def _hypercall(self, request: Request, channel: socket.socket, changes: Changes) -> int:
        """As CoroutineVcpu.hypercall, but others have their turn between its slices, and it stands still while
        its domain is paused.
        """
        enter, caller = self._domain.machine.hypercall, self._caller(request)
        result = enter(caller, request.number, request.args)
        while isinstance(result, Continuation):
            if changes.are_many:
                await _reply(channel, 0, changes, unfinished=True)
            await checkpoint()
            await self._until_moved()
            await self._until_unpaused()
            result = enter(caller, result.number, result.args)
        await self._until_unpaused()
        return result

    def _missed(self, port: int) -> None:
        """An event between two processes: the next one takes every port that another domain may have rung for as
        pending.
        """

    def _resumed(self, _request: Request) -> Image:
        """What goes on with the state that the process has saved. Raises ChannelBroken."""
        raise ChannelBroken("it has saved a state that nobody has asked for")

    def _caller(self, _request: Request) -> Vcpu:
        """The vCPU that has made this request. Raises ChannelBroken."""
        return self.vcpu

    async def _until_moved(self) -> None:
        """Until the pages that the hypercall needs lie where this process may map them; but not for ever."""
        domid, awaits = self._domain.domid, self._domain.awaits
        if not awaits:
            return
        with anyio.move_on_after(MOVING_SECONDS) as patience:
            for moves in [domain.moves for domain in awaits if domain.moves is not None]:
                while moves.pending(domid):
                    moved = anyio.Event()
                    moves.watchers.append(moved.set)
                    await moved.wait()
        if patience.cancelled_caught:
            for domain in awaits:
                if domain.moves is not None:
                    domain.moves.give_up(domid)
        awaits.clear()

    async def _until_unpaused(self) -> None:
        if self.vcpu.blocked:
            self.vcpu.unblock()
        await self._until_runnable()

    # ---- events and output

    async def _hear(self, listener: Listener, child: Child) -> None:
        """Send the events that the process rings for."""
        while True:
            listener.fall_asleep()
            fence()
            if self._send_rung(listener):
                await checkpoint()
                continue
            await wait_readable(listener.pipe)
            listener.awake()
            if not listener.drain():
                await self._let_it_end(child, "it has closed its bell")
                return
            self._send_rung(listener)

    def _send_rung(self, listener: Listener) -> bool:
        """Whether there was any."""
        rung = listener.collect()
        for port in rung:
            if not self._domain.stopped:
                self._send(port)
        return bool(rung)

    def _send(self, port: int) -> None:
        with suppress(XenError):  # a port that it has closed meanwhile, or never had
            self._domain.events.send(port)

    async def _pass_on(self, output: int) -> None:
        """What the process prints goes where its domain's emergency console goes, as limited."""
        while True:
            await wait_readable(output)
            if not self._print(output):
                return

    def _print_last(self, output: int) -> None:
        """What the process has printed before its end."""
        with suppress(BlockingIOError):
            for _ in range(LAST_READS):
                if not self._print(output):
                    return

    def _print(self, output: int) -> bool:
        """Some of it; False at its end. BlockingIOError when there is none just now."""
        data = os.read(output, OUTPUT_BYTES)
        domain = self._domain
        allowed = domain.console_allowance.take(len(data))
        domain.counters.console_bytes_dropped += len(data) - allowed
        if allowed:
            domain.counters.console_bytes += allowed
            domain.machine.host.console(domain, data[:allowed])
        return bool(data)


def _cpu_clock(pid: int) -> int:
    """The clock of a process's processor time (MAKE_PROCESS_CPUCLOCK of Linux, CPUCLOCK_SCHED)."""
    return ~pid << 3 | 2


async def _receive(channel: socket.socket) -> bytes:
    """The next request. ChannelBroken when the process has closed the channel."""
    while True:
        try:
            data = channel.recv(MAX_REQUEST_BYTES + 1)
        except BlockingIOError:
            await wait_readable(channel)
        except OSError as error:
            raise ChannelClosed(f"its channel is broken: {error}") from error
        else:
            if not data:
                raise ChannelClosed("it has closed its channel")
            return data


async def _reply(channel: socket.socket, result: int, changes: Changes, *, unfinished: bool = False) -> None:
    """All that was noted so far, each packet made and sent in one step. unfinished: more will follow."""
    changes.begin()
    while True:
        told = changes.take()
        more = changes.left or unfinished
        if not more:
            changes.answered()
        packet, fds = encode_reply(result, told, more=more)
        try:
            send_packet(channel, packet, fds)
        except OSError as error:
            changes.put_back()
            await _until_sendable(channel, error)
        else:
            changes.sent()
            if not changes.left:
                changes.end_part()
                return


async def _until_sendable(channel: socket.socket, error: OSError) -> None:
    if isinstance(error, BlockingIOError):
        await wait_writable(channel)
    elif error.errno == errno.ETOOMANYREFS:
        await anyio.sleep(CROWDED_SECONDS)
    else:
        raise ChannelClosed(f"its channel is broken: {error}") from error
