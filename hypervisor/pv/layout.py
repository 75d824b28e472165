"""The machine frame numbers that a native domain sees, and the hypervisor's part of its address space.

A native domain's MFNs are private to it: they name its own frames and a window for those of others, so that a
snapshot resumes and a clone starts without rewriting page tables. To the machine-wide core they are its guest frame
numbers. Page-table roots lie below 4 GiB, since the engine keeps 32 bits of CR3.
"""

from typing import Final

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT

XEN_FIRST: Final = 0x100
"""Frames of the hypervisor's that the guest may map: shared_info, then its grant table, then grant status."""
SHARED_INFO_MFN: Final = XEN_FIRST
GRANT_TABLE_FIRST: Final = 0x200
GRANT_STATUS_FIRST: Final = 0x300
ARGUMENT_MFN: Final = 0x3FF
"""Arguments of the hypercalls that the domain's process makes itself; the guest cannot map it."""
XEN_END: Final = 0x400

FOREIGN_FIRST: Final = 0x1000
FOREIGN_END: Final = 0x10000
"""Frames of other domains, for as long as a grant of them is mapped; not told to the guest before."""

RAM_FIRST: Final = 0x10000
MFN_END: Final = 0x100000
"""The domain's own frames; XENMEM_maximum_ram_page is always MFN_END - 1."""

MONITOR_FIRST: Final = 0x100000
MONITOR_END: Final = 0x110000
"""Of the engine's process alone: the hypervisor's page tables, its GDT, its entry page, the M2P table."""

MACH2PHYS_VIRT_START: Final = 0xFFFF_8000_0000_0000
MACH2PHYS_VIRT_END: Final = 0xFFFF_8040_0000_0000
"""M2P, readable by the guest: u64 PFN by MFN (__MACH2PHYS_VIRT_START of arch-x86/xen-x86_64.h)."""

HYPERVISOR_VIRT_START: Final = 0xFFFF_8000_0000_0000
HYPERVISOR_VIRT_END: Final = 0xFFFF_8800_0000_0000
FIRST_XEN_SLOT: Final = 256
LAST_XEN_SLOT: Final = 271
"""L4 slots that no guest may fill."""
