"""mmuext_op: pinning of page tables, base pointers, flushes, the LDT.

Follows do_mmuext_op and new_guest_cr3 of xen/arch/x86/mm.c of Xen 4.17. One processor executes all vCPUs of a domain,
one at a time, and forgets its translations when it turns to another one: flushing "all" is flushing it.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi import mmu as abi
from hypervisor.abi.errno import XEN_EACCES
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_mmuext_op
from hypervisor.continuation import Continuation
from hypervisor.errors import BadFrame, GuestFault, InvalidArgument, Unsupported, XenError
from hypervisor.pv.entries import is_guest_address
from hypervisor.pv.frames import Kind
from hypervisor.pv.layout import PAGE_SIZE
from hypervisor.pv.mmu_batches import PREEMPTED, as_result
from hypervisor.pv.mmu_update import VCPU_MASK_BYTES
from hypervisor.pv.validation import BUDGET, Preempted

if TYPE_CHECKING:
    from hypervisor.pv.cpu import Cpu
    from hypervisor.pv.local_descriptors import LocalDescriptors
    from hypervisor.pv.mmu_batches import Batches
    from hypervisor.pv.roots import Roots
    from hypervisor.pv.validation import Validation
    from hypervisor.pv.vcpu import PvVcpu
    from hypervisor.pv.walks import Walks

OPERATIONS_A_SLICE: Final = 128
MAX_LDT_ENTRIES: Final = 8192

_operations = Codec("<I4xQQ")
_NO_PAGE: Final = bytes(PAGE_SIZE)

Operation = Callable[["Extended", "PvVcpu", int, int], None]


class Extended:
    """mmuext_op of one domain."""

    __slots__ = ("_batches", "_cpu", "_descriptors", "_roots", "_validation", "_walks")

    def __init__(
        self,
        validation: Validation,
        walks: Walks,
        batches: Batches,
        cpu: Cpu,
        *,
        roots: Roots,
        descriptors: LocalDescriptors,
    ) -> None:
        self._validation = validation
        self._walks = walks
        self._batches = batches
        self._cpu = cpu
        self._roots = roots
        self._descriptors = descriptors

    def mmuext_op(
        self, vcpu: PvVcpu, uops: int, count: int, pdone: int, foreigndom: int
    ) -> int | Continuation:
        """The hypercall, as far as its budget goes."""
        validation, batches = self._validation, self._batches
        validation.begin(BUDGET)
        if validation.deferred and not validation.drain():
            return Continuation(HYPERVISOR_mmuext_op, (uops, count, pdone, foreigndom))
        if count == PREEMPTED and not uops:
            return as_result(foreigndom)
        before = 0
        if count & PREEMPTED:
            count ^= PREEMPTED
            before = batches.progress(vcpu, pdone)
        if foreigndom != DOMID_SELF:
            batches.check_domain(foreigndom)
        if count > OPERATIONS_A_SLICE:
            batches.check_handle(uops, count * abi.mmuext_op.size)
        done, error = self._run(vcpu, uops, min(count, OPERATIONS_A_SLICE))
        batches.report(vcpu, pdone, before + done)
        if error is None and done < count:
            rest = (uops + done * abi.mmuext_op.size, (count - done) | PREEMPTED, pdone, foreigndom)
            return Continuation(HYPERVISOR_mmuext_op, rest)
        return batches.finish(vcpu, HYPERVISOR_mmuext_op, error)

    def _run(self, vcpu: PvVcpu, uops: int, count: int) -> tuple[int, XenError | None]:
        """Up to `count` operations: how many were done, and what ended them."""
        validation = self._validation
        done = 0
        if not count:
            return 0, None
        try:
            operations = self._walks.read(vcpu.kernel_root, uops, count * _operations.size)
            for command, arg1, arg2 in _operations.iter_unpack(operations):
                operation = _OPERATIONS.get(command)
                if operation is None:
                    raise Unsupported(f"mmuext_op {command}")
                operation(self, vcpu, arg1, arg2)
                done += 1
                if (validation.deferred and not validation.drain()) or validation.budget <= 0:
                    break
        except Preempted:
            return done, None
        except XenError as error:
            return done, error
        return done, None

    # Pins

    def _pin(self, vcpu: PvVcpu, mfn: int, level: int) -> None:
        validation = self._validation
        if mfn in validation.frames.pinned:
            raise BadFrame(mfn, "pinned already")
        validation.take(vcpu.id, mfn, level)
        validation.frames.pinned.add(mfn)

    def pin_l1(self, vcpu: PvVcpu, mfn: int, _arg2: int) -> None:
        self._pin(vcpu, mfn, 1)

    def pin_l2(self, vcpu: PvVcpu, mfn: int, _arg2: int) -> None:
        self._pin(vcpu, mfn, 2)

    def pin_l3(self, vcpu: PvVcpu, mfn: int, _arg2: int) -> None:
        self._pin(vcpu, mfn, 3)

    def pin_l4(self, vcpu: PvVcpu, mfn: int, _arg2: int) -> None:
        self._pin(vcpu, mfn, 4)

    def unpin(self, _vcpu: PvVcpu, mfn: int, _arg2: int) -> None:
        validation = self._validation
        if mfn not in validation.frames.pinned:
            raise BadFrame(mfn, "not pinned")
        validation.frames.pinned.remove(mfn)
        validation.drop(mfn)

    # Base pointers

    def new_baseptr(self, vcpu: PvVcpu, mfn: int, _arg2: int) -> None:
        self._roots.load_kernel(vcpu, mfn)

    def new_user_baseptr(self, vcpu: PvVcpu, mfn: int, _arg2: int) -> None:
        self._roots.load_user(vcpu, mfn)

    # Translations

    def flush(self, _vcpu: PvVcpu, _arg1: int, _arg2: int) -> None:
        self._validation.flush_due = True

    def flush_multi(self, vcpu: PvVcpu, _arg1: int, mask: int) -> None:
        self._check_mask(vcpu, mask)
        self._validation.flush_due = True

    def invalidate(self, _vcpu: PvVcpu, address: int, _arg2: int) -> None:
        if is_guest_address(address):
            self._cpu.flush_page(address)

    def invalidate_multi(self, vcpu: PvVcpu, address: int, mask: int) -> None:
        self._check_mask(vcpu, mask)
        self.invalidate(vcpu, address, mask)

    def _check_mask(self, vcpu: PvVcpu, mask: int) -> None:
        try:
            self._walks.read(vcpu.kernel_root, mask, VCPU_MASK_BYTES)
        except GuestFault as fault:
            raise InvalidArgument("vCPU mask", hex(mask), "readable") from fault

    # Caches: for domains that have devices alone

    def flush_cache(self, _vcpu: PvVcpu, _arg1: int, _arg2: int) -> None:
        raise InvalidArgument("mmuext_op", "FLUSH_CACHE", "a domain with devices", errno=XEN_EACCES)

    def flush_cache_global(self, _vcpu: PvVcpu, _arg1: int, _arg2: int) -> None:
        raise InvalidArgument("mmuext_op", "FLUSH_CACHE_GLOBAL", "a domain with devices")

    # The rest

    def set_ldt(self, vcpu: PvVcpu, base: int, entries: int) -> None:
        entries &= 0xFFFF_FFFF
        if entries > MAX_LDT_ENTRIES:
            raise InvalidArgument("LDT entries", entries, f"at most {MAX_LDT_ENTRIES}")
        if not entries:
            base = 0
        elif base % PAGE_SIZE or not is_guest_address(base):
            raise InvalidArgument("LDT base", hex(base), "the guest's, aligned to a page")
        self._descriptors.set(vcpu, base, entries)

    def clear_page(self, _vcpu: PvVcpu, mfn: int, _arg2: int) -> None:
        self._validation.take_writable(mfn)
        self._validation.memory.frame(mfn)[:] = _NO_PAGE
        self._validation.forget_code(mfn)
        self._validation.put_writable(mfn)

    def copy_page(self, _vcpu: PvVcpu, mfn: int, source: int) -> None:
        validation = self._validation
        if validation.frames.kind(source) is not Kind.OWN:
            raise BadFrame(source, "not the domain's own")
        validation.take_writable(mfn)
        validation.memory.frame(mfn)[:] = validation.memory.frame(source)
        validation.forget_code(mfn)
        validation.put_writable(mfn)

    def mark_superpage(self, _vcpu: PvVcpu, _arg1: int, _arg2: int) -> None:
        raise Unsupported("superpages", known=True)


_OPERATIONS: Final[dict[int, Operation]] = {
    abi.MMUEXT_PIN_L1_TABLE: Extended.pin_l1,
    abi.MMUEXT_PIN_L2_TABLE: Extended.pin_l2,
    abi.MMUEXT_PIN_L3_TABLE: Extended.pin_l3,
    abi.MMUEXT_PIN_L4_TABLE: Extended.pin_l4,
    abi.MMUEXT_UNPIN_TABLE: Extended.unpin,
    abi.MMUEXT_NEW_BASEPTR: Extended.new_baseptr,
    abi.MMUEXT_TLB_FLUSH_LOCAL: Extended.flush,
    abi.MMUEXT_INVLPG_LOCAL: Extended.invalidate,
    abi.MMUEXT_TLB_FLUSH_MULTI: Extended.flush_multi,
    abi.MMUEXT_INVLPG_MULTI: Extended.invalidate_multi,
    abi.MMUEXT_TLB_FLUSH_ALL: Extended.flush,
    abi.MMUEXT_INVLPG_ALL: Extended.invalidate,
    abi.MMUEXT_FLUSH_CACHE: Extended.flush_cache,
    abi.MMUEXT_SET_LDT: Extended.set_ldt,
    abi.MMUEXT_NEW_USER_BASEPTR: Extended.new_user_baseptr,
    abi.MMUEXT_CLEAR_PAGE: Extended.clear_page,
    abi.MMUEXT_COPY_PAGE: Extended.copy_page,
    abi.MMUEXT_FLUSH_CACHE_GLOBAL: Extended.flush_cache_global,
    abi.MMUEXT_MARK_SUPER: Extended.mark_superpage,
    abi.MMUEXT_UNMARK_SUPER: Extended.mark_superpage,
}

assert _operations.size == abi.mmuext_op.size
