"""Roots of page tables: which L4 table each vCPU uses in guest kernel mode and in guest user mode.

Follows new_guest_cr3, MMUEXT_NEW_USER_BASEPTR and vcpu_destroy_pagetables of xen/arch/x86/mm.c of Xen 4.17. A root is a
reference to its L4 table; 0 is none. Slot 256, the M2P table, is seen through every root, but not through one that user
mode has been given while VMASST_TYPE_m2p_strict is enabled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.pv.layout import FIRST_XEN_SLOT

if TYPE_CHECKING:
    from hypervisor.pv.cpu import Cpu
    from hypervisor.pv.local_descriptors import LocalDescriptors
    from hypervisor.pv.validation import Validation
    from hypervisor.pv.vcpu import PvVcpu

M2P_SLOT: Final = FIRST_XEN_SLOT


class Roots:
    """Of the vCPUs of one domain."""

    __slots__ = ("_cpu", "_descriptors", "_validation", "strict_m2p")

    def __init__(self, validation: Validation, descriptors: LocalDescriptors, cpu: Cpu) -> None:
        self._validation = validation
        self._descriptors = descriptors
        self._cpu = cpu
        self.strict_m2p = False

    def load_kernel(self, vcpu: PvVcpu, mfn: int) -> None:
        """The vCPU that executes, in guest kernel mode, uses `mfn` from now on. BadFrame, Preempted."""
        old = vcpu.kernel_root
        if mfn != old:
            self.set_kernel(vcpu, mfn)
            if vcpu.ldt_entries:
                self._descriptors.drop(vcpu)
                self._descriptors.map(vcpu)
            if old:
                self._validation.drop(old)
        self._load(mfn)

    def load_user(self, vcpu: PvVcpu, mfn: int) -> None:
        """It uses `mfn` when it returns to guest user mode. BadFrame, Preempted."""
        old = vcpu.user_root
        if mfn == old:
            return
        self.set_user(vcpu, mfn)
        if old:
            self._validation.drop(old)

    def set_kernel(self, vcpu: PvVcpu, mfn: int) -> None:
        """The same without a word to the processor, for a vCPU that has none yet."""
        self._validation.take(vcpu.id, mfn, 4)
        if not self.strict_m2p:
            self._show_m2p(mfn)
        vcpu.kernel_root = mfn

    def set_user(self, vcpu: PvVcpu, mfn: int) -> None:
        """And for guest user mode; 0: none."""
        if mfn:
            self._validation.take(vcpu.id, mfn, 4)
            if self.strict_m2p:
                self._validation.memory.quads[mfn << 9 | M2P_SLOT] = 0
        vcpu.user_root = mfn

    def toggle(self, vcpu: PvVcpu, to_kernel: bool) -> None:
        """Guest kernel mode begins or ends."""
        root = vcpu.kernel_root if to_kernel else vcpu.user_root
        if not root:
            vcpu.domain.crash(vcpu, "user mode without user page tables")
        vcpu.in_kernel = to_kernel
        self._load(root)

    def release(self, vcpu: PvVcpu) -> None:
        """The vCPU uses no page tables any more, nor what only it held."""
        validation = self._validation
        self._descriptors.drop(vcpu)
        for mfn in (vcpu.kernel_root, vcpu.user_root):
            if mfn:
                validation.drop(mfn)
        vcpu.kernel_root = vcpu.user_root = 0
        validation.release(vcpu.id)

    def _load(self, mfn: int) -> None:
        self._cpu.load_root(mfn)
        self._validation.frames.clock += 1
        self._validation.flush_due = False

    def _show_m2p(self, mfn: int) -> None:
        self._validation.memory.quads[mfn << 9 | M2P_SLOT] = self._validation.xen_entries[0]
