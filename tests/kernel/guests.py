"""Kernels to test: on a bare core without an event loop, and booted on a running machine with its store."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskStatus

from dom0.toolstack.builder import STORE_GFN, build_domain
from dom0.xenstore.daemon import XenStoreDaemon
from dom0.xenstore.domain import DomainInfo
from dom0.xenstore.kernel_rings import KernelRings
from hypervisor.continuation import Continuation
from hypervisor.domain import Domain, Traits
from hypervisor.machine import Machine
from hypervisor.vcpu.coroutine import CoroutineVcpu, GuestPages
from hypervisor.vcpu.coroutine_host import CoroutineHost
from kernel.events import EventPort, Events
from kernel.grants import Grants
from kernel.hypercalls import Hypercalls
from kernel.kernel import Kernel
from kernel.pages import PageAllocator
from kernel.program import run_program

MEMORY_BYTES: Final = 64 << 20
GUEST_BYTES: Final = 1 << 20


class StillHost:
    """A host whose time stands still and which executes nothing."""

    def __init__(self) -> None:
        self.time_ns = 0
        self.console_output: list[bytes] = []

    def now_ns(self) -> int:
        return self.time_ns

    def wall_clock_ns(self) -> int:
        return self.time_ns

    def kick(self, vcpu: object) -> None:
        pass

    def stop(self, domain: object) -> None:
        pass

    def deadline_changed(self, deadline_ns: int | None) -> None:
        pass

    def console(self, domain: object, data: bytes) -> None:
        self.console_output.append(data)


class BarePlatform:
    """A domain on a core without an event loop: hypercalls work, waiting does not."""

    def __init__(self, machine: Machine, pages: int = 64) -> None:
        self.machine = machine
        self.domain = new_domain(machine, pages)
        self.domain.unpause()
        self.memory = GuestPages(self.domain.memory)
        self.nr_pages = pages
        self.calls: list[int] = []

    def now_ns(self) -> int:
        return self.machine.host.now_ns()

    async def wait_upcall(self) -> None:
        raise AssertionError("a bare platform cannot wait")

    def hypercall(self, number: int, *args: int) -> int:
        self.calls.append(number)
        vcpu = self.domain.vcpus[0]
        result = self.machine.hypercall(vcpu, number, args)
        while isinstance(result, Continuation):
            result = self.machine.hypercall(vcpu, result.number, result.args)
        return result


def new_domain(machine: Machine, pages: int, name: str = "") -> Domain:
    """A paused domain with one vCPU and RAM from frame 0 on. The first one is dom0."""
    domain = machine.create_domain(Traits(name=name), privileged=not machine.domains, max_pages=pages)
    domain.add_vcpus()
    gpfn = 0
    for run in domain.reservation.allocate(pages):
        domain.memory.add_ram(gpfn, run.mfn, run.count)
        gpfn += run.count
    return domain


class BareKernel:
    """The parts of a kernel that need no event loop, on a domain of its own."""

    def __init__(self, machine: Machine, pages: int = 64) -> None:
        self.platform = BarePlatform(machine, pages)
        self.domid = self.platform.domain.domid
        self.memory = self.platform.memory
        self.pages = PageAllocator(self.memory, pages)
        self.hypercalls = Hypercalls(self.platform, self.pages)
        self.grants = Grants(self.memory, self.pages, self.hypercalls)
        self.failures: list[tuple[EventPort, Exception]] = []
        self.events = Events(
            self.hypercalls,
            self.platform.domain.shared_info,
            lambda port, error: self.failures.append((port, error)),
        )


def bare_machine() -> Machine:
    """A core without domains."""
    return Machine(StillHost(), MEMORY_BYTES)


@dataclass
class RunningMachine:
    """A machine whose dom0 runs a store; tests use the kernels of its domains from outside."""

    host: CoroutineHost
    machine: Machine
    dom0: Kernel
    daemon: XenStoreDaemon
    console: dict[int, str] = field(default_factory=dict)
    executions: dict[int, CoroutineVcpu] = field(default_factory=dict)

    async def create_guest(self, program: Callable[..., Awaitable[int | None]], **args: object) -> int:
        """Build, introduce and start a domain that runs `program(kernel, **args)`; returns its id."""
        number = len(self.executions) + 1
        built = build_domain(self.dom0, f"guest{number}", number.to_bytes(16), GUEST_BYTES)
        domid = built.domid
        home = f"/local/domain/{domid}"
        await self.dom0.store.write_many(
            {home: "", f"{home}/domid": str(domid), f"{home}/control": "", f"{home}/device": ""}
        )
        for folder in (home, f"{home}/control", f"{home}/device"):
            await self.dom0.store.set_perms(folder, ["n0", f"r{domid}"])
        for area in (
            "control/shutdown",
            "control/feature-poweroff",
            "control/feature-reboot",
            "data",
            "error",
        ):
            await self.dom0.store.write(f"{home}/{area}", "")
            await self.dom0.store.set_perms(f"{home}/{area}", [f"n{domid}"])
        await self.dom0.store.introduce(domid, STORE_GFN, built.store_port)
        domain = self.machine.domain(domid)
        self.executions[domid] = self.host.start(domain, lambda vcpu: run_program(vcpu, program, args))
        self.dom0.hypercalls.unpausedomain(domid)
        return domid

    async def boot_guest(self) -> tuple[int, Kernel]:
        """A domain whose program only waits; its kernel is for the test to use."""
        kernels: list[Kernel] = []
        booted = anyio.Event()

        async def idle(kernel: Kernel) -> None:
            kernels.append(kernel)
            booted.set()
            await anyio.sleep_forever()

        domid = await self.create_guest(idle)
        await booted.wait()
        return domid, kernels[0]

    async def ended(self, domid: int) -> int | None:
        """The reason with which a domain shut down, once it has."""
        await self.executions[domid].finished.wait()
        return self.machine.domain(domid).shutdown_reason


@asynccontextmanager
async def running_machine() -> AsyncIterator[RunningMachine]:
    """A machine with dom0 and its store daemon up. Every fault of the core fails the test."""
    console: dict[int, str] = {}

    def write(domain: Domain, data: bytes) -> None:
        console[domain.domid] = console.get(domain.domid, "") + data.decode()

    host = CoroutineHost(write)
    machine = Machine(host, MEMORY_BYTES)
    async with host.running(machine), anyio.create_task_group() as tasks:
        domain = new_domain(machine, GUEST_BYTES >> 12, "Domain-0")
        kernel, daemon = await tasks.start(_boot_dom0, host, domain)
        yield RunningMachine(host, machine, kernel, daemon, console)
        tasks.cancel_scope.cancel()
    assert not machine.faults


async def _boot_dom0(
    host: CoroutineHost,
    domain: Domain,
    *,
    task_status: TaskStatus[tuple[Kernel, XenStoreDaemon]],
) -> None:
    def info(domid: int) -> DomainInfo | None:
        found = domain.machine.domains.get(domid)
        if found is None:
            return None
        return DomainInfo(shutdown=found.shutdown_reason is not None, dying=found.is_dying)

    async def serve(kernel: Kernel) -> None:
        rings = KernelRings(kernel.memory, kernel.grants, kernel.events)
        daemon = XenStoreDaemon(clock=kernel.clock, info=info, connect_domain=rings, log=kernel.log)
        daemon.introduce(0, kernel.store_ring.pfn, kernel.store_ring.port)
        task_status.started((kernel, daemon))
        with kernel.shutdown_requested.deferred():
            await daemon.run()

    execution = host.start(domain, lambda vcpu: run_program(vcpu, serve))
    domain.unpause()
    await execution.finished.wait()
