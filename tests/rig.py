"""A whole machine in one event loop, for tests: dom0 with its services, and guests whose kernels the test
drives itself.
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
from dom0.launch.machine import build_machine
from dom0.services import Services, start_services
from dom0.toolstack.toolstack import DiskConfig, DomainConfig
from hypervisor.domain import Domain
from hypervisor.machine import Machine
from hypervisor.vcpu.coroutine_host import CoroutineHost
from kernel.kernel import Kernel
from kernel.program import run_program

MIB = 1 << 20


def file_disk(path: Path, vdev: str = "xvda", *, mode: str = "w", **config: Any) -> DiskConfig:
    """A disk on a raw image."""
    return DiskConfig(vdev, "file", FileStoreConfig(path=path, **config), mode)


def memory_disk(size: int, vdev: str = "xvda", *, mode: str = "w") -> DiskConfig:
    """A disk in memory."""
    return DiskConfig(vdev, "memory", MemoryStoreConfig(size=ByteSize(size)), mode)


@dataclass
class Guest:
    """A running guest. kernel: for the test to use in the place of its program. leaks: named when it has
    shut down.
    """

    domain: Domain
    kernel: Kernel
    finish: anyio.Event = field(default_factory=anyio.Event)

    killed: bool = False

    @property
    def domid(self) -> int:
        """Its number."""
        return self.domain.domid

    def kill(self) -> None:
        """Do not let it shut down: it is destroyed as it is when the context ends."""
        self.killed = True


@dataclass
class Rig:
    """The machine and what runs in its dom0. log: what daemons and domains said."""

    machine: Machine
    host: CoroutineHost
    services: Services
    log: list[str]

    @asynccontextmanager
    async def guest(
        self, disks: Iterable[DiskConfig] = (), *, name: str = "guest", memory_bytes: int = 16 * MIB
    ) -> AsyncIterator[Guest]:
        """A guest that runs inside the context; at its end it shuts down in order and is destroyed."""
        toolstack = self.services.toolstack
        domid = await toolstack.create(DomainConfig(name, memory_bytes, "test", disks=tuple(disks)))
        domain = self.machine.domain(domid)
        send, receive = anyio.create_memory_object_stream[Guest](1)

        async def program(kernel: Kernel) -> int:
            guest = Guest(domain, kernel)
            await send.send(guest)
            await guest.finish.wait()
            return 0

        execution = self.host.start(domain, lambda platform: run_program(platform, program))
        toolstack.start(domid)
        with send, receive:
            guest = await receive.receive()
            try:
                yield guest
                if not guest.killed:
                    guest.finish.set()
                    with anyio.fail_after(20):
                        await execution.finished.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    await toolstack.destroy(domid)


@asynccontextmanager
async def running_rig(folder: Path, *, memory_bytes: int = 512 * MIB) -> AsyncIterator[Rig]:
    """A machine whose dom0 is up. When it ends, the core must not have faulted."""
    log: list[str] = []
    host = CoroutineHost(
        lambda domain, data: log.append(f"d{domain.domid}: {data.decode('utf-8', 'replace')}")
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
            rig = Rig(machine, host, await receive.receive(), log)
            try:
                yield rig
            finally:
                finish.set()
                with anyio.move_on_after(20, shield=True):
                    await execution.finished.wait()
    assert not machine.faults, machine.faults
