"""A machine with real processes, in the loop of a test."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from hypervisor.domain import Domain, Traits
from hypervisor.machine import Machine
from hypervisor.vcpu.coroutine_host import CoroutineHost
from hypervisor.vcpu.process.execution import Image, ProcessVcpu
from tests.hypervisor.vcpu.process.entries import children_of
from tests.hypervisor.vcpu.process.raw_guests import COUNTER

GUESTS = "tests.hypervisor.vcpu.process.raw_guests"
PATIENCE_S = 30.0


class Hosted:
    """words: what each domain has said on the hypervisor's console."""

    def __init__(self) -> None:
        self.words: dict[int, bytes] = {}
        self.host = CoroutineHost(self._hear, ["hypervisor.vcpu.process.platform", GUESTS])
        self.machine = Machine(self.host, 64 << 20)
        self.dom0 = self.build()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator["Hosted"]:
        hosted = cls()
        with anyio.fail_after(4 * PATIENCE_S):
            async with hosted.host.running(hosted.machine):
                yield hosted

    def build(self, pages: int = 32) -> Domain:
        """A domain that is not unpaused yet."""
        traits = Traits(name="guest")
        domain = self.machine.create_domain(traits, privileged=not self.machine.domains, max_pages=pages)
        domain.add_vcpus()
        domain.populate(0, pages)
        return domain

    def start(self, entry: str, payload: bytes = b"", domain: Domain | None = None) -> ProcessVcpu:
        """A process of raw_guests is a domain's vCPU; the domain is paused if it was given."""
        built = domain or self.build()
        execution = self.host.start_process(built, Image(f"{GUESTS}:{entry}", payload))
        if domain is None:
            built.unpause()
        return execution

    async def finish(self, execution: ProcessVcpu) -> str:
        """Wait for the end of a process; what its domain has said."""
        with anyio.fail_after(PATIENCE_S):
            await execution.finished.wait()
        return self.said(execution)

    def said(self, execution: ProcessVcpu) -> str:
        return self.words.get(execution.vcpu.domain.domid, b"").decode()

    def processes(self) -> list[int]:
        """Those that live, or are zombies."""
        spawner = self.host._spawner
        return [] if spawner is None or spawner.server_pid is None else children_of(spawner.server_pid)

    def _hear(self, domain: Domain, data: bytes) -> None:
        self.words[domain.domid] = self.words.get(domain.domid, b"") + data


def destroy(domain: Domain) -> None:
    """As domctl does."""
    while not domain.kill(1000):
        pass


def count(domain: Domain) -> int:
    """What a guest has counted."""
    return int.from_bytes(domain.memory.page(COUNTER)[:8], "little")


def state(execution: ProcessVcpu) -> str:
    """Of the process, as /proc says: R, S, T (stopped)."""
    assert execution.child is not None
    with open(f"/proc/{execution.child.pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0]


async def until(condition: Callable[[], bool]) -> None:
    """Give everybody his turn until it holds."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what processes do sets no event here
            await anyio.sleep(0.001)


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))
