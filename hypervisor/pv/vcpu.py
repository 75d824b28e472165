"""One vCPU of a native domain: all of its state that is neither in guest memory nor in the register file of the
engine.

What is loaded in the processor while the vCPU executes (general registers, segments, DR0 to DR7, CR0.TS, the FS base,
the GS base of the mode that it is in) is the engine's to save and load; hypervisor/pv/vcpu_state.py dumps both.
Hypercalls and traps change this record in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.vcpu import RUNSTATE_offline, RUNSTATE_runnable

if TYPE_CHECKING:
    from hypervisor.abi.arch_x86_64 import vcpu_guest_context
    from hypervisor.pv.domain import PvDomain

VECTORS: Final = 256
GDT_FRAMES: Final = 14
VCPU_INFO_SIZE: Final = 64
UPCALL_PENDING: Final = 0
UPCALL_MASK: Final = 1
CR2_WORD: Final = 2
"""arch.cr2: index of the u64 in vcpu_info"""


class Callback:
    """Where an event, a failed return or a system call goes. address 0: not registered, so that it is a page fault
    at address 0 for the guest, as with Xen, or its end (event and failsafe).
    """

    __slots__ = ("address", "masks_events")

    def __init__(self) -> None:
        self.address = 0
        self.masks_events = False


class PvVcpu:
    """info, info_words   vcpu_info, 64 bytes of guest memory, as bytes and as u64s
    info_mfn              the frame of a registered vcpu_info; 0 while it is in shared_info
    initialised, online   it has something to execute; the guest has brought it up
    blocked, poll_ports   SCHEDOP_block or SCHEDOP_poll; the ports that it polls, else ()
    in_kernel             guest kernel mode; the processor is always at CPL 3
    kernel_root, user_root  MFNs of its L4 tables; 0: none
    trap_addresses, trap_flags, trap_selectors   the trap table by vector; address 0: not handled; flags as in trap_info
    kernel_ss, kernel_sp  the stack for frames that come from user mode
    gs_base_kernel, gs_base_user   of the two, the one of the mode that it is not in; the other is in the processor
    gdt_frames, gdt_entries        the guest's part of its GDT: MFNs, and how many descriptors
    ldt_base, ldt_entries          its LDT by virtual address; 0 entries: none
    ldt_frames            MFNs of its pages; 0: that one is no descriptor table, and not used
    iopl                  the guest's I/O privilege level, in the place that it has in RFLAGS
    iobmp, iobmp_ports    its I/O permission bitmap: virtual address, and ports that it holds
    cr2, cr4              as the guest reads them
    dr7_io                enable bits of breakpoints on I/O, which DR7 of the processor does not get
    nmi_pending, nmi_masked        an NMI waits; one is being handled (until iret)
    runstate…             RUNSTATE_*, since when, ns in each
    runstate_area, time_area       virtual addresses of the copies that the guest has asked for; 0: none
    singleshot_ns, periodic_due_ns, poll_deadline_ns   deadlines in system time; None: not set
    period_ns             of the periodic timer; 0: stopped
    published_ns          when its time record was last written
    context               registers to be loaded when it is first executed; None afterwards
    """

    __slots__ = (
        "blocked",
        "context",
        "cr2",
        "cr4",
        "domain",
        "dr7_io",
        "event",
        "failsafe",
        "gdt_entries",
        "gdt_frames",
        "gs_base_kernel",
        "gs_base_user",
        "id",
        "in_kernel",
        "info",
        "info_mfn",
        "info_offset",
        "info_words",
        "initialised",
        "iobmp",
        "iobmp_ports",
        "iopl",
        "kernel_root",
        "kernel_sp",
        "kernel_ss",
        "ldt_base",
        "ldt_entries",
        "ldt_frames",
        "nmi_masked",
        "nmi_pending",
        "online",
        "period_ns",
        "periodic_due_ns",
        "poll_deadline_ns",
        "poll_ports",
        "published_ns",
        "runstate",
        "runstate_area",
        "runstate_entry_ns",
        "runstate_ns",
        "singleshot_ns",
        "syscall",
        "syscall32",
        "sysenter",
        "time_area",
        "trap_addresses",
        "trap_flags",
        "trap_selectors",
        "user_root",
    )

    def __init__(self, domain: PvDomain, vcpu_id: int, info: memoryview, now_ns: int = 0) -> None:
        """info: where vcpu_info lies, in shared_info or for vCPUs that have no place there in memory of our own."""
        self.domain = domain
        self.id = vcpu_id
        self.place_info(info, 0, 0)
        self.initialised = self.online = vcpu_id == 0
        self.blocked = False
        self.poll_ports: tuple[int, ...] = ()
        self.in_kernel = True
        self.kernel_root = self.user_root = 0
        self.trap_addresses = [0] * VECTORS
        self.trap_flags = [0] * VECTORS
        self.trap_selectors = [0] * VECTORS
        self.kernel_ss = self.kernel_sp = 0
        self.event = Callback()
        self.failsafe = Callback()
        self.syscall = Callback()
        self.syscall32 = Callback()
        self.sysenter = Callback()
        self.gs_base_kernel = self.gs_base_user = 0
        self.gdt_frames = [0] * GDT_FRAMES
        self.gdt_entries = 0
        self.ldt_base = self.ldt_entries = 0
        self.ldt_frames: list[int] = []
        self.iopl = 0
        self.iobmp = self.iobmp_ports = 0
        self.cr2 = 0
        self.cr4 = 0
        self.dr7_io = 0
        self.nmi_pending = self.nmi_masked = False
        self.runstate = RUNSTATE_runnable if self.online else RUNSTATE_offline
        self.runstate_entry_ns = now_ns
        self.runstate_ns = [0, 0, 0, 0]
        self.runstate_area = self.time_area = 0
        self.singleshot_ns: int | None = None
        self.periodic_due_ns: int | None = None
        self.poll_deadline_ns: int | None = None
        self.period_ns = 0
        self.published_ns = 0
        self.context: vcpu_guest_context | None = None

    def __repr__(self) -> str:
        return f"<vCPU {self.id} of {self.domain!r}>"

    def place_info(self, info: memoryview, mfn: int, offset: int) -> None:
        """vcpu_info lies in `info` from now on: `offset` bytes into frame `mfn`, or with mfn 0 in shared_info. The
        caller has copied its content, and holds the frame.
        """
        self.info = info
        self.info_words = info.cast("Q")
        self.info_mfn = mfn
        self.info_offset = offset

    @property
    def upcall_due(self) -> bool:
        """Whether an upcall is pending and not masked."""
        return bool(self.info[UPCALL_PENDING]) and not self.info[UPCALL_MASK]

    @property
    def root(self) -> int:
        """MFN of the page table of the mode that it is in."""
        return self.kernel_root if self.in_kernel else self.user_root

    @property
    def runnable(self) -> bool:
        """Whether it may be executed now."""
        return self.online and not self.blocked

    @property
    def deadline_ns(self) -> int | None:
        """The earliest of its timers, in system time."""
        deadlines = [
            deadline
            for deadline in (self.singleshot_ns, self.periodic_due_ns, self.poll_deadline_ns)
            if deadline is not None
        ]
        return min(deadlines) if deadlines else None

    def set_poll_timer(self, deadline_ns: int | None) -> None:
        """SCHEDOP_poll ends then; None: not by time."""
        self.poll_deadline_ns = deadline_ns

    def unblock(self) -> None:
        """End a block or a poll. Harmless when it does neither."""
        self.blocked = False
        self.poll_ports = ()
        self.poll_deadline_ns = None
