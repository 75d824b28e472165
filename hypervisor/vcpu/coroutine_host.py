"""The world around a machine: the real clock, one task for all timers, one task a domain.

    host = CoroutineHost(console)
    machine = Machine(host, memory_bytes)
    async with host.running(machine):
        execution = host.start(domain, program)
        ...
        await execution.finished.wait()

All of it lives in one thread of one event loop, asyncio's or trio's; domains that are processes of their own
are served from there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import anyio
from anyio.abc import TaskGroup

from hypervisor.vcpu.coroutine import CoroutineVcpu, Program
from hypervisor.vcpu.native.execution import NativeVcpu, native_image
from hypervisor.vcpu.native.pcpus import Pcpus
from hypervisor.vcpu.parking import Parker, new_parker
from hypervisor.vcpu.process.bells import Bells
from hypervisor.vcpu.process.execution import Image, ProcessVcpu
from hypervisor.vcpu.process.spawner import Spawner
from hypervisor.vcpu.task_exits import exits_contained

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.machine import Machine
    from hypervisor.vcpu.state import Vcpu

NATIVE_PRELOAD: Final = ("hypervisor.vcpu.native.process",)
"""what the processes of native domains find imported: nothing that only Python's kernels need"""
NANOSECONDS: Final = 1_000_000_000
CRASHES_KEPT: Final = 256
ENDING_SECONDS: Final = 5.0
"""how long programs may take to end when they are cancelled because the machine ends"""


_SHIELDED: Final = b"domain %d (%s) has not ended %g s after the machine: its shields are taken away\n"


class HostMisuse(RuntimeError):
    """The host was asked to start something while it does not run, or twice."""


class Crash(NamedTuple):
    """A program that raised."""

    domid: int
    name: str
    traceback: str


class Execution(Protocol):
    """Whatever executes a vCPU."""

    vcpu: Vcpu
    failure: str | None
    finished: anyio.Event

    def wake(self) -> None: ...

    def stop(self) -> None: ...

    def end(self) -> None: ...

    async def run(self) -> None: ...


class CoroutineHost:
    """Implements hypervisor.host.Host. `console` gets what domains write to the emergency console; `preload`
    are modules that processes of domains shall find imported.
    """

    def __init__(self, console: Callable[[Domain, bytes], None], preload: Sequence[str] = ()) -> None:
        self.crashes: deque[Crash] = deque(maxlen=CRASHES_KEPT)
        self._console = console
        self._boot_wall_clock_ns = time.time_ns()
        self.origin_ns = time.monotonic_ns()
        self._preload = preload
        self._bells = Bells()
        self._spawner: Spawner | None = None
        self._native_spawner: Spawner | None = None
        self._pcpus: Pcpus | None = None
        self._executions: dict[Vcpu, Execution] = {}
        self._tasks: TaskGroup | None = None
        self._deadline_ns: int | None = None
        self._sleeping_until_ns: int | None = None
        self._timer_parker: Parker | None = None

    # ---- what the core asks for

    def now_ns(self) -> int:
        """System time: nanoseconds since this host was made."""
        return time.monotonic_ns() - self.origin_ns

    def wall_clock_ns(self) -> int:
        """Unix time. It advances with system time, so that setting the machine's clock disturbs no guest."""
        return self._boot_wall_clock_ns + self.now_ns()

    def kick(self, vcpu: Vcpu) -> None:
        """Let the vCPU's coroutine look whether it may go on."""
        execution = self._executions.get(vcpu)
        if execution is not None:
            execution.wake()

    def stop(self, domain: Domain) -> None:
        """Cancel the domain's coroutine if it is not merely paused."""
        for vcpu in domain.vcpus:
            execution = self._executions.get(vcpu)
            if execution is not None:
                execution.stop()

    def deadline_changed(self, deadline_ns: int | None) -> None:
        """Remember it; the timer task is woken only if it would sleep too long."""
        self._deadline_ns = deadline_ns
        until = self._sleeping_until_ns
        if (
            self._timer_parker is not None
            and deadline_ns is not None
            and (until is None or deadline_ns < until)
        ):
            self._timer_parker.unpark()

    def console(self, domain: Domain, data: bytes) -> None:
        """Pass on what a domain wrote to the emergency console."""
        self._console(domain, data)

    # ---- what whoever runs the machine asks for

    @asynccontextmanager
    async def running(self, machine: Machine) -> AsyncIterator[CoroutineHost]:
        """Execute programs and timers inside this context; leaving it cancels what still runs."""
        if self._tasks is not None:
            raise HostMisuse("this host runs a machine already")
        with exits_contained():
            async with (
                Spawner.running(self._preload) as spawner,
                Spawner.running(NATIVE_PRELOAD) as native_spawner,
                anyio.create_task_group() as tasks,
            ):
                self._spawner = spawner
                self._native_spawner = native_spawner
                self._tasks = tasks
                self._pcpus = Pcpus(machine)
                self._timer_parker = new_parker()
                tasks.start_soon(self._pcpus.run, name="scheduler")
                tasks.start_soon(self._run_timers, machine, self._timer_parker, name="timers")
                try:
                    yield self
                finally:
                    self._tasks = self._timer_parker = self._spawner = self._native_spawner = None
                    tasks.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        await self._see_all_end()

    def start(self, domain: Domain, program: Program) -> CoroutineVcpu:
        """Let vCPU 0 of `domain` execute `program` as soon as the domain is unpaused."""
        execution = CoroutineVcpu(domain.vcpus[0], program, self._record_crash)
        self._start(execution)
        return execution

    def start_process(self, domain: Domain, image: Image) -> ProcessVcpu:
        """Let a process of its own be vCPU 0 of `domain` as soon as the domain is unpaused."""
        if self._spawner is None:
            raise HostMisuse("this host does not run")
        execution = ProcessVcpu(domain.vcpus[0], image, self._spawner, self._bells, self._record_crash)
        self._start(execution)
        return execution

    def expect_native(self) -> None:
        """A native domain will be started soon: what its process is forked from may import everything meanwhile."""
        if self._native_spawner is not None:
            self._native_spawner.warm()

    def start_native(self, domain: Domain, p2m: bytes = b"", *, outspoken: bool = False) -> NativeVcpu:
        """Let a process of its own execute a native domain, which has the context of its first vCPU, as soon as it
        is unpaused. p2m: u64 MFNs by PFN, packed; empty: frames are where RAM begins, in order. outspoken: let it
        say what this system cannot keep it from.
        """
        if self._native_spawner is None or self._pcpus is None:
            raise HostMisuse("this host does not run")
        image = native_image(
            domain,
            origin_ns=self.origin_ns,
            wall_clock_ns=self._boot_wall_clock_ns,
            p2m=p2m,
            outspoken=outspoken,
        )
        execution = NativeVcpu(
            domain.vcpus[0],
            image,
            self._native_spawner,
            self._bells,
            self._record_crash,
            pcpus=self._pcpus,
        )
        self._start(execution)
        return execution

    def _start(self, execution: Execution) -> None:
        if self._tasks is None:
            raise HostMisuse("this host does not run")
        vcpu = execution.vcpu
        if vcpu in self._executions:
            raise HostMisuse(f"{vcpu!r} executes a program already")
        self._executions[vcpu] = execution
        self._tasks.start_soon(self._execute, execution, name=f"domain {vcpu.domain.domid}")

    async def _execute(self, execution: Execution) -> None:
        try:
            await execution.run()
        finally:
            del self._executions[execution.vcpu]

    async def _see_all_end(self) -> None:
        """They are cancelled. A program may take its time, for a while."""
        with anyio.move_on_after(ENDING_SECONDS):
            await self._all_ended()
            return
        for execution in self._executions.values():
            domain = execution.vcpu.domain
            self._console(domain, _SHIELDED % (domain.domid, domain.traits.name.encode(), ENDING_SECONDS))
        while self._executions:
            for execution in list(self._executions.values()):
                execution.end()
            with anyio.move_on_after(ENDING_SECONDS):
                await self._all_ended()

    async def _all_ended(self) -> None:
        for execution in list(self._executions.values()):
            await execution.finished.wait()

    def _record_crash(self, vcpu: Vcpu, traceback: str) -> None:
        domain = vcpu.domain
        self.crashes.append(Crash(domain.domid, domain.traits.name, traceback))
        self._console(domain, traceback.encode())

    async def _run_timers(self, machine: Machine, parker: Parker) -> None:
        while True:
            deadline_ns = self._deadline_ns
            self._sleeping_until_ns = deadline_ns
            delay_ns = None if deadline_ns is None else deadline_ns - self.now_ns()
            if delay_ns is None:
                await parker.park()
            elif delay_ns > 0:
                with anyio.move_on_after(delay_ns / NANOSECONDS):
                    await parker.park()
            else:
                machine.expire_timers()
