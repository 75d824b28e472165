"""Paging of a native domain: what the rest of the domain-local core uses.

Follows xen/arch/x86/mm.c of Xen 4.17 in what guests can see. The guest's page tables are those that the processor
walks, so every one of them is validated before it is used and each entry before it is written: no frame is writable
and a table at once, and nothing is mapped that the domain neither owns nor was granted.

Superpages and recursive (linear) page tables are refused, as by a Xen built without CONFIG_PV_LINEAR_PT.

references.py    what mappings and descriptor tables refer to
validation.py    what makes a frame a page table
walks.py         guest memory by virtual address
mmu_update.py    changes of entries that the guest asks for
mmuext.py        pins, base pointers, flushes
roots.py         which tables the vCPUs use
grant_mappings.py  entries for other domains' frames
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hypervisor.abi.xen import DOMID_SELF
from hypervisor.continuation import Continuation
from hypervisor.pv import page_tables_audit, page_tables_state
from hypervisor.pv.entries import BadEntry
from hypervisor.pv.frames import OWN_L1, Kind, LocalFrames
from hypervisor.pv.grant_mappings import GrantMappings
from hypervisor.pv.layout import FIRST_XEN_SLOT, LAST_XEN_SLOT, MFN_END, PAGE_SHIFT
from hypervisor.pv.local_descriptors import LocalDescriptors
from hypervisor.pv.mmu_batches import Batches
from hypervisor.pv.mmu_update import Updates
from hypervisor.pv.mmuext import Extended
from hypervisor.pv.page_tables_state import PageTablesState
from hypervisor.pv.roots import Roots
from hypervisor.pv.validation import UNBOUNDED, Validation
from hypervisor.pv.walks import Walks

if TYPE_CHECKING:
    from hypervisor.pv.cpu import Cpu
    from hypervisor.pv.machine_memory import MachineMemory
    from hypervisor.pv.vcpu import PvVcpu

INVALID_M2P_ENTRY = 0xFFFF_FFFF_FFFF_FFFF


class PageTables:
    """The page tables of one domain.

    m2p: u64 PFN by MFN, as the guest sees it. xen_entries: L4 entry by slot, for slots 256 to 271. domid: its own.
    read, write, check_writable, contiguous, translate: see walks.py; root is the MFN of an L4 table.
    """

    def __init__(
        self,
        memory: MachineMemory,
        frames: LocalFrames,
        cpu: Cpu,
        m2p: memoryview,
        xen_entries: Mapping[int, int],
        *,
        domid: int,
    ) -> None:
        entries = [xen_entries.get(slot, 0) for slot in range(FIRST_XEN_SLOT, LAST_XEN_SLOT + 1)]
        self.frames = frames
        self.m2p = m2p
        self._cpu = cpu
        self._batch = False
        self.validation = Validation(memory, frames, entries, cpu.forget_code)
        walks = self._walks = Walks(memory, frames, domid)
        self.translate = walks.translate
        self.read = walks.read
        self.write = walks.write
        self.check_writable = walks.check_writable
        self.contiguous = walks.contiguous
        self._descriptors = LocalDescriptors(self.validation, walks)
        self.roots = Roots(self.validation, self._descriptors, cpu)
        self._batches = Batches(self.validation, walks, domid)
        self._updates = Updates(self.validation, walks, self._batches, cpu, m2p)
        self._extended = Extended(
            self.validation, walks, self._batches, cpu, roots=self.roots, descriptors=self._descriptors
        )
        self._grants = GrantMappings(self.validation, walks)

    def entry(self, root: int, va: int) -> int:
        """The L1 entry for `va`, present or not; 0 if there is no L1 table for it."""
        slot = self._walks.l1_slot(root, va)
        return 0 if slot < 0 else int(self.validation.memory.quads[slot])

    # Hypercalls

    def mmu_update(
        self, vcpu: PvVcpu, ureqs: int, count: int, pdone: int, foreigndom: int
    ) -> int | Continuation:
        """mmu_update. XenError of the first request that fails; those before it were done."""
        simple = count == 1 and foreigndom == DOMID_SELF and not pdone and not self.validation.deferred
        if simple and self._updates.update_one(vcpu, ureqs):
            return 0
        try:
            return self._updates.mmu_update(vcpu, ureqs, count, pdone, foreigndom)
        finally:
            self._settle()

    def update_va_mapping(self, vcpu: PvVcpu, va: int, val: int, flags: int) -> int:
        """update_va_mapping."""
        try:
            return self._updates.update_va_mapping(vcpu, va, val, flags)
        finally:
            self._settle()

    def update_va_mapping_otherdomain(self, vcpu: PvVcpu, va: int, val: int, flags: int, domid: int) -> int:
        """The same for frames of `domid`: this domain's own alone."""
        self._batches.check_domain(domid)
        return self.update_va_mapping(vcpu, va, val, flags)

    def mmuext_op(
        self, vcpu: PvVcpu, uops: int, count: int, pdone: int, foreigndom: int
    ) -> int | Continuation:
        """mmuext_op. XenError of the first operation that fails; those before it were done."""
        try:
            return self._extended.mmuext_op(vcpu, uops, count, pdone, foreigndom)
        finally:
            self._settle()

    # Roots

    @property
    def strict_m2p(self) -> bool:
        """VMASST_TYPE_m2p_strict: user mode does not see the M2P table."""
        return self.roots.strict_m2p

    @strict_m2p.setter
    def strict_m2p(self, strict: bool) -> None:
        self.roots.strict_m2p = strict

    def set_initial_root(self, vcpu: PvVcpu, mfn: int) -> None:
        """Validate and pin the builder's page tables, give them to the first vCPU and load them. BadFrame, BadEntry:
        they are not what they should be. Not preemptible.
        """
        self._unbounded()
        self.validation.take(vcpu.id, mfn, 4)
        self.frames.pinned.add(mfn)
        self.load_kernel_root(vcpu, mfn)

    def set_roots(self, vcpu: PvVcpu, kernel: int, user: int) -> None:
        """Give roots (user: 0 for none) to a vCPU that has none and does not execute (VCPUOP_initialise). BadFrame,
        BadEntry: it has none then. Not preemptible.
        """
        self._unbounded()
        self.roots.set_kernel(vcpu, kernel)
        try:
            self.roots.set_user(vcpu, user)
        except BaseException:
            self.release_vcpu(vcpu)
            raise
        self._settle()

    def load_kernel_root(self, vcpu: PvVcpu, mfn: int) -> None:
        """The vCPU, in guest kernel mode, uses another root. BadFrame, BadEntry. Not preemptible."""
        self._unbounded()
        self.roots.load_kernel(vcpu, mfn)
        self.validation.drain()
        self._settle()

    def toggle(self, vcpu: PvVcpu, to_kernel: bool) -> None:
        """Guest kernel mode begins or ends: the processor uses that root."""
        self.roots.toggle(vcpu, to_kernel)

    def release_vcpu(self, vcpu: PvVcpu) -> None:
        """Drop its roots and the pages of its LDT. Not preemptible."""
        self._unbounded()
        self.roots.release(vcpu)
        self.validation.drain()
        self._settle()

    # What else refers to frames

    def emulate_pte_write(self, address: int, size: int, value: int) -> bool:
        """Write `size` bytes (1, 2, 4 or 8, aligned) at machine address `address`, which lies in an L1 table that
        the guest tried to write to. False: it is none, or the entry is refused; the guest gets its fault.
        """
        mfn = address >> PAGE_SHIFT
        if mfn >= MFN_END or self.frames.uses[mfn] != OWN_L1 or address % size:
            return False
        if size < 8:
            shift = (address & 7) * 8
            mask = (1 << size * 8) - 1
            value = self.validation.memory.quads[address >> 3] & ~(mask << shift) | (value & mask) << shift
        try:
            self._updates.set_l1(address >> 3, value)
        except BadEntry:
            return False
        finally:
            self._settle()
        return True

    def map_grant(self, vcpu: PvVcpu, host_addr: int, flags: int, mfn: int) -> None:
        """Map FOREIGN frame `mfn` at `host_addr` as GNTMAP_* `flags` say. XenError."""
        self._grants.map(vcpu, host_addr, flags, mfn)

    def unmap_grant(self, vcpu: PvVcpu, host_addr: int, flags: int, mfn: int) -> None:
        """Remove that mapping; XenError unless `host_addr` maps `mfn` so. No translation of it is left."""
        self._grants.unmap(vcpu, host_addr, flags, mfn)
        self._settle()

    def take_descriptor_page(self, mfn: int) -> None:
        """Refer to it as a descriptor table: all 512 descriptors are checked, and adjusted. BadFrame."""
        self.validation.take_descriptors(mfn)
        self._settle()

    def put_descriptor_page(self, mfn: int) -> None:
        """That reference goes away. The processor must not use the table any more."""
        self.validation.put_descriptors(mfn)

    def take_writable(self, mfn: int) -> None:
        """Refer to a frame of the domain's own as writable memory: it becomes no table meanwhile. BadFrame."""
        self.validation.take_writable(mfn)

    def put_writable(self, mfn: int) -> None:
        """That reference goes away."""
        self.validation.put_writable(mfn)

    def appear(self, mfn: int, count: int, kind: Kind) -> None:
        """Frames are there from now on. BadFrame."""
        self.frames.appear(mfn, count, kind)

    def vanish(self, mfn: int, count: int) -> None:
        """Frames are there no more, nor translations of them. BadFrame if one is in use: then nothing has changed."""
        self.frames.vanish(mfn, count)
        for frame in range(mfn, mfn + count):
            self.m2p[frame] = INVALID_M2P_ENTRY
        self.validation.flush_due = True
        self._settle()

    # Translations that the processor caches

    def begin_batch(self) -> None:
        """Until `end_batch`, flushes are put off: several hypercalls are made before the guest runs on."""
        self._batch = True

    def end_batch(self) -> None:
        """Do the flush that was put off, if any."""
        self._batch = False
        self._settle()

    def _settle(self) -> None:
        validation = self.validation
        if validation.flush_due and not self._batch:
            self._cpu.flush()
            validation.frames.clock += 1
            validation.flush_due = False

    def _unbounded(self) -> None:
        self.validation.begin(UNBOUNDED)

    # State

    def dump(self) -> PageTablesState:
        """What is neither in guest memory nor in the vCPUs. Half-done work is undone first: calls to be continued
        begin again.
        """
        validation = self.validation
        self._unbounded()
        for _, held in validation.held.values():
            validation.drop_all(held)
        validation.held.clear()
        validation.drain()
        return page_tables_state.dump(self.frames, self.m2p, self.strict_m2p)

    def load(self, state: PageTablesState, vcpus: Sequence[PvVcpu]) -> None:
        """The inverse, on frames that have appeared and nothing refers to yet. The vCPUs name their roots and the pages
        of their LDTs already; their GDT and registered areas are taken again by whoever loads them. Everything is
        validated: XenError.
        """
        validation = self.validation
        self._unbounded()
        page_tables_state.load_m2p(state, self.m2p)
        self.strict_m2p = state.strict_m2p
        validation.restoring = True
        try:
            for pin in state.pinned:
                validation.take(0, pin.mfn, pin.level)
                self.frames.pinned.add(pin.mfn)
            for vcpu in vcpus:
                if vcpu.kernel_root:
                    self.roots.set_kernel(vcpu, vcpu.kernel_root)
                if vcpu.user_root:
                    self.roots.set_user(vcpu, vcpu.user_root)
                self._descriptors.load(vcpu)
        finally:
            validation.restoring = False

    def audit(self, vcpus: Sequence[PvVcpu]) -> list[str]:
        """Walk every page table and count everything again: what does not agree, in words."""
        return page_tables_audit.audit(self.validation, vcpus)
