"""memory.h: reservations, the physical map of a domain, and resources that one domain maps of another."""

from typing import Final

from hypervisor.abi.layout import ZERO, Handle, Struct, Union, u8, u16, u32, u64
from hypervisor.abi.physdev import physdev_pci_device

XENMEM_increase_reservation: Final = 0
XENMEM_decrease_reservation: Final = 1
XENMEM_populate_physmap: Final = 6
XENMEM_exchange: Final = 11
XENMEM_maximum_ram_page: Final = 2
XENMEM_current_reservation: Final = 3
XENMEM_maximum_reservation: Final = 4
XENMEM_maximum_gpfn: Final = 14
XENMEM_machphys_mfn_list: Final = 5
XENMEM_machphys_compat_mfn_list: Final = 25
XENMEM_machphys_mapping: Final = 12
XENMEM_add_to_physmap: Final = 7
XENMEM_add_to_physmap_batch: Final = 23
XENMEM_remove_from_physmap: Final = 15
XENMEM_memory_map: Final = 9
XENMEM_machine_memory_map: Final = 10
XENMEM_set_memory_map: Final = 13
XENMEM_set_pod_target: Final = 16
XENMEM_get_pod_target: Final = 17
XENMEM_get_sharing_freed_pages: Final = 18
XENMEM_get_sharing_shared_pages: Final = 19
XENMEM_paging_op: Final = 20
XENMEM_access_op: Final = 21
XENMEM_sharing_op: Final = 22
XENMEM_claim_pages: Final = 24
XENMEM_reserved_device_memory_map: Final = 27
XENMEM_acquire_resource: Final = 28
XENMEM_get_vnumainfo: Final = 26

# mem_flags of a reservation. Its low 8 bits limit the address bits, 0 for no limit.
XENMEMF_populate_on_demand: Final = 0x10000
XENMEMF_exact_node_request: Final = 0x20000
XENMEMF_vnode: Final = 0x40000

XENMAPSPACE_shared_info: Final = 0
XENMAPSPACE_grant_table: Final = 1
XENMAPSPACE_gmfn: Final = 2
XENMAPSPACE_gmfn_range: Final = 3
XENMAPSPACE_gmfn_foreign: Final = 4
XENMAPSPACE_dev_mmio: Final = 5
XENMAPIDX_grant_table_status: Final = 0x80000000

XENMEM_paging_op_nominate: Final = 0
XENMEM_paging_op_evict: Final = 1
XENMEM_paging_op_prep: Final = 2
XENMEM_access_op_set_access: Final = 0
XENMEM_access_op_get_access: Final = 1
XENMEM_access_op_set_access_multi: Final = 4
XENMEM_sharing_op_nominate_gfn: Final = 0
XENMEM_sharing_op_nominate_gref: Final = 1
XENMEM_sharing_op_share: Final = 2
XENMEM_sharing_op_debug_gfn: Final = 3
XENMEM_sharing_op_debug_mfn: Final = 4
XENMEM_sharing_op_debug_gref: Final = 5
XENMEM_sharing_op_add_physmap: Final = 6
XENMEM_sharing_op_audit: Final = 7
XENMEM_sharing_op_range_share: Final = 8
XENMEM_sharing_op_fork: Final = 9
XENMEM_sharing_op_fork_reset: Final = 10
XENMEM_SHARING_OP_S_HANDLE_INVALID: Final = -10
XENMEM_SHARING_OP_C_HANDLE_INVALID: Final = -9
XENMEM_SHARING_OP_FIELD_IS_GREF_FLAG: Final = 0x4000000000000000
XENMEM_FORK_WITH_IOMMU_ALLOWED: Final = 1
XENMEM_FORK_BLOCK_INTERRUPTS: Final = 2
XENMEM_FORK_RESET_STATE: Final = 4
XENMEM_FORK_RESET_MEMORY: Final = 8
XENMEM_RDM_ALL: Final = 1
XENMEM_resource_ioreq_server: Final = 0
XENMEM_resource_grant_table: Final = 1
XENMEM_resource_vmtrace_buf: Final = 2
XENMEM_resource_grant_table_id_shared: Final = 0
XENMEM_resource_grant_table_id_status: Final = 1
XENMEM_resource_ioreq_server_frame_bufioreq: Final = 0


class xen_memory_reservation(Struct, size=32):
    extent_start: Handle = 0
    nr_extents: u64 = 0
    extent_order: u32 = 0
    mem_flags: u32 = 0
    domid: u16 = 0


class xen_memory_exchange(Struct, size=72):
    in_: xen_memory_reservation = ZERO
    out: xen_memory_reservation = ZERO
    nr_exchanged: u64 = 0


class xen_memory_domain(Struct, size=2):
    domid: u16 = 0


class xen_machphys_mfn_list(Struct, size=24):
    max_extents: u32 = 0
    extent_start: Handle = 0
    nr_extents: u32 = 0


class xen_machphys_mapping(Struct, size=24):
    v_start: u64 = 0
    v_end: u64 = 0
    max_mfn: u64 = 0


class xen_add_to_physmap(Struct, size=24):
    domid: u16 = 0
    size: u16 = 0
    space: u32 = 0
    idx: u64 = 0
    gpfn: u64 = 0


class xen_add_to_physmap_batch_extra(Union, size=2):
    foreign_domid: u16 = ZERO
    res0: u16 = ZERO


class xen_add_to_physmap_batch(Struct, size=32):
    domid: u16 = 0
    space: u16 = 0
    size: u16 = 0
    u: xen_add_to_physmap_batch_extra = ZERO
    idxs: Handle = 0
    gpfns: Handle = 0
    errs: Handle = 0


class xen_remove_from_physmap(Struct, size=16):
    domid: u16 = 0
    gpfn: u64 = 0


class xen_memory_map(Struct, size=16):
    nr_entries: u32 = 0
    buffer: Handle = 0


class xen_foreign_memory_map(Struct, size=24):
    domid: u16 = 0
    map: xen_memory_map = ZERO


class xen_pod_target(Struct, size=40):
    target_pages: u64 = 0
    tot_pages: u64 = 0
    pod_cache_pages: u64 = 0
    pod_entries: u64 = 0
    domid: u16 = 0


class xen_mem_paging_op(Struct, size=24):
    op: u8 = 0
    domain: u16 = 0
    buffer: Handle = 0
    gfn: u64 = 0


class xen_mem_access_op(Struct, size=32):
    op: u8 = 0
    access: u8 = 0
    domid: u16 = 0
    nr: u32 = 0
    pfn: u64 = 0
    pfn_list: Handle = 0
    access_list: Handle = 0


class xen_reserved_device_memory(Struct, size=16):
    start_pfn: u64 = 0
    nr_pages: u64 = 0


class xen_reserved_device_memory_map_dev(Union, size=4, anonymous=True):
    pci: physdev_pci_device = ZERO


class xen_reserved_device_memory_map(Struct, size=24):
    flags: u32 = 0
    nr_entries: u32 = 0
    buffer: Handle = 0
    dev: xen_reserved_device_memory_map_dev = ZERO


class xen_mem_acquire_resource(Struct, size=32):
    domid: u16 = 0
    type: u16 = 0
    id: u32 = 0
    nr_frames: u32 = 0
    pad: u32 = 0
    frame: u64 = 0
    frame_list: Handle = 0


class xen_vmemrange(Struct, size=24):
    start: u64 = 0
    end: u64 = 0
    flags: u32 = 0
    nid: u32 = 0


class xen_vnuma_topology_info_vdistance(Union, size=8, anonymous=True):
    h: Handle = ZERO
    pad: u64 = ZERO


class xen_vnuma_topology_info_vcpu_to_vnode(Union, size=8, anonymous=True):
    h: Handle = ZERO
    pad: u64 = ZERO


class xen_vnuma_topology_info_vmemrange(Union, size=8, anonymous=True):
    h: Handle = ZERO
    pad: u64 = ZERO


class xen_vnuma_topology_info(Struct, size=40):
    domid: u16 = 0
    pad: u16 = 0
    nr_vnodes: u32 = 0
    nr_vcpus: u32 = 0
    nr_vmemranges: u32 = 0
    vdistance: xen_vnuma_topology_info_vdistance = ZERO
    vcpu_to_vnode: xen_vnuma_topology_info_vcpu_to_vnode = ZERO
    vmemrange: xen_vnuma_topology_info_vmemrange = ZERO
