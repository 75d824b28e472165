"""xen.h and arch-x86/hvm/start_info.h: what a kernel finds at boot, as a PV and as a PVH guest.

The toolstack fills start_info in; a resumed domain gets the fields up to `console` anew.
"""

from typing import Annotated, Final

from hypervisor.abi.layout import ZERO, Bytes, Struct, Union, u32, u64

MAX_GUEST_CMDLINE: Final = 1024
SIF_PRIVILEGED: Final = 1
SIF_INITDOMAIN: Final = 2
SIF_MULTIBOOT_MOD: Final = 4
SIF_MOD_START_PFN: Final = 8
SIF_VIRT_P2M_4TOOLS: Final = 16
SIF_PM_MASK: Final = 0xFF00

XEN_HVM_START_MAGIC_VALUE: Final = 0x336EC578
XEN_HVM_MEMMAP_TYPE_RAM: Final = 1
XEN_HVM_MEMMAP_TYPE_RESERVED: Final = 2
XEN_HVM_MEMMAP_TYPE_ACPI: Final = 3
XEN_HVM_MEMMAP_TYPE_NVS: Final = 4
XEN_HVM_MEMMAP_TYPE_UNUSABLE: Final = 5
XEN_HVM_MEMMAP_TYPE_DISABLED: Final = 6
XEN_HVM_MEMMAP_TYPE_PMEM: Final = 7


class start_info_console_domU(Struct, size=16, anonymous=True):
    mfn: u64 = 0
    evtchn: u32 = 0


class start_info_console_dom0(Struct, size=8, anonymous=True):
    info_off: u32 = 0
    info_size: u32 = 0


class start_info_console(Union, size=16, anonymous=True):
    domU: start_info_console_domU = ZERO
    dom0: start_info_console_dom0 = ZERO


class start_info(Struct, size=1168):
    magic: Annotated[bytes, Bytes(32)] = ZERO
    nr_pages: u64 = 0
    shared_info: u64 = 0
    flags: u32 = 0
    store_mfn: u64 = 0
    store_evtchn: u32 = 0
    console: start_info_console = ZERO
    pt_base: u64 = 0
    nr_pt_frames: u64 = 0
    mfn_list: u64 = 0
    mod_start: u64 = 0
    mod_len: u64 = 0
    cmd_line: Annotated[bytes, Bytes(1024)] = ZERO
    first_p2m_pfn: u64 = 0
    nr_p2m_frames: u64 = 0


class xen_multiboot_mod_list(Struct, size=16):
    mod_start: u32 = 0
    mod_end: u32 = 0
    cmdline: u32 = 0
    pad: u32 = 0


class hvm_start_info(Struct, size=56):
    magic: u32 = 0
    version: u32 = 0
    flags: u32 = 0
    nr_modules: u32 = 0
    modlist_paddr: u64 = 0
    cmdline_paddr: u64 = 0
    rsdp_paddr: u64 = 0
    memmap_paddr: u64 = 0
    memmap_entries: u32 = 0
    reserved: u32 = 0


class hvm_modlist_entry(Struct, size=32):
    paddr: u64 = 0
    size: u64 = 0
    cmdline_paddr: u64 = 0
    reserved: u64 = 0


class hvm_memmap_table_entry(Struct, size=24):
    addr: u64 = 0
    size: u64 = 0
    type: u32 = 0
    reserved: u32 = 0
