"""Page-table entries of x86-64, and what of them a PV guest may ask for.

Follows the masks and the adjustments of xen/arch/x86/mm.c and pv/mm.h of Xen 4.17. The guest's kernel executes at CPL 3
like its processes, so every present entry gets _PAGE_USER; _PAGE_GUEST_KERNEL remembers which did not ask for it.
"""

from __future__ import annotations

from typing import Final

from hypervisor.errors import XenError
from hypervisor.pv.layout import HYPERVISOR_VIRT_END

PRESENT: Final = 1 << 0
RW: Final = 1 << 1
USER: Final = 1 << 2
PWT: Final = 1 << 3
PCD: Final = 1 << 4
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
PSE: Final = 1 << 7
"""PAT in an L1 entry"""
GLOBAL: Final = 1 << 8
AVAIL: Final = 7 << 9
GUEST_KERNEL: Final = 1 << 52
AVAIL_HIGH: Final = 0x7FF << 52
GNTTAB: Final = 1 << 62
"""made by a grant operation"""
NX: Final = 1 << 63

U64: Final = 0xFFFF_FFFF_FFFF_FFFF
MFN_MASK: Final = (1 << 40) - 1
ADDRESS_MASK: Final = MFN_MASK << 12

ACCESSED_DIRTY: Final = ACCESSED | DIRTY
_ALLOWED: Final = PRESENT | RW | USER | ACCESSED_DIRTY | AVAIL | AVAIL_HIGH | NX | ADDRESS_MASK
TABLE_DISALLOWED: Final = U64 ^ _ALLOWED
"""Bits that an entry of L2 to L4 must not have: superpages, caching attributes, global."""
L1_DISALLOWED: Final = (TABLE_DISALLOWED | GNTTAB) & ~GLOBAL

_HARMLESS: Final = NX | AVAIL_HIGH | AVAIL | GLOBAL | ACCESSED_DIRTY | USER
L1_SIGNIFICANT: Final = U64 ^ _HARMLESS
"""If none of these differs, an L1 entry may be replaced without looking at the frame."""
TABLE_SIGNIFICANT: Final = L1_SIGNIFICANT & ~RW
"""The same for L2 to L4. RW is harmless there since no table is reached through an entry of its own level."""


class BadEntry(XenError):
    """An entry of a page table that is refused (EINVAL)."""

    def __init__(self, level: int, value: int, why: str, *, errno: int | None = None) -> None:
        super().__init__(f"L{level} entry {value:#018x}: {why}", errno=errno)
        self.level = level
        self.value = value
        self.why = why


def adjusted_l1(entry: int) -> int:
    """A present L1 entry as it is written: for user mode, and global unless it is the guest kernel's own."""
    if not entry & USER:
        return entry | GUEST_KERNEL | USER
    if not entry & GUEST_KERNEL:
        return entry | GLOBAL
    return entry


def is_guest_address(va: int) -> bool:
    """Whether it is canonical and not in the hypervisor's part of the address space (__addr_ok)."""
    return 0 <= va < 1 << 47 or HYPERVISOR_VIRT_END <= va <= U64
