"""What tests of the core stand on: a host in virtual time, and guests that make hypercalls by hand."""

from collections.abc import Callable
from typing import Final, TypeVar

from hypervisor.abi.layout import Struct
from hypervisor.continuation import Continuation
from hypervisor.domain import Domain, Traits
from hypervisor.machine import Machine
from hypervisor.vcpu.state import Vcpu

ARGUMENT: Final = 0x100
"""the guest address at which `Guest.operate` puts structs"""

S = TypeVar("S", bound=Struct)


class FakeHost:
    """Records what the core asks for. Time stands still until the test moves it."""

    def __init__(self, wall_clock_offset_ns: int = 1_700_000_000_123_456_789) -> None:
        self.time_ns = 0
        self.wall_clock_offset_ns = wall_clock_offset_ns
        self.deadline_ns: int | None = None
        self.kicked: list[Vcpu] = []
        self.stopped: list[Domain] = []
        self.console_output: list[tuple[Domain, bytes]] = []

    def now_ns(self) -> int:
        return self.time_ns

    def wall_clock_ns(self) -> int:
        return self.wall_clock_offset_ns + self.time_ns

    def kick(self, vcpu: Vcpu) -> None:
        self.kicked.append(vcpu)

    def stop(self, domain: Domain) -> None:
        self.stopped.append(domain)

    def deadline_changed(self, deadline_ns: int | None) -> None:
        self.deadline_ns = deadline_ns

    def console(self, domain: Domain, data: bytes) -> None:
        self.console_output.append((domain, data))

    def advance(self, nanoseconds: int, expire: Callable[[], object]) -> None:
        """Let time pass, and call `expire` at each deadline that comes up."""
        end = self.time_ns + nanoseconds
        while self.deadline_ns is not None and self.deadline_ns <= end:
            self.time_ns = max(self.time_ns, self.deadline_ns)
            expire()
        self.time_ns = end

    def take_kicks(self) -> list[Vcpu]:
        """The vCPUs kicked since the last call."""
        kicked, self.kicked = self.kicked, []
        return kicked


class Guest:
    """A domain with RAM at PFN 0, unpaused, that makes hypercalls as a kernel does, arguments in page 0."""

    def __init__(
        self, machine: Machine, *, pages: int = 8, vcpus: int = 1, max_event_port: int = 4095
    ) -> None:
        self.machine = machine
        traits = Traits(max_vcpus=vcpus, max_event_port=max_event_port)
        self.domain = machine.create_domain(traits, privileged=not machine.domains, max_pages=pages)
        self.domain.add_vcpus()
        gpfn = 0
        for run in self.domain.reservation.allocate(pages):
            self.domain.memory.add_ram(gpfn, run.mfn, run.count)
            gpfn += run.count
        self.domain.unpause()

    @property
    def domid(self) -> int:
        return self.domain.domid

    @property
    def vcpu(self) -> Vcpu:
        return self.domain.vcpus[0]

    def hypercall(self, number: int, *args: int, vcpu: int = 0) -> int:
        """One hypercall with all its continuations."""
        caller = self.domain.vcpus[vcpu]
        result = self.machine.hypercall(caller, number, args)
        while isinstance(result, Continuation):
            result = self.machine.hypercall(caller, result.number, result.args)
        return result

    def operate(self, number: int, operation: int, argument: S, *more: int, vcpu: int = 0) -> tuple[int, S]:
        """A hypercall of the form (operation, ..., struct): its result, and the struct afterwards."""
        memory = self.domain.memory
        memory.write_struct(ARGUMENT, argument)
        result = self.hypercall(number, operation, *more, ARGUMENT, vcpu=vcpu)
        return result, memory.read_struct(type(argument), ARGUMENT)

    def destroy(self, budget: int = 1000) -> None:
        """Tear the domain down, as domctl does."""
        while not self.domain.kill(budget):
            pass


def new_machine(memory_bytes: int = 64 << 20) -> tuple[Machine, FakeHost]:
    """A machine without domains, in virtual time. The first Guest on it is dom0."""
    host = FakeHost()
    return Machine(host, memory_bytes), host
