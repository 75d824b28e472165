"""sysctl.h: what the control domain asks about the machine as a whole.

All commands are listed; the union has the alternatives of those about domains, processors and memory.
"""

from typing import Annotated, Final

from hypervisor.abi.layout import ZERO, Array, Bytes, Handle, Struct, Union, s32, u8, u16, u32, u64
from hypervisor.abi.xen import xenctl_bitmap

XEN_SYSCTL_INTERFACE_VERSION: Final = 0x15

XEN_SYSCTL_readconsole: Final = 1
XEN_SYSCTL_tbuf_op: Final = 2
XEN_SYSCTL_physinfo: Final = 3
XEN_SYSCTL_sched_id: Final = 4
XEN_SYSCTL_perfc_op: Final = 5
XEN_SYSCTL_getdomaininfolist: Final = 6
XEN_SYSCTL_debug_keys: Final = 7
XEN_SYSCTL_getcpuinfo: Final = 8
XEN_SYSCTL_availheap: Final = 9
XEN_SYSCTL_get_pmstat: Final = 10
XEN_SYSCTL_cpu_hotplug: Final = 11
XEN_SYSCTL_pm_op: Final = 12
XEN_SYSCTL_page_offline_op: Final = 14
XEN_SYSCTL_lockprof_op: Final = 15
XEN_SYSCTL_cputopoinfo: Final = 16
XEN_SYSCTL_numainfo: Final = 17
XEN_SYSCTL_cpupool_op: Final = 18
XEN_SYSCTL_scheduler_op: Final = 19
XEN_SYSCTL_coverage_op: Final = 20
XEN_SYSCTL_psr_cmt_op: Final = 21
XEN_SYSCTL_pcitopoinfo: Final = 22
XEN_SYSCTL_psr_alloc: Final = 23
XEN_SYSCTL_get_cpu_levelling_caps: Final = 25
XEN_SYSCTL_get_cpu_featureset: Final = 26
XEN_SYSCTL_livepatch_op: Final = 27
XEN_SYSCTL_get_cpu_policy: Final = 29

XEN_SYSCTL_PHYSCAP_hvm: Final = 1
XEN_SYSCTL_PHYSCAP_pv: Final = 2
XEN_SYSCTL_PHYSCAP_directio: Final = 4
XEN_SYSCTL_PHYSCAP_hap: Final = 8
XEN_SYSCTL_PHYSCAP_shadow: Final = 16
XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share: Final = 32
XEN_SYSCTL_PHYSCAP_vmtrace: Final = 64
XEN_SYSCTL_PHYSCAP_vpmu: Final = 128
XEN_SYSCTL_PHYSCAP_gnttab_v1: Final = 256
XEN_SYSCTL_PHYSCAP_gnttab_v2: Final = 512
XEN_SYSCTL_PHYSCAP_MAX: Final = 512
XEN_SYSCTL_SCHED_RATELIMIT_MAX: Final = 500000
XEN_SYSCTL_SCHED_RATELIMIT_MIN: Final = 100
XEN_SYSCTL_CSCHED_TSLICE_MAX: Final = 1000
XEN_SYSCTL_CSCHED_TSLICE_MIN: Final = 1
XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US: Final = 100000
XEN_SYSCTL_SCHEDOP_putinfo: Final = 0
XEN_SYSCTL_SCHEDOP_getinfo: Final = 1
XEN_SYSCTL_CPUPOOL_OP_CREATE: Final = 1
XEN_SYSCTL_CPUPOOL_OP_DESTROY: Final = 2
XEN_SYSCTL_CPUPOOL_OP_INFO: Final = 3
XEN_SYSCTL_CPUPOOL_OP_ADDCPU: Final = 4
XEN_SYSCTL_CPUPOOL_OP_RMCPU: Final = 5
XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN: Final = 6
XEN_SYSCTL_CPUPOOL_OP_FREEINFO: Final = 7
XEN_SYSCTL_CPUPOOL_PAR_ANY: Final = 0xFFFFFFFF

XEN_INVALID_CORE_ID: Final = 0xFFFFFFFF
XEN_INVALID_SOCKET_ID: Final = 0xFFFFFFFF
XEN_INVALID_NODE_ID: Final = 0xFFFFFFFF
XEN_INVALID_MEM_SZ: Final = 0xFFFFFFFF
XEN_INVALID_NODE_DIST: Final = 0xFFFFFFFF
XEN_INVALID_DEV: Final = 0xFFFFFFFE


class xen_sysctl_readconsole(Struct, size=24):
    clear: u8 = 0
    incremental: u8 = 0
    pad0: u8 = 0
    pad1: u8 = 0
    index: u32 = 0
    buffer: Handle = 0
    count: u32 = 0


class xen_sysctl_physinfo(Struct, size=112):
    threads_per_core: u32 = 0
    cores_per_socket: u32 = 0
    nr_cpus: u32 = 0
    max_cpu_id: u32 = 0
    nr_nodes: u32 = 0
    max_node_id: u32 = 0
    cpu_khz: u32 = 0
    capabilities: u32 = 0
    arch_capabilities: u32 = 0
    pad: u32 = 0
    total_pages: u64 = 0
    free_pages: u64 = 0
    scrub_pages: u64 = 0
    outstanding_pages: u64 = 0
    max_mfn: u64 = 0
    hw_cap: Annotated[tuple[int, ...], Array(u32, 8)] = ZERO


class xen_sysctl_sched_id(Struct, size=4):
    sched_id: u32 = 0


class xen_sysctl_getdomaininfolist(Struct, size=24):
    first_domain: u16 = 0
    max_domains: u32 = 0
    buffer: Handle = 0
    num_domains: u32 = 0


class xen_sysctl_debug_keys(Struct, size=16):
    keys: Handle = 0
    nr_keys: u32 = 0


class xen_sysctl_cpuinfo(Struct, size=8):
    idletime: u64 = 0


class xen_sysctl_getcpuinfo(Struct, size=24):
    max_cpus: u32 = 0
    info: Handle = 0
    nr_cpus: u32 = 0


class xen_sysctl_availheap(Struct, size=24):
    min_bitwidth: u32 = 0
    max_bitwidth: u32 = 0
    node: s32 = 0
    avail_bytes: u64 = 0


class xen_sysctl_cputopo(Struct, size=12):
    core: u32 = 0
    socket: u32 = 0
    node: u32 = 0


class xen_sysctl_cputopoinfo(Struct, size=16):
    num_cpus: u32 = 0
    cputopo: Handle = 0


class xen_sysctl_meminfo(Struct, size=16):
    memsize: u64 = 0
    memfree: u64 = 0


class xen_sysctl_numainfo(Struct, size=24):
    num_nodes: u32 = 0
    meminfo: Handle = 0
    distance: Handle = 0


class xen_sysctl_cpupool_op(Struct, size=40):
    op: u32 = 0
    cpupool_id: u32 = 0
    sched_id: u32 = 0
    domid: u32 = 0
    cpu: u32 = 0
    n_dom: u32 = 0
    cpumap: xenctl_bitmap = ZERO


class xen_sysctl_credit_schedule(Struct, size=12):
    tslice_ms: u32 = 0
    ratelimit_us: u32 = 0
    vcpu_migr_delay_us: u32 = 0


class xen_sysctl_credit2_schedule(Struct, size=4):
    ratelimit_us: u32 = 0


class xen_sysctl_sched_arinc653(Struct, size=8):
    schedule: Handle = 0


class xen_sysctl_scheduler_op_u(Union, size=16, anonymous=True):
    sched_arinc653: xen_sysctl_sched_arinc653 = ZERO
    sched_credit: xen_sysctl_credit_schedule = ZERO
    sched_credit2: xen_sysctl_credit2_schedule = ZERO


class xen_sysctl_scheduler_op(Struct, size=32):
    cpupool_id: u32 = 0
    sched_id: u32 = 0
    cmd: u32 = 0
    u: xen_sysctl_scheduler_op_u = ZERO


class xen_sysctl_u(Union, size=128, anonymous=True):
    readconsole: xen_sysctl_readconsole = ZERO
    physinfo: xen_sysctl_physinfo = ZERO
    cputopoinfo: xen_sysctl_cputopoinfo = ZERO
    numainfo: xen_sysctl_numainfo = ZERO
    sched_id: xen_sysctl_sched_id = ZERO
    getdomaininfolist: xen_sysctl_getdomaininfolist = ZERO
    debug_keys: xen_sysctl_debug_keys = ZERO
    getcpuinfo: xen_sysctl_getcpuinfo = ZERO
    availheap: xen_sysctl_availheap = ZERO
    cpupool_op: xen_sysctl_cpupool_op = ZERO
    scheduler_op: xen_sysctl_scheduler_op = ZERO
    pad: Annotated[bytes, Bytes(128)] = ZERO


class xen_sysctl(Struct, size=136):
    """Xen refuses any other `interface_version` than its own."""

    cmd: u32 = 0
    interface_version: u32 = 0
    u: xen_sysctl_u = ZERO
