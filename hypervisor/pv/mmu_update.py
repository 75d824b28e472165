"""mmu_update and update_va_mapping: entries of page tables change, one by one, each validated before it is written.

Follows do_mmu_update, __do_update_va_mapping and mod_l1_entry to mod_l4_entry of xen/arch/x86/mm.c of Xen 4.17. The
processor stands still meanwhile. What it caches is forgotten before the guest runs on if a frame that it may still
write to has become a table; other stale translations are the guest's own business, and it asks for flushes.
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.mmu import (
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_TLB_FLUSH,
    mmu_update,
)
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_mmu_update
from hypervisor.continuation import Continuation
from hypervisor.errors import (
    BadFrame,
    GuestFault,
    InvalidArgument,
    Unsupported,
    XenError,
)
from hypervisor.pv.entries import (
    ACCESSED,
    ACCESSED_DIRTY,
    ADDRESS_MASK,
    L1_DISALLOWED,
    L1_SIGNIFICANT,
    NX,
    PRESENT,
    TABLE_DISALLOWED,
    TABLE_SIGNIFICANT,
    USER,
    BadEntry,
    adjusted_l1,
)
from hypervisor.pv.frames import (
    OWN_L1,
    OWN_L2,
    OWN_L4,
    OWN_UNUSED,
    OWN_WRITABLE,
    XEN_UNUSED,
    XEN_WRITABLE,
    TypeOfFrame,
)
from hypervisor.pv.layout import FIRST_XEN_SLOT, LAST_XEN_SLOT, MFN_END, PAGE_SHIFT
from hypervisor.pv.mmu_batches import PREEMPTED, as_result
from hypervisor.pv.validation import BUDGET, Preempted

if TYPE_CHECKING:
    from hypervisor.pv.cpu import Cpu
    from hypervisor.pv.mmu_batches import Batches
    from hypervisor.pv.validation import Validation
    from hypervisor.pv.vcpu import PvVcpu
    from hypervisor.pv.walks import Walks

REQUESTS_A_SLICE: Final = 512
VCPU_MASK_BYTES: Final = 8

_requests = Codec("<QQ")


class Updates:
    """Of one domain.

    m2p: u64 PFN by MFN.
    """

    __slots__ = ("_batches", "_cpu", "_m2p", "_validation", "_walks")

    def __init__(
        self, validation: Validation, walks: Walks, batches: Batches, cpu: Cpu, m2p: memoryview
    ) -> None:
        self._validation = validation
        self._walks = walks
        self._cpu = cpu
        self._m2p = m2p
        self._batches = batches

    # One entry

    def set_l1(self, slot: int, value: int, preserve_ad: bool = False) -> None:
        """Write `value` to the L1 entry at `slot`, an index of a u64 in machine memory. BadEntry."""
        validation = self._validation
        quads = validation.memory.quads
        old: int = quads[slot]
        if value & PRESENT:
            if value & L1_DISALLOWED:
                raise BadEntry(1, value, f"flags {value & L1_DISALLOWED:#x}")
            value = adjusted_l1(value)
            mfn = (value & ADDRESS_MASK) >> PAGE_SHIFT
            if not value & NX and mfn < MFN_END and validation.frames.written[mfn]:
                validation.will_execute(mfn)
            if not (old ^ value) & L1_SIGNIFICANT:
                quads[slot] = value | old & ACCESSED_DIRTY if preserve_ad else value
                return
            validation.take_data(value)
        quads[slot] = value | old & ACCESSED_DIRTY if preserve_ad else value
        if old & PRESENT:
            validation.drop_data(old)

    def _set_table(self, vcpu: PvVcpu, slot: int, value: int, level: int, preserve_ad: bool) -> None:
        """The same for levels 2 to 4. BadEntry, BadFrame, Preempted."""
        validation = self._validation
        if level == TypeOfFrame.L4 and FIRST_XEN_SLOT <= slot & 511 <= LAST_XEN_SLOT:
            raise BadEntry(level, value, f"slot {slot & 511} is the hypervisor's")
        quads = validation.memory.quads
        old: int = quads[slot]
        if value & PRESENT:
            if value & TABLE_DISALLOWED:
                raise BadEntry(level, value, f"flags {value & TABLE_DISALLOWED:#x}")
            value |= USER | ACCESSED if level == TypeOfFrame.L4 else USER
            if not (old ^ value) & TABLE_SIGNIFICANT:
                quads[slot] = value | old & ACCESSED_DIRTY if preserve_ad else value
                return
            validation.take(vcpu.id, (value & ADDRESS_MASK) >> PAGE_SHIFT, level - 1)
        quads[slot] = value | old & ACCESSED_DIRTY if preserve_ad else value
        if old & PRESENT:
            validation.drop((old & ADDRESS_MASK) >> PAGE_SHIFT)

    # mmu_update

    def update_one(self, vcpu: PvVcpu, ureqs: int) -> bool:
        """Do the one request at `ureqs` if it is for an entry of an L1 table, as nearly all are; whether it was.
        BadEntry.
        """
        address = self._walks.translate(vcpu.kernel_root, ureqs, False)
        if address < 0 or address & 15:
            return False
        validation = self._validation
        ptr: int = validation.memory.quads[address >> 3]
        mfn = ptr >> PAGE_SHIFT
        if ptr & 5 or mfn >= MFN_END or validation.frames.uses[mfn] != OWN_L1:
            return False
        self.set_l1(ptr >> 3, validation.memory.quads[(address >> 3) + 1], ptr & 2 != 0)
        return True

    def mmu_update(
        self, vcpu: PvVcpu, ureqs: int, count: int, pdone: int, foreigndom: int
    ) -> int | Continuation:
        """The hypercall, as far as its budget goes."""
        validation, batches = self._validation, self._batches
        validation.begin(BUDGET)
        if validation.deferred and not validation.drain():
            return Continuation(HYPERVISOR_mmu_update, (ureqs, count, pdone, foreigndom))
        if count == PREEMPTED and not ureqs:
            return as_result(foreigndom)
        before = 0
        if count & PREEMPTED:
            count ^= PREEMPTED
            before = batches.progress(vcpu, pdone)
        if foreigndom != DOMID_SELF:
            tables_of = foreigndom >> 16
            if tables_of:
                batches.check_tables_domain(tables_of - 1)
            batches.check_domain(foreigndom & 0xFFFF)
        if count > REQUESTS_A_SLICE:
            batches.check_handle(ureqs, count * mmu_update.size)
        done, error = self._run(vcpu, ureqs, min(count, REQUESTS_A_SLICE))
        batches.report(vcpu, pdone, before + done)
        if error is None and done < count:
            rest = (ureqs + done * mmu_update.size, (count - done) | PREEMPTED, pdone, foreigndom)
            return Continuation(HYPERVISOR_mmu_update, rest)
        return batches.finish(vcpu, HYPERVISOR_mmu_update, error)

    def _run(self, vcpu: PvVcpu, ureqs: int, count: int) -> tuple[int, XenError | None]:
        """Up to `count` requests: how many were done, and what ended them."""
        validation = self._validation
        uses = validation.frames.uses
        root = vcpu.kernel_root
        set_l1 = self.set_l1
        done = 0
        if not count:
            return 0, None
        try:
            requests = self._walks.read(root, ureqs, count * mmu_update.size)
        except GuestFault as fault:
            return 0, fault
        try:
            for ptr, value in _requests.iter_unpack(requests):
                command = ptr & 7
                mfn = ptr >> PAGE_SHIFT
                if command in (0, MMU_PT_UPDATE_PRESERVE_AD):
                    if mfn < MFN_END and uses[mfn] == OWN_L1:
                        set_l1(ptr >> 3, value, command != 0)
                    else:
                        self._update_other(vcpu, ptr >> 3, value, command != 0)
                        if validation.deferred and not validation.drain():
                            return done + 1, None
                elif command == MMU_MACHPHYS_UPDATE:
                    self._update_m2p(mfn, value)
                elif command < 4:
                    self._update_other(vcpu, ptr >> 3, value, False)
                else:
                    raise Unsupported(f"mmu_update command {command}")
                done += 1
        except Preempted:
            return done, None
        except XenError as error:
            return done, error
        return done, None

    def _update_other(self, vcpu: PvVcpu, slot: int, value: int, preserve_ad: bool) -> None:
        """An entry of a table of any level, or a u64 of memory that is no table."""
        validation = self._validation
        mfn = slot >> 9
        use = validation.frames.uses[mfn] if mfn < MFN_END else 0
        if OWN_L2 <= use <= OWN_L4:
            self._set_table(vcpu, slot, value, use - OWN_UNUSED, preserve_ad)
        elif use == OWN_L1:
            self.set_l1(slot, value, preserve_ad)
        elif use in (OWN_UNUSED, OWN_WRITABLE, XEN_UNUSED, XEN_WRITABLE):
            validation.memory.quads[slot] = value
            validation.forget_code(mfn)
        else:
            raise BadFrame(mfn, "neither page table nor writable memory of the domain")

    def _update_m2p(self, mfn: int, pfn: int) -> None:
        use = self._validation.frames.uses[mfn] if mfn < MFN_END else 0
        if not OWN_UNUSED <= use <= XEN_WRITABLE:
            raise BadFrame(mfn, "not the domain's")
        self._m2p[mfn] = pfn

    # update_va_mapping

    def update_va_mapping(self, vcpu: PvVcpu, va: int, value: int, flags: int) -> int:
        """The hypercall, but for a full flush: `flush_due` says whether one is."""
        validation = self._validation
        slot = self._walks.l1_slot(vcpu.kernel_root, va)
        if slot < 0 or validation.frames.uses[slot >> 9] != OWN_L1:
            raise InvalidArgument("virtual address", hex(va), "one with an L1 table")
        self.set_l1(slot, value)
        kind = flags & UVMF_FLUSHTYPE_MASK
        if kind:
            self._flush(vcpu, va, kind, flags & ~UVMF_FLUSHTYPE_MASK)
        return 0

    def _flush(self, vcpu: PvVcpu, va: int, kind: int, whom: int) -> None:
        """One processor executes all vCPUs, so it does not matter which of them are to flush; the mask of them is
        looked at all the same.
        """
        if whom & ~4:
            self._walks.read(vcpu.kernel_root, whom, VCPU_MASK_BYTES)
        if kind == UVMF_TLB_FLUSH:
            self._validation.flush_due = True
        elif kind == UVMF_INVLPG:
            self._cpu.flush_page(va)


assert _requests.size == mmu_update.size
