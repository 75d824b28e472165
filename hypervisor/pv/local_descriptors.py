"""The guest's LDT: pages of its kernel's memory that the processor reads as descriptors.

Follows MMUEXT_SET_LDT and pv_destroy_ldt of Xen 4.17, but for one thing: Xen refers to a page of the LDT when the
processor first reads it, this when the LDT is set or the kernel's root changes. A page that is not mapped then, or no
valid descriptor table, holds no descriptors for as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.errors import BadFrame, InvalidArgument
from hypervisor.pv.entries import ADDRESS_MASK, PRESENT
from hypervisor.pv.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from hypervisor.pv.validation import Validation
    from hypervisor.pv.vcpu import PvVcpu
    from hypervisor.pv.walks import Walks

DESCRIPTORS_A_PAGE: Final = 512


class LocalDescriptors:
    """Of the vCPUs of one domain."""

    __slots__ = ("_validation", "_walks")

    def __init__(self, validation: Validation, walks: Walks) -> None:
        self._validation = validation
        self._walks = walks

    def set(self, vcpu: PvVcpu, base: int, entries: int) -> None:
        """The LDT has `entries` descriptors, checked to be at most 8192, at virtual address `base`."""
        if (base, entries) == (vcpu.ldt_base, vcpu.ldt_entries):
            return
        self.drop(vcpu)
        vcpu.ldt_base = base
        vcpu.ldt_entries = entries
        self.map(vcpu)

    def map(self, vcpu: PvVcpu) -> None:
        """Refer to its pages, as the kernel's tables have them, and tell the processor."""
        pages = -(-vcpu.ldt_entries // DESCRIPTORS_A_PAGE)
        vcpu.ldt_frames = [self._take(vcpu, vcpu.ldt_base + page * PAGE_SIZE) for page in range(pages)]
        vcpu.domain.monitor.set_ldt(vcpu.id, vcpu.ldt_frames, vcpu.ldt_entries)
        self._validation.flush_due = True

    def load(self, vcpu: PvVcpu) -> None:
        """Refer to the pages that the vCPU's LDT had when it was saved. BadFrame, InvalidArgument: it names others."""
        frames, vcpu.ldt_frames = vcpu.ldt_frames, []
        if len(frames) != -(-vcpu.ldt_entries // DESCRIPTORS_A_PAGE):
            raise InvalidArgument("pages of an LDT", len(frames), f"as {vcpu.ldt_entries} descriptors need")
        for mfn in frames:
            if mfn:
                self._validation.take_descriptors(mfn)
            vcpu.ldt_frames.append(mfn)
        vcpu.domain.monitor.set_ldt(vcpu.id, vcpu.ldt_frames, vcpu.ldt_entries)

    def drop(self, vcpu: PvVcpu) -> None:
        """Refer to them no more. The processor is told by the `map` that follows, or has no use for the vCPU."""
        for mfn in vcpu.ldt_frames:
            if mfn:
                self._validation.put_descriptors(mfn)
        vcpu.ldt_frames = []

    def _take(self, vcpu: PvVcpu, address: int) -> int:
        """Refer to the page there; 0 if it is none that may be used."""
        slot = self._walks.l1_slot(vcpu.kernel_root, address)
        entry: int = self._validation.memory.quads[slot] if slot >= 0 else 0
        if not entry & PRESENT:
            return 0
        mfn = (entry & ADDRESS_MASK) >> PAGE_SHIFT
        try:
            self._validation.take_descriptors(mfn)
        except BadFrame:
            return 0
        return mfn
