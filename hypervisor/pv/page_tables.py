"""Paging of a native domain: what the rest of the domain-local core uses.

Follows xen/arch/x86/mm.c of Xen 4.17 in what guests can see. The guest's page tables are those that the processor
walks, so every one of them is validated before it is used and each entry before it is written: no frame is writable
and a table at once, and nothing is mapped that the domain neither owns nor was granted.

Superpages and recursive (linear) page tables are refused, as by a Xen built without CONFIG_PV_LINEAR_PT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from hypervisor.continuation import Continuation
from hypervisor.pv.cpu import Cpu
from hypervisor.pv.frames import LocalFrames
from hypervisor.pv.machine_memory import MachineMemory
from hypervisor.pv.page_tables_state import PageTablesState


class PagedVcpu(Protocol):
    """What paging keeps with each vCPU; only this package writes it."""

    vcpu_id: int
    kernel_root: int
    """MFN of the L4 table of guest kernel mode; 0: none"""
    user_root: int
    """MFN of the L4 table of guest user mode; 0: none"""
    in_kernel: bool
    ldt_base: int
    """virtual address, as the guest gave it"""
    ldt_entries: int
    ldt_frames: list[int]
    """one MFN for each page of the LDT, 0 for one that is no valid descriptor table"""


class Translation(NamedTuple):
    """What a walk found: the L1 entry, and the machine address of the byte."""

    entry: int
    address: int


class PageTables:
    """The page tables of one domain.

    m2p: u64 PFN by MFN, as the guest sees it. xen_entries: L4 entry by slot, for slots 256 to 271.
    check_descriptor: the u64 as it may stand in a descriptor table (with DPL 3), None if it must not.
    ldt_changed: the processor is to use `vcpu.ldt_frames` and `vcpu.ldt_entries` from now on.
    domid: the domain's own. max_vcpus: how many bits of a vCPU mask count.
    """

    def __init__(
        self,
        memory: MachineMemory,
        frames: LocalFrames,
        cpu: Cpu,
        m2p: memoryview,
        xen_entries: Mapping[int, int],
        *,
        check_descriptor: Callable[[int], int | None],
        ldt_changed: Callable[[PagedVcpu], None],
        domid: int,
        max_vcpus: int,
    ) -> None:
        raise NotImplementedError

    strict_m2p: bool
    """VMASST_TYPE_m2p_strict: user mode does not see the M2P table"""

    # Guest memory by virtual address

    def walk(self, root: int, va: int) -> Translation | None:
        """What `va` is mapped to by the tables at L4 table `root`; None if it is not, or is Xen's or not canonical."""
        raise NotImplementedError

    def read(self, root: int, va: int, size: int) -> bytes:
        """copy_from_guest: GuestFault."""
        raise NotImplementedError

    def write(self, root: int, va: int, data: bytes | bytearray | memoryview) -> None:
        """copy_to_guest: GuestFault, and nothing written, unless all is mapped and writable."""
        raise NotImplementedError

    def check_writable(self, root: int, va: int, size: int) -> None:
        """GuestFault unless `size` bytes may be written."""
        raise NotImplementedError

    def contiguous(self, root: int, va: int, size: int) -> memoryview:
        """As many of `size` bytes as lie in one page, at least one, as a writable view. GuestFault."""
        raise NotImplementedError

    # Hypercalls

    def mmu_update(
        self, vcpu: PagedVcpu, ureqs: int, count: int, pdone: int, foreigndom: int
    ) -> int | Continuation:
        """mmu_update. XenError of the first request that fails; those before it were done."""
        raise NotImplementedError

    def update_va_mapping(self, vcpu: PagedVcpu, va: int, val: int, flags: int) -> int:
        """update_va_mapping."""
        raise NotImplementedError

    def update_va_mapping_otherdomain(
        self, vcpu: PagedVcpu, va: int, val: int, flags: int, domid: int
    ) -> int:
        """The same for frames of `domid`: this domain's own alone."""
        raise NotImplementedError

    def mmuext_op(
        self, vcpu: PagedVcpu, uops: int, count: int, pdone: int, foreigndom: int
    ) -> int | Continuation:
        """mmuext_op. XenError of the first operation that fails; those before it were done."""
        raise NotImplementedError

    # Roots

    def set_initial_root(self, vcpu: PagedVcpu, mfn: int) -> None:
        """Validate and pin the builder's page tables, and give them to the first vCPU. Not preemptible."""
        raise NotImplementedError

    def set_roots(self, vcpu: PagedVcpu, kernel: int, user: int) -> None:
        """Give roots to a vCPU that does not execute (VCPUOP_initialise). Not preemptible."""
        raise NotImplementedError

    def load_kernel_root(self, vcpu: PagedVcpu, mfn: int) -> None:
        """MMUEXT_NEW_BASEPTR. Not preemptible."""
        raise NotImplementedError

    def toggle(self, vcpu: PagedVcpu, to_kernel: bool) -> None:
        """Guest kernel mode begins or ends: the processor uses that root."""
        raise NotImplementedError

    def release_vcpu(self, vcpu: PagedVcpu) -> None:
        """Drop its roots and its LDT. Not preemptible."""
        raise NotImplementedError

    # What else refers to frames

    def emulate_pte_write(self, vcpu: PagedVcpu, address: int, size: int, value: int) -> bool:
        """Write `size` bytes (1, 2, 4 or 8, aligned) at machine address `address`, which lies in an L1 table that
        the guest tried to write to. False: it is none, or the entry would be refused; the guest gets its fault.
        """
        raise NotImplementedError

    def map_grant(self, vcpu: PagedVcpu, host_addr: int, flags: int, mfn: int) -> None:
        """Map FOREIGN frame `mfn` at `host_addr` as GNTMAP_* `flags` say. XenError (GNTST_general_error)."""
        raise NotImplementedError

    def unmap_grant(self, vcpu: PagedVcpu, host_addr: int, flags: int, mfn: int, new_addr: int = 0) -> None:
        """Remove that mapping; XenError unless `host_addr` maps `mfn` so. All translations are flushed before the
        guest runs on. `new_addr`: GNTTABOP_unmap_and_replace.
        """
        raise NotImplementedError

    def take_descriptor_page(self, mfn: int) -> None:
        """Refer to it as a descriptor table: all 512 descriptors are checked. BadFrame."""
        raise NotImplementedError

    def put_descriptor_page(self, mfn: int) -> None:
        """That reference goes away."""
        raise NotImplementedError

    def take_writable(self, mfn: int) -> None:
        """Refer to it as writable memory: it becomes no table meanwhile. BadFrame."""
        raise NotImplementedError

    def put_writable(self, mfn: int) -> None:
        """That reference goes away."""
        raise NotImplementedError

    def appear(self, mfn: int, count: int, kind: int) -> None:
        """Frames are there from now on."""
        raise NotImplementedError

    def vanish(self, mfn: int, count: int) -> None:
        """Frames are there no more. BadFrame if one is in use; then nothing has changed."""
        raise NotImplementedError

    # Translations that the processor caches

    def begin_batch(self) -> None:
        """Until `end_batch` (of a multicall), flushes are put off."""
        raise NotImplementedError

    def end_batch(self) -> None:
        """Do the flush that was put off, if any."""
        raise NotImplementedError

    # State

    def dump(self) -> PageTablesState:
        """What is neither in guest memory nor in the vCPUs."""
        raise NotImplementedError

    def load(self, state: PageTablesState, vcpus: list[PagedVcpu]) -> None:
        """The inverse, on fresh frames: everything is validated again. XenError."""
        raise NotImplementedError

    def audit(self, vcpus: list[PagedVcpu]) -> list[str]:
        """Walk every page table and count everything again: what does not agree, in words."""
        raise NotImplementedError


VMASST_M2P_STRICT_SLOT: Final = 256
