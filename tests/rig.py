"""A whole machine for tests: dom0 with its services in the test's event loop, and guests that the test drives step by
step, there or in processes of their own.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from pydantic import ByteSize

from backends.block.file import FileStoreConfig
from backends.block.memory import MemoryStoreConfig
from dom0.isolation import PRELOADED, isolated_image
from dom0.launch.machine import build_machine
from dom0.services import Services, start_services
from dom0.toolstack.toolstack import DiskConfig, DomainConfig
from hypervisor.domain import Domain
from hypervisor.machine import Machine
from hypervisor.vcpu.coroutine_host import CoroutineHost, Execution
from kernel.kernel import LEAK_PREFIX, Kernel
from kernel.parking import in_trio
from kernel.program import run_program
from tests.steps import DirectSteps, SentSteps, Step, Steps, T, serve_steps

MIB = 1 << 20


def file_disk(path: Path, vdev: str = "xvda", *, mode: str = "w", **config: Any) -> DiskConfig:
    """A disk on a raw image."""
    return DiskConfig(vdev, "file", FileStoreConfig(path=path, **config), mode)


def memory_disk(size: int, vdev: str = "xvda", *, mode: str = "w") -> DiskConfig:
    """A disk in memory."""
    return DiskConfig(vdev, "memory", MemoryStoreConfig(size=ByteSize(size)), mode)


@dataclass
class Guest:
    """A running guest. leaks: grants that it had not ended, named when it has shut down."""

    domain: Domain
    execution: Execution
    steps: Steps
    finish: anyio.Event = field(default_factory=anyio.Event)
    leaks: list[str] = field(default_factory=list)
    killed: bool = False

    @property
    def domid(self) -> int:
        """Its number."""
        return self.domain.domid

    @property
    def kernel(self) -> Kernel:
        """Its kernel, if it lives in the test's own process: for tests of nothing else."""
        assert isinstance(self.steps, DirectSteps)
        return self.steps.kernel

    async def run(self, step: Step[T], *args: Any) -> T:
        """Let it execute a step (steps.py)."""
        return await self.steps.run(step, *args)

    def kill(self) -> None:
        """Do not let it shut down: it is destroyed as it is when the context ends."""
        self.killed = True


@dataclass
class Rig:
    """The machine and what runs in its dom0. log: what daemons and domains said. isolation: of its guests."""

    machine: Machine
    host: CoroutineHost
    services: Services
    log: list[str]
    isolation: str

    @asynccontextmanager
    async def guest(
        self, disks: Iterable[DiskConfig] = (), *, name: str = "guest", memory_bytes: int = 16 * MIB
    ) -> AsyncIterator[Guest]:
        """A guest that runs inside the context; at its end it shuts down in order and is destroyed."""
        toolstack = self.services.toolstack
        domid = await toolstack.create(DomainConfig(name, memory_bytes, "test", disks=tuple(disks)))
        domain = self.machine.domain(domid)
        said = len(self.log)
        start = self._start_coroutine if self.isolation == "coroutine" else self._start_process
        try:
            guest = await start(domain)
            yield guest
            if not guest.killed:
                guest.finish.set()
                if isinstance(guest.steps, SentSteps):
                    await guest.steps.finish()
                with anyio.fail_after(20):
                    await guest.execution.finished.wait()
                guest.leaks = self._leaks(domid, said)
        finally:
            with anyio.CancelScope(shield=True):
                await toolstack.destroy(domid)

    async def _start_coroutine(self, domain: Domain) -> Guest:
        send, receive = anyio.create_memory_object_stream[Guest](1)

        async def program(kernel: Kernel) -> int:
            guest = Guest(domain, execution, DirectSteps(kernel))
            await send.send(guest)
            await guest.finish.wait()
            return 0

        execution = self.host.start(domain, lambda platform: run_program(platform, program))
        self.services.toolstack.start(domain.domid)
        with send, receive:
            return await receive.receive()

    async def _start_process(self, domain: Domain) -> Guest:
        store = self.services.kernel.store
        calls = f"/local/domain/{domain.domid}/data/calls"
        await store.mkdir(calls)
        await store.set_perms(calls, [f"n{domain.domid}"])
        loop = "trio" if in_trio() else "asyncio"
        image = isolated_image(serve_steps, loop=loop, origin_ns=self.host.origin_ns)
        execution = self.host.start_process(domain, image)
        self.services.toolstack.start(domain.domid)
        steps = SentSteps(store, domain.domid, execution.finished)
        self.services.kernel.tasks.start_soon(steps.watch_end)
        return Guest(domain, execution, steps)

    def _leaks(self, domid: int, said: int) -> list[str]:
        lines = "".join(
            line.removeprefix(f"d{domid}: ") for line in self.log[said:] if line.startswith(f"d{domid}: ")
        )
        return [line for line in lines.splitlines() if line.startswith(LEAK_PREFIX)]


@asynccontextmanager
async def running_rig(
    folder: Path, *, memory_bytes: int = 512 * MIB, isolation: str = "coroutine"
) -> AsyncIterator[Rig]:
    """A machine whose dom0 is up. When it ends, the core must not have faulted."""
    log: list[str] = []
    host = CoroutineHost(
        lambda domain, data: log.append(f"d{domain.domid}: {data.decode('utf-8', 'replace')}"), PRELOADED
    )
    machine, dom0 = build_machine(host, memory_bytes, 64 * MIB)
    send, receive = anyio.create_memory_object_stream[Services](1)
    finish = anyio.Event()

    async def serve(kernel: Kernel) -> int:
        services = await start_services(kernel, console_folder=folder, now=lambda: 0.0, log=log.append)
        await send.send(services)
        await finish.wait()
        return 0

    async with host.running(machine):
        execution = host.start(dom0, lambda platform: run_program(platform, serve))
        dom0.unpause()
        with send, receive:
            rig = Rig(machine, host, await receive.receive(), log, isolation)
            try:
                yield rig
            finally:
                finish.set()
                with anyio.move_on_after(20, shield=True):
                    await execution.finished.wait()
    assert not machine.faults, machine.faults
