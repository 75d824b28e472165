"""The hypervisor's own part of a native domain's address space: M2P and each vCPU's descriptor tables.

These pages belong to the engine's process, are reached through Xen's slots of every root, and are named by machine
frames from MONITOR_FIRST on, which no guest can map. The guest reads the M2P; descriptor tables are for the
processor alone. Where they are follows Xen (asm-x86/config.h): a vCPU's GDT is 14 frames of the guest's and then one
page with Xen's flat segments, its LDT 16 frames.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Final

from hypervisor.fixed_mapping import address_of
from hypervisor.pv.layout import FIRST_XEN_SLOT, MFN_END, MONITOR_FIRST, PAGE_SHIFT, PAGE_SIZE, RAM_FIRST

PERDOMAIN_SLOT: Final = 260
PERDOMAIN_VIRT_START: Final = 0xFFFF_8200_0000_0000
AREA_PAGES: Final = 16
"""of a GDT, and of an LDT behind it"""
FIRST_RESERVED_GDT_PAGE: Final = 14
VCPU_STRIDE: Final = 2 * AREA_PAGES * PAGE_SIZE
MAX_VCPUS: Final = 128
GDT_LIMIT: Final = 0xEFFF
"""LAST_RESERVED_GDT_BYTE: what the guest has no frame for reads as zero"""

PRESENT: Final = 1
WRITABLE: Final = 2
USER: Final = 4
ACCESSED_DIRTY: Final = 0x60
LARGE: Final = 0x80
NO_EXECUTE: Final = 1 << 63

FLAT_CODE64: Final = 0x00AF_FB00_0000_FFFF  # e033
FLAT_CODE32: Final = 0x00CF_FB00_0000_FFFF  # e023
FLAT_DATA: Final = 0x00CF_F300_0000_FFFF  # e02b
FLAT_SEGMENTS: Final = MappingProxyType({0xE020: FLAT_CODE32, 0xE028: FLAT_DATA, 0xE030: FLAT_CODE64})
"""Xen's for its guests, by selector without RPL"""

PRIVATE: Final = PRESENT | WRITABLE | ACCESSED_DIRTY | NO_EXECUTE
"""for the processor alone; it sets the accessed bits of descriptors"""

_M2P_PAGES: Final = MFN_END * 8 >> PAGE_SHIFT
_TABLE_ENTRIES: Final = 512
_L1_TABLES: Final = MAX_VCPUS * 2 * AREA_PAGES // _TABLE_ENTRIES


def gdt_address(vcpu: int) -> int:
    """The linear address of a vCPU's GDT."""
    return PERDOMAIN_VIRT_START + vcpu * VCPU_STRIDE


def ldt_address(vcpu: int) -> int:
    """The linear address of a vCPU's LDT."""
    return gdt_address(vcpu) + AREA_PAGES * PAGE_SIZE


class MonitorPages:
    """m2p: PFN by MFN, u64 each, all ones at first (zeros above the domain's `ram_pages`). xen_entries: what belongs
    into Xen's slots of a root, by slot. To be mapped into the engine at MONITOR_FIRST: `pages` frames at `address`.
    changed: called with the vCPU whose descriptor table is another now. ldt_entries: by vCPU.
    """

    def __init__(self, ram_pages: int) -> None:
        self.changed: Callable[[int], None] = _nobody
        self.ldt_entries = [0] * MAX_VCPUS
        tables = 2 + 2 + _L1_TABLES + 2  # M2P: L3, L2; areas: L3, L2, L1s; Xen's segments and zeros
        self.pages = _M2P_PAGES + tables
        self._memory = mmap.mmap(-1, self.pages * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = address_of(self._memory)
        self._view = memoryview(self._memory)
        self.m2p = self._view[: MFN_END * 8].cast("Q")
        filled = (RAM_FIRST + ram_pages) * 8
        self._view[:filled] = b"\xff" * filled
        self._next = _M2P_PAGES
        self._build()

    def _build(self) -> None:
        m2p_l3, l3_frame = self._page()
        m2p_l2, l2_frame = self._page()
        read_only = PRESENT | USER | ACCESSED_DIRTY | NO_EXECUTE
        m2p_l3[0] = l2_frame << PAGE_SHIFT | read_only
        for index in range(_M2P_PAGES // _TABLE_ENTRIES):
            first = MONITOR_FIRST + index * _TABLE_ENTRIES
            m2p_l2[index] = first << PAGE_SHIFT | read_only | LARGE

        area_l3, area_l3_frame = self._page()
        area_l2, area_l2_frame = self._page()
        area_l3[0] = area_l2_frame << PAGE_SHIFT | PRIVATE
        self._areas: list[memoryview] = []
        for index in range(_L1_TABLES):
            table, frame = self._page()
            area_l2[index] = frame << PAGE_SHIFT | PRIVATE
            self._areas.append(table)
        flat, flat_frame = self._page()
        for selector, descriptor in FLAT_SEGMENTS.items():
            flat[(selector & 0xFFF) >> 3] = descriptor
        self._flat_entry = flat_frame << PAGE_SHIFT | PRIVATE
        _, zero_frame = self._page()
        self._zero_entry = zero_frame << PAGE_SHIFT | PRIVATE & ~WRITABLE
        self.xen_entries = MappingProxyType(
            {
                FIRST_XEN_SLOT: l3_frame << PAGE_SHIFT | read_only,
                PERDOMAIN_SLOT: area_l3_frame << PAGE_SHIFT | PRIVATE,
            }
        )
        for vcpu in range(MAX_VCPUS):
            self.set_gdt(vcpu, (), 0)

    def _page(self) -> tuple[memoryview, int]:
        start = self._next << PAGE_SHIFT
        self._next += 1
        table = self._view[start : start + PAGE_SIZE].cast("Q")
        return table, MONITOR_FIRST + (start >> PAGE_SHIFT)

    def set_gdt(self, vcpu_id: int, frames: Sequence[int], entries: int) -> None:  # noqa: ARG002 - whole pages
        """Let a vCPU's GDT begin with these frames, at most 14; the caller holds them as descriptor pages. Xen's
        flat segments stay where they are.
        """
        first = vcpu_id * 2 * AREA_PAGES
        self._fill(first, frames, FIRST_RESERVED_GDT_PAGE, self._zero_entry)
        self._fill(first + FIRST_RESERVED_GDT_PAGE, (), 1, self._flat_entry)
        self.changed(vcpu_id)

    def set_ldt(self, vcpu_id: int, frames: Sequence[int], entries: int) -> None:
        """Let a vCPU's LDT be these frames, at most 16; 0 for one that is not there."""
        self._fill((vcpu_id * 2 + 1) * AREA_PAGES, frames, AREA_PAGES, self._zero_entry)
        self.ldt_entries[vcpu_id] = entries
        self.changed(vcpu_id)

    def _fill(self, first: int, frames: Sequence[int], pages: int, otherwise: int) -> None:
        table, index = self._areas[first // _TABLE_ENTRIES], first % _TABLE_ENTRIES
        for page in range(pages):
            frame = frames[page] if page < len(frames) else 0
            table[index + page] = frame << PAGE_SHIFT | PRIVATE if frame else otherwise


def _nobody(_vcpu_id: int) -> None:
    """Nothing executes yet."""
