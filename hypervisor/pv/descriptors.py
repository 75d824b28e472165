"""Segment descriptors: which may stand in a guest's descriptor tables, and what the hypervisor's own ones are.

Follows check_descriptor (xen/arch/x86/x86_64/mm.c) and public/arch-x86/xen-x86_64.h. The processor reads the guest's
tables itself, so nothing may be in them that leads out of CPL 3: present segments get DPL 3, call gates DPL 0, which
makes each use of one a fault, and other gates and system segments are refused.
"""

from __future__ import annotations

from typing import Final

from hypervisor.abi.arch_x86_64 import FIRST_RESERVED_GDT_ENTRY, FLAT_KERNEL_CS64

ACCESSED: Final = 1 << 40
WRITABLE: Final = 1 << 41
"""of a data segment; readable, of a code segment"""
CONFORMING: Final = 1 << 42
CODE: Final = 1 << 43
SEGMENT: Final = 1 << 44
"""S: code or data, not a gate or system segment"""
DPL_SHIFT: Final = 45
DPL3: Final = 3 << DPL_SHIFT
PRESENT: Final = 1 << 47
LONG: Final = 1 << 53
DEFAULT_32: Final = 1 << 54
GRANULARITY: Final = 1 << 55

_TYPE: Final = 0xF << 40
_CALL_GATE: Final = 0xC << 40
_GATE_RESERVED: Final = 0xFF << 32

TABLE_INDICATOR: Final = 4
"""in a selector: the LDT is meant"""
RPL: Final = 3

FLAT: Final[dict[int, int]] = {
    0xE020: 0x00CF_FA00_0000_FFFF,
    0xE028: 0x00CF_F200_0000_FFFF,
    0xE030: 0x00AF_FA00_0000_FFFF,
}
"""The hypervisor's part of every GDT, as far as CPL 3 may load it: selector without its RPL -> descriptor. It is
FLAT_RING3_CS32, _DS32 (also SS) and _CS64.
"""
FLAT_CODE_64: Final = FLAT[0xE030]
FLAT_CODE_32: Final = FLAT[0xE020]
FLAT_DATA: Final = FLAT[0xE028]


def fix(descriptor: int) -> int | None:
    """`descriptor` (a u64) as it may stand in a descriptor table; None if it may not."""
    if not descriptor & PRESENT:
        return descriptor  # any use of it faults
    if descriptor & SEGMENT:
        return descriptor | DPL3
    if not descriptor & _TYPE:
        return descriptor | DPL3  # an invalid type; the second half of a gate looks so
    if descriptor & _TYPE != _CALL_GATE or descriptor & _GATE_RESERVED:
        return None
    return _fix_call_gate(descriptor)


def _fix_call_gate(descriptor: int) -> int | None:
    """DPL 0, with the DPL that the guest gave kept as RPL of the code selector."""
    selector = descriptor >> 16 & 0xFFFF
    permitted = (
        selector >> 3 < FIRST_RESERVED_GDT_ENTRY or selector == FLAT_KERNEL_CS64 or selector & TABLE_INDICATOR
    )
    if not permitted:
        return None
    return descriptor & ~DPL3 & ~(RPL << 16) | RPL << 16


def check(descriptor: int) -> bool:
    """Whether it may stand in a descriptor table as it is."""
    return fix(descriptor) == descriptor


def base(descriptor: int) -> int:
    """Where the segment begins, of code and data segments."""
    return descriptor >> 16 & 0xFF_FFFF | descriptor >> 32 & 0xFF00_0000


def limit(descriptor: int) -> int:
    """The last offset in it, in bytes."""
    pages_or_bytes = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
    return pages_or_bytes << 12 | 0xFFF if descriptor & GRANULARITY else pages_or_bytes
