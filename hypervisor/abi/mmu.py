"""xen.h, the part on paging of PV guests: mmu_update, mmuext_op and update_va_mapping."""

from typing import Final

from hypervisor.abi.layout import ZERO, Handle, Struct, Union, u32, u64

# The command is in the low two bits of mmu_update.ptr.
MMU_NORMAL_PT_UPDATE: Final = 0
MMU_MACHPHYS_UPDATE: Final = 1
MMU_PT_UPDATE_PRESERVE_AD: Final = 2
MMU_PT_UPDATE_NO_TRANSLATE: Final = 3

MMUEXT_PIN_L1_TABLE: Final = 0
MMUEXT_PIN_L2_TABLE: Final = 1
MMUEXT_PIN_L3_TABLE: Final = 2
MMUEXT_PIN_L4_TABLE: Final = 3
MMUEXT_UNPIN_TABLE: Final = 4
MMUEXT_NEW_BASEPTR: Final = 5
MMUEXT_TLB_FLUSH_LOCAL: Final = 6
MMUEXT_INVLPG_LOCAL: Final = 7
MMUEXT_TLB_FLUSH_MULTI: Final = 8
MMUEXT_INVLPG_MULTI: Final = 9
MMUEXT_TLB_FLUSH_ALL: Final = 10
MMUEXT_INVLPG_ALL: Final = 11
MMUEXT_FLUSH_CACHE: Final = 12
MMUEXT_SET_LDT: Final = 13
MMUEXT_NEW_USER_BASEPTR: Final = 15
MMUEXT_CLEAR_PAGE: Final = 16
MMUEXT_COPY_PAGE: Final = 17
MMUEXT_FLUSH_CACHE_GLOBAL: Final = 18
MMUEXT_MARK_SUPER: Final = 19
MMUEXT_UNMARK_SUPER: Final = 20

UVMF_NONE: Final = 0
UVMF_TLB_FLUSH: Final = 1
UVMF_INVLPG: Final = 2
UVMF_FLUSHTYPE_MASK: Final = 3
UVMF_MULTI: Final = 0
UVMF_LOCAL: Final = 0
UVMF_ALL: Final = 4


class mmuext_op_arg1(Union, size=8, anonymous=True):
    mfn: u64 = ZERO
    linear_addr: u64 = ZERO


class mmuext_op_arg2(Union, size=8, anonymous=True):
    nr_ents: u32 = ZERO
    vcpumask: Handle = ZERO
    src_mfn: u64 = ZERO


class mmuext_op(Struct, size=24):
    cmd: u32 = 0
    arg1: mmuext_op_arg1 = ZERO
    arg2: mmuext_op_arg2 = ZERO


class mmu_update(Struct, size=16):
    ptr: u64 = 0
    val: u64 = 0
