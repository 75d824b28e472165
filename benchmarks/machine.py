"""A machine with dom0's services, for benchmarks: as a scenario has it, without watching and reporting."""

import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio

from dom0.launch.machine import build_machine
from dom0.services import Services, start_services
from dom0.toolstack.toolstack import DomainConfig
from hypervisor.machine import Machine
from hypervisor.vcpu.coroutine_host import CoroutineHost
from kernel.kernel import Kernel
from kernel.program import run_program

Program = Callable[[Kernel], Awaitable[int | None]]


@dataclass(slots=True)
class Bench:
    """What a benchmark's body is given."""

    host: CoroutineHost
    machine: Machine
    services: Services

    async def start(self, config: DomainConfig, program: Program) -> int:
        """Creates a guest that runs `program`, and lets it run. Returns its id."""
        domid = await self.services.toolstack.create(config)
        self.host.start(self.machine.domain(domid), lambda platform: run_program(platform, program))
        self.services.toolstack.start(domid)
        return domid


def on_machine(
    body: Callable[[Bench], Awaitable[None]], *, loop: str, memory_mib: int, dom0_mib: int
) -> None:
    """Runs `body` as dom0's program on a fresh machine. Raises RuntimeError if dom0 crashed."""

    async def run() -> None:
        said: list[str] = []
        host = CoroutineHost(
            lambda domain, data: said.append(f"d{domain.domid}: {data.decode(errors='replace')}")
        )
        machine, dom0 = build_machine(host, memory_mib << 20, dom0_mib << 20)

        async def program(kernel: Kernel) -> int:
            with tempfile.TemporaryDirectory() as folder:
                services = await start_services(
                    kernel, console_folder=Path(folder), now=time.time, log=said.append
                )
                await body(Bench(host, machine, services))
            return 0

        async with host.running(machine):
            execution = host.start(dom0, lambda platform: run_program(platform, program))
            dom0.unpause()
            await execution.finished.wait()
        if dom0.shutdown_reason:
            raise RuntimeError("dom0 crashed:\n" + "".join(said))

    anyio.run(run, backend=loop)
