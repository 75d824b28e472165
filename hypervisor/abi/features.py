"""features.h: the bits of XENVER_get_features."""

from typing import Final

XENFEAT_writable_page_tables: Final = 0
XENFEAT_writable_descriptor_tables: Final = 1
XENFEAT_auto_translated_physmap: Final = 2
XENFEAT_supervisor_mode_kernel: Final = 3
XENFEAT_pae_pgdir_above_4gb: Final = 4
XENFEAT_mmu_pt_update_preserve_ad: Final = 5
XENFEAT_highmem_assist: Final = 6
XENFEAT_gnttab_map_avail_bits: Final = 7
XENFEAT_hvm_callback_vector: Final = 8
XENFEAT_hvm_safe_pvclock: Final = 9
XENFEAT_hvm_pirqs: Final = 10
XENFEAT_dom0: Final = 11
XENFEAT_memory_op_vnode_supported: Final = 13
XENFEAT_ARM_SMCCC_supported: Final = 14
XENFEAT_linux_rsdp_unrestricted: Final = 15
XENFEAT_not_direct_mapped: Final = 16
XENFEAT_direct_mapped: Final = 17
XENFEAT_NR_SUBMAPS: Final = 1
