"""Entries of the guest's own page tables that map granted frames: only these operations make and remove them.

Follows create_grant_pv_mapping and replace_grant_pv_mapping of xen/arch/x86/pv/grant_table.c of Xen 4.17. The entry is
named by a virtual address, or with GNTMAP_contains_pte by its machine address, which must lie in an L1 table and be
aligned (XSA-227); what is removed must be what was made (XSA-234).

A guest that overwrites such an entry by itself loses the only way to unmap the grant, as with Xen: the frame stays
until the domain ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_readonly,
)
from hypervisor.errors import BadFrame, InvalidArgument
from hypervisor.pv.entries import (
    ACCESSED_DIRTY,
    ADDRESS_MASK,
    AVAIL,
    GNTTAB,
    NX,
    PRESENT,
    RW,
    USER,
    adjusted_l1,
)
from hypervisor.pv.frames import OWN_L1, Kind
from hypervisor.pv.layout import MFN_END, PAGE_SHIFT

if TYPE_CHECKING:
    from hypervisor.pv.validation import Validation
    from hypervisor.pv.vcpu import PvVcpu
    from hypervisor.pv.walks import Walks

GUEST_AVAIL_SHIFT: Final = 16 - 9
"""GNTMAP_guest_avail0 is bit 16 of the flags, and bit 9 of the entry"""


class GrantMappings:
    """Of one domain."""

    __slots__ = ("_validation", "_walks")

    def __init__(self, validation: Validation, walks: Walks) -> None:
        self._validation = validation
        self._walks = walks

    def map(self, vcpu: PvVcpu, host_addr: int, flags: int, mfn: int) -> None:
        """Map frame `mfn` of another domain; what was mapped there before is not any more."""
        validation = self._validation
        kind = validation.frames.kind(mfn)
        writable = not flags & GNTMAP_readonly
        if kind is not Kind.FOREIGN and (kind is not Kind.FOREIGN_READONLY or writable):
            raise BadFrame(mfn, f"{kind.name}, not granted {'for writing' if writable else ''}")
        slot = self._slot(vcpu, host_addr, flags)
        old: int = validation.memory.quads[slot]
        validation.memory.quads[slot] = adjusted_l1(mfn << PAGE_SHIFT | _flags_of(flags))
        validation.frames.readers[mfn] += 1
        if old & PRESENT:
            validation.drop_data(old)

    def unmap(self, vcpu: PvVcpu, host_addr: int, flags: int, mfn: int) -> None:
        """Remove a mapping that `map` made with the same arguments."""
        validation = self._validation
        slot = self._slot(vcpu, host_addr, flags)
        old: int = validation.memory.quads[slot]
        wanted = PRESENT if flags & GNTMAP_readonly else PRESENT | RW
        if old & (PRESENT | RW) != wanted or (old & ADDRESS_MASK) >> PAGE_SHIFT != mfn:
            raise InvalidArgument(
                "entry of a granted frame", hex(old), f"a mapping of mfn {mfn:#x} as granted"
            )
        validation.memory.quads[slot] = 0
        validation.drop_data(old)
        validation.flush_due = True

    def _slot(self, vcpu: PvVcpu, host_addr: int, flags: int) -> int:
        """Index in quads of the entry that the guest has named."""
        if flags & GNTMAP_contains_pte:
            if host_addr % 8:
                raise InvalidArgument("machine address of an entry", hex(host_addr), "aligned to 8")
            slot = host_addr >> 3
        else:
            slot = self._walks.l1_slot(vcpu.kernel_root, host_addr)
        if not 0 <= slot >> 9 < MFN_END or self._validation.frames.uses[slot >> 9] != OWN_L1:
            raise InvalidArgument("host address", hex(host_addr), "an entry of an L1 table")
        return slot


def _flags_of(flags: int) -> int:
    """Flags of an L1 entry from GNTMAP_*."""
    entry = PRESENT | ACCESSED_DIRTY | GNTTAB | NX
    if flags & GNTMAP_application_map:
        entry |= USER
    if not flags & GNTMAP_readonly:
        entry |= RW
    return entry | flags >> GUEST_AVAIL_SHIFT & AVAIL
