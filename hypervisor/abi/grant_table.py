"""grant_table.h: grant entries, and the operations on them with their status codes.

A granting domain writes an entry's domid and frame first and its flags last. Xen sets GTF_reading and
GTF_writing while the grant is in use; the granter may end it only when both are clear, by an atomic exchange.
"""

from typing import Final

from hypervisor.abi.layout import ZERO, Handle, Struct, Union, s16, u16, u32, u64

# References that the toolstack fills in before a domain starts.
GNTTAB_NR_RESERVED_ENTRIES: Final = 8
GNTTAB_RESERVED_CONSOLE: Final = 0
GNTTAB_RESERVED_XENSTORE: Final = 1

GTF_invalid: Final = 0
GTF_permit_access: Final = 1
GTF_accept_transfer: Final = 2
GTF_transitive: Final = 3
GTF_type_mask: Final = 3
GTF_readonly: Final = 4
GTF_reading: Final = 8
GTF_writing: Final = 16
GTF_PWT: Final = 32
GTF_PCD: Final = 64
GTF_PAT: Final = 128
GTF_sub_page: Final = 256
GTF_transfer_committed: Final = 4
GTF_transfer_completed: Final = 8

GNTTABOP_map_grant_ref: Final = 0
GNTTABOP_unmap_grant_ref: Final = 1
GNTTABOP_setup_table: Final = 2
GNTTABOP_dump_table: Final = 3
GNTTABOP_transfer: Final = 4
GNTTABOP_copy: Final = 5
GNTTABOP_query_size: Final = 6
GNTTABOP_unmap_and_replace: Final = 7
GNTTABOP_set_version: Final = 8
GNTTABOP_get_status_frames: Final = 9
GNTTABOP_get_version: Final = 10
GNTTABOP_swap_grant_ref: Final = 11
GNTTABOP_cache_flush: Final = 12

GNTMAP_device_map: Final = 1
GNTMAP_host_map: Final = 2
GNTMAP_readonly: Final = 4
GNTMAP_application_map: Final = 8
GNTMAP_contains_pte: Final = 16
GNTMAP_guest_avail_mask: Final = 0xFFFF0000

GNTCOPY_source_gref: Final = 1
GNTCOPY_dest_gref: Final = 2

GNTTAB_CACHE_CLEAN: Final = 1
GNTTAB_CACHE_INVAL: Final = 2
GNTTAB_CACHE_SOURCE_GREF: Final = 0x80000000

# Each operation of an array has a status of its own.
GNTST_okay: Final = 0
GNTST_general_error: Final = -1
GNTST_bad_domain: Final = -2
GNTST_bad_gntref: Final = -3
GNTST_bad_handle: Final = -4
GNTST_bad_virt_addr: Final = -5
GNTST_bad_dev_addr: Final = -6
GNTST_no_device_space: Final = -7
GNTST_permission_denied: Final = -8
GNTST_bad_page: Final = -9
GNTST_bad_copy_arg: Final = -10
GNTST_address_too_big: Final = -11
GNTST_eagain: Final = -12
GNTST_no_space: Final = -13


class grant_entry_v1(Struct, size=8):
    flags: u16 = 0
    domid: u16 = 0
    frame: u32 = 0


class grant_entry_header(Struct, size=4):
    flags: u16 = 0
    domid: u16 = 0


class grant_entry_v2_full_page(Struct, size=16, anonymous=True):
    hdr: grant_entry_header = ZERO
    pad0: u32 = 0
    frame: u64 = 0


class grant_entry_v2_sub_page(Struct, size=16, anonymous=True):
    hdr: grant_entry_header = ZERO
    page_off: u16 = 0
    length: u16 = 0
    frame: u64 = 0


class grant_entry_v2_transitive(Struct, size=12, anonymous=True):
    hdr: grant_entry_header = ZERO
    trans_domid: u16 = 0
    pad0: u16 = 0
    gref: u32 = 0


class grant_entry_v2(Union, size=16):
    hdr: grant_entry_header = ZERO
    full_page: grant_entry_v2_full_page = ZERO
    sub_page: grant_entry_v2_sub_page = ZERO
    transitive: grant_entry_v2_transitive = ZERO


class gnttab_map_grant_ref(Struct, size=32):
    host_addr: u64 = 0
    flags: u32 = 0
    ref: u32 = 0
    dom: u16 = 0
    status: s16 = 0
    handle: u32 = 0
    dev_bus_addr: u64 = 0


class gnttab_unmap_grant_ref(Struct, size=24):
    host_addr: u64 = 0
    dev_bus_addr: u64 = 0
    handle: u32 = 0
    status: s16 = 0


class gnttab_setup_table(Struct, size=24):
    dom: u16 = 0
    nr_frames: u32 = 0
    status: s16 = 0
    frame_list: Handle = 0


class gnttab_dump_table(Struct, size=4):
    dom: u16 = 0
    status: s16 = 0


class gnttab_transfer(Struct, size=24):
    mfn: u64 = 0
    domid: u16 = 0
    ref: u32 = 0
    status: s16 = 0


class gnttab_copy_ptr_u(Union, size=8, anonymous=True):
    """`ref` where GNTCOPY_source_gref or GNTCOPY_dest_gref says so."""

    ref: u32 = ZERO
    gmfn: u64 = ZERO


class gnttab_copy_ptr(Struct, size=16):
    u: gnttab_copy_ptr_u = ZERO
    domid: u16 = 0
    offset: u16 = 0


class gnttab_copy(Struct, size=40):
    source: gnttab_copy_ptr = ZERO
    dest: gnttab_copy_ptr = ZERO
    len: u16 = 0
    flags: u16 = 0
    status: s16 = 0


class gnttab_query_size(Struct, size=16):
    dom: u16 = 0
    nr_frames: u32 = 0
    max_nr_frames: u32 = 0
    status: s16 = 0


class gnttab_unmap_and_replace(Struct, size=24):
    host_addr: u64 = 0
    new_addr: u64 = 0
    handle: u32 = 0
    status: s16 = 0


class gnttab_set_version(Struct, size=4):
    version: u32 = 0


class gnttab_get_status_frames(Struct, size=16):
    nr_frames: u32 = 0
    dom: u16 = 0
    status: s16 = 0
    frame_list: Handle = 0


class gnttab_get_version(Struct, size=8):
    dom: u16 = 0
    pad: u16 = 0
    version: u32 = 0


class gnttab_swap_grant_ref(Struct, size=12):
    ref_a: u32 = 0
    ref_b: u32 = 0
    status: s16 = 0


class gnttab_cache_flush_a(Union, size=8, anonymous=True):
    dev_bus_addr: u64 = ZERO
    ref: u32 = ZERO


class gnttab_cache_flush(Struct, size=16):
    a: gnttab_cache_flush_a = ZERO
    offset: u16 = 0
    length: u16 = 0
    op: u32 = 0
