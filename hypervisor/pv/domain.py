"""A native domain as its own process knows it: what its hypercalls and traps work on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from hypervisor.pv.crash import DomainCrash
from hypervisor.pv.hypercalls import Hypercalls
from hypervisor.pv.layout import ARGUMENT_MFN, PAGE_SHIFT
from hypervisor.pv.ports import Ports
from hypervisor.pv.rota import Rota
from hypervisor.pv.vcpu import VCPU_INFO_SIZE, PvVcpu

if TYPE_CHECKING:
    from hypervisor.errors import XenError
    from hypervisor.pv.cpu import Cpu
    from hypervisor.pv.frames import LocalFrames
    from hypervisor.pv.grants import Mapped
    from hypervisor.pv.machine_memory import MachineMemory
    from hypervisor.pv.page_tables import PageTables
    from hypervisor.pv.tally import Tally

LEGACY_MAX_VCPUS: Final = 32
"""so many have their vcpu_info in shared_info at first (XEN_LEGACY_MAX_VCPUS)"""


class MachineWide(Protocol):
    """The machine-wide core."""

    def request(self, number: int, args: tuple[int, ...], root: int, vcpu_id: int) -> int:
        """The result of a hypercall that vCPU `vcpu_id` makes. root: MFN of the page table by which its addresses
        are meant; 0: they are machine addresses.
        """

    def ring(self, port: int) -> bool:
        """The event of a port that is bound to another domain; False if that takes a hypercall."""


class Monitor(Protocol):
    """The hypervisor's own part of the guest's address space (hypervisor/vcpu/native/monitor_pages.py)."""

    def set_gdt(self, vcpu_id: int, frames: list[int], entries: int) -> None:
        """The vCPU's descriptor table: MFNs of the guest's frames, and how many descriptors count."""

    def set_ldt(self, vcpu_id: int, frames: list[int], entries: int) -> None:
        """The same of its local one; 0 entries: none."""


class Clock(Protocol):
    """Time, handed in."""

    def now_ns(self) -> int:
        """System time: nanoseconds since the machine started."""

    def wall_clock_ns(self) -> int:
        """Unix time of `now_ns()`, in nanoseconds."""

    @property
    def tsc_hz(self) -> int:
        """How fast the guest's time stamp counter counts."""

    def read_tsc(self) -> int:
        """The guest's time stamp counter now."""


class PvDomain:
    """domid is the machine-wide core's. vcpus: all that it may have. stop_slice: the engine stops at the next border.
    mapped_grants: by handle. vm_assist: bits of VMASST_TYPE_*. border_ns: system time at
    which the present slice ends at the latest. rota: which vCPU executes.
    """

    def __init__(
        self,
        *,
        domid: int,
        cpu: Cpu,
        page_tables: PageTables,
        frames: LocalFrames,
        memory: MachineMemory,
        m2p: memoryview,
        monitor: Monitor,
        shared_info: memoryview,
        hypervisor: MachineWide,
        clock: Clock,
        max_vcpus: int,
        tally: Tally,
        stop_slice: Callable[[], None],
    ) -> None:
        self.domid = domid
        self.cpu = cpu
        self.page_tables = page_tables
        self.frames = frames
        self.memory = memory
        self.m2p = m2p
        self.monitor = monitor
        self.shared_info = shared_info
        self.hypervisor = hypervisor
        self.now_ns = clock.now_ns
        self.wall_clock_ns = clock.wall_clock_ns
        self.tally = tally
        self.reschedule = stop_slice
        self.argument = memory.frame(ARGUMENT_MFN)
        self.argument_address = ARGUMENT_MFN << PAGE_SHIFT
        self.mapped_grants: dict[int, Mapped] = {}
        self.xen_version: int | None = None
        self.vm_assist = 0
        self.border_ns = 0
        self.tsc_hz = clock.tsc_hz
        self.read_tsc = clock.read_tsc
        self.refusals: Callable[[PvVcpu, int, XenError], None] | None = None
        now_ns = clock.now_ns()
        self.vcpus = [
            PvVcpu(self, vcpu_id, self._first_info(vcpu_id), now_ns) for vcpu_id in range(max_vcpus)
        ]
        self.rota = Rota(self.vcpus)
        self.ports = Ports(self.vcpus, hypervisor.ring, self._prefer)
        self.ports.place_shared_info(shared_info)
        self.hypercalls = Hypercalls(self)

    def __repr__(self) -> str:
        return f"<native domain {self.domid}>"

    def _first_info(self, vcpu_id: int) -> memoryview:
        if vcpu_id < LEGACY_MAX_VCPUS:
            return self.shared_info[vcpu_id * VCPU_INFO_SIZE : (vcpu_id + 1) * VCPU_INFO_SIZE]
        return memoryview(bytearray(VCPU_INFO_SIZE))

    def raise_virq(self, vcpu: PvVcpu, virq: int) -> None:
        """An event for the port that the vCPU's VIRQ is bound to, if it is."""
        self.ports.raise_virq(vcpu.id, virq)

    def timer_set(self, deadline_ns: int) -> None:
        """A timer will be due at this system time: the present slice ends no later."""
        if deadline_ns < self.border_ns:
            self.reschedule()

    def _prefer(self, vcpu: PvVcpu) -> None:
        """A vCPU has been sent an IPI, or is blocked no more: it executes next."""
        self.rota.prefer(vcpu)
        self.reschedule()

    def crash(self, vcpu: PvVcpu, reason: str) -> NoReturn:
        """It cannot go on. Raises DomainCrash."""
        raise DomainCrash(vcpu.id, self.cpu.rip, reason)

    def refused(self, vcpu: PvVcpu, number: int, error: XenError) -> None:
        """A hypercall was refused; whoever watches is told why."""
        if self.refusals is not None:
            self.refusals(vcpu, number, error)
