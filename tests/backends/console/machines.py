"""A running machine whose dom0 has a toolstack and a console daemon, as the launcher sets them up."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio.abc import TaskStatus

from backends.console.daemon import ConsoleDaemon
from backends.console.guest_console import GuestConsole
from dom0.toolstack.toolstack import DomainConfig, Toolstack
from hypervisor.abi.xen import VIRQ_DOM_EXC
from kernel.kernel import Kernel
from kernel.program import run_program
from tests.kernel.guests import GUEST_BYTES, RunningMachine, running_machine


@dataclass
class ConsoleMachine:
    """said: what the console daemon had to say to the operator. consoles_scope: ends that daemon."""

    base: RunningMachine
    consoles: ConsoleDaemon
    toolstack: Toolstack
    consoles_scope: anyio.CancelScope
    said: list[str]

    @property
    def dom0(self) -> Kernel:
        return self.base.dom0

    async def create(self, name: str = "guest") -> int:
        """A paused domain, described in XenStore."""
        return await self.toolstack.create(DomainConfig(name, GUEST_BYTES, "test"))

    def start(self, domid: int, program: Callable[[Kernel], Awaitable[int | None]]) -> None:
        """Let a created domain run."""
        domain = self.base.machine.domain(domid)
        self.base.executions[domid] = self.base.host.start(
            domain, lambda platform: run_program(platform, program)
        )
        self.toolstack.start(domid)

    async def launch(
        self, program: Callable[[Kernel], Awaitable[int | None]], name: str = "guest"
    ) -> GuestConsole:
        """A running domain whose console is connected."""
        domid = await self.create(name)
        console = await self.consoles.add(domid)
        self.start(domid, program)
        return console

    async def boot(self, name: str = "guest") -> tuple[GuestConsole, Kernel]:
        """A running domain whose program only waits; its kernel is for the test to use."""
        kernels: list[Kernel] = []
        booted = anyio.Event()

        async def idle(kernel: Kernel) -> None:
            kernels.append(kernel)
            booted.set()
            await anyio.sleep_forever()

        console = await self.launch(idle, name)
        await booted.wait()
        return console, kernels[0]

    async def ended(self, domid: int) -> None:
        """Return when a domain has shut down, and what it notified has been served."""
        await self.base.ended(domid)
        await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def console_machine(folder: Path) -> AsyncIterator[ConsoleMachine]:
    """dom0 is up, and the daemon has found that there are no consoles yet."""
    said: list[str] = []
    async with running_machine() as base:
        base.dom0.events.bind_virq(VIRQ_DOM_EXC).on_event = base.daemon.domains_changed
        consoles = ConsoleDaemon(base.dom0, folder, log=said.append)
        toolstack = Toolstack(base.dom0, lambda: 0.0)
        async with anyio.create_task_group() as tasks:
            scope = await tasks.start(_run, consoles)
            tasks.start_soon(toolstack.run)
            await anyio.wait_all_tasks_blocked()
            yield ConsoleMachine(base, consoles, toolstack, scope, said)
            tasks.cancel_scope.cancel()


async def _run(consoles: ConsoleDaemon, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
    with anyio.CancelScope() as scope:
        task_status.started(scope)
        await consoles.run()
