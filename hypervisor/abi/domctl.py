"""domctl.h: how the control domain makes, inspects and ends domains.

All commands are listed; the union has the alternatives of those about domains, vCPUs and their memory.
"""

from typing import Annotated, Final

from hypervisor.abi.arch_x86_64 import xen_arch_domainconfig
from hypervisor.abi.layout import ZERO, Array, Bytes, Handle, Struct, Union, s32, s64, u8, u16, u32, u64
from hypervisor.abi.xen import xenctl_bitmap

XEN_DOMCTL_INTERFACE_VERSION: Final = 0x15

XEN_DOMCTL_createdomain: Final = 1
XEN_DOMCTL_destroydomain: Final = 2
XEN_DOMCTL_pausedomain: Final = 3
XEN_DOMCTL_unpausedomain: Final = 4
XEN_DOMCTL_getdomaininfo: Final = 5
XEN_DOMCTL_setvcpuaffinity: Final = 9
XEN_DOMCTL_shadow_op: Final = 10
XEN_DOMCTL_max_mem: Final = 11
XEN_DOMCTL_setvcpucontext: Final = 12
XEN_DOMCTL_getvcpucontext: Final = 13
XEN_DOMCTL_getvcpuinfo: Final = 14
XEN_DOMCTL_max_vcpus: Final = 15
XEN_DOMCTL_scheduler_op: Final = 16
XEN_DOMCTL_setdomainhandle: Final = 17
XEN_DOMCTL_setdebugging: Final = 18
XEN_DOMCTL_irq_permission: Final = 19
XEN_DOMCTL_iomem_permission: Final = 20
XEN_DOMCTL_ioport_permission: Final = 21
XEN_DOMCTL_hypercall_init: Final = 22
XEN_DOMCTL_settimeoffset: Final = 24
XEN_DOMCTL_getvcpuaffinity: Final = 25
XEN_DOMCTL_real_mode_area: Final = 26
XEN_DOMCTL_resumedomain: Final = 27
XEN_DOMCTL_sendtrigger: Final = 28
XEN_DOMCTL_subscribe: Final = 29
XEN_DOMCTL_gethvmcontext: Final = 33
XEN_DOMCTL_sethvmcontext: Final = 34
XEN_DOMCTL_set_address_size: Final = 35
XEN_DOMCTL_get_address_size: Final = 36
XEN_DOMCTL_assign_device: Final = 37
XEN_DOMCTL_bind_pt_irq: Final = 38
XEN_DOMCTL_memory_mapping: Final = 39
XEN_DOMCTL_ioport_mapping: Final = 40
XEN_DOMCTL_set_ext_vcpucontext: Final = 42
XEN_DOMCTL_get_ext_vcpucontext: Final = 43
XEN_DOMCTL_set_opt_feature: Final = 44
XEN_DOMCTL_test_assign_device: Final = 45
XEN_DOMCTL_set_target: Final = 46
XEN_DOMCTL_deassign_device: Final = 47
XEN_DOMCTL_unbind_pt_irq: Final = 48
XEN_DOMCTL_get_device_group: Final = 50
XEN_DOMCTL_debug_op: Final = 54
XEN_DOMCTL_gethvmcontext_partial: Final = 55
XEN_DOMCTL_vm_event_op: Final = 56
XEN_DOMCTL_mem_sharing_op: Final = 57
XEN_DOMCTL_gettscinfo: Final = 59
XEN_DOMCTL_settscinfo: Final = 60
XEN_DOMCTL_getpageframeinfo3: Final = 61
XEN_DOMCTL_setvcpuextstate: Final = 62
XEN_DOMCTL_getvcpuextstate: Final = 63
XEN_DOMCTL_set_access_required: Final = 64
XEN_DOMCTL_audit_p2m: Final = 65
XEN_DOMCTL_set_virq_handler: Final = 66
XEN_DOMCTL_set_broken_page_p2m: Final = 67
XEN_DOMCTL_setnodeaffinity: Final = 68
XEN_DOMCTL_getnodeaffinity: Final = 69
XEN_DOMCTL_cacheflush: Final = 71
XEN_DOMCTL_get_vcpu_msrs: Final = 72
XEN_DOMCTL_set_vcpu_msrs: Final = 73
XEN_DOMCTL_setvnumainfo: Final = 74
XEN_DOMCTL_psr_cmt_op: Final = 75
XEN_DOMCTL_monitor_op: Final = 77
XEN_DOMCTL_psr_alloc: Final = 78
XEN_DOMCTL_soft_reset: Final = 79
XEN_DOMCTL_vuart_op: Final = 81
XEN_DOMCTL_get_cpu_policy: Final = 82
XEN_DOMCTL_set_cpu_policy: Final = 83
XEN_DOMCTL_vmtrace_op: Final = 84
XEN_DOMCTL_get_paging_mempool_size: Final = 85
XEN_DOMCTL_set_paging_mempool_size: Final = 86
XEN_DOMCTL_gdbsx_guestmemio: Final = 1000
XEN_DOMCTL_gdbsx_pausevcpu: Final = 1001
XEN_DOMCTL_gdbsx_unpausevcpu: Final = 1002
XEN_DOMCTL_gdbsx_domstatus: Final = 1003

XEN_DOMCTL_CDF_hvm: Final = 1
XEN_DOMCTL_CDF_hap: Final = 2
XEN_DOMCTL_CDF_s3_integrity: Final = 4
XEN_DOMCTL_CDF_oos_off: Final = 8
XEN_DOMCTL_CDF_xs_domain: Final = 16
XEN_DOMCTL_CDF_iommu: Final = 32
XEN_DOMCTL_CDF_nested_virt: Final = 64
XEN_DOMCTL_CDF_vpmu: Final = 128
XEN_DOMCTL_CDF_MAX: Final = 128
XEN_DOMCTL_IOMMU_no_sharept: Final = 1
XEN_DOMCTL_IOMMU_MAX: Final = 1
XEN_DOMCTL_GRANT_version_mask: Final = 0xF

XEN_DOMINF_dying: Final = 1
XEN_DOMINF_hvm_guest: Final = 2
XEN_DOMINF_shutdown: Final = 4
XEN_DOMINF_paused: Final = 8
XEN_DOMINF_blocked: Final = 16
XEN_DOMINF_running: Final = 32
XEN_DOMINF_debugged: Final = 64
XEN_DOMINF_xs_domain: Final = 128
XEN_DOMINF_hap: Final = 256
XEN_DOMINF_shutdownmask: Final = 255
XEN_DOMINF_shutdownshift: Final = 16
XEN_INVALID_MAX_VCPU_ID: Final = 0xFFFFFFFF

XEN_VCPUAFFINITY_HARD: Final = 1
XEN_VCPUAFFINITY_SOFT: Final = 2
XEN_VCPUAFFINITY_FORCE: Final = 4
XEN_SCHEDULER_CREDIT: Final = 5
XEN_SCHEDULER_CREDIT2: Final = 6
XEN_SCHEDULER_ARINC653: Final = 7
XEN_SCHEDULER_RTDS: Final = 8
XEN_SCHEDULER_NULL: Final = 9
XEN_DOMCTL_SCHEDOP_putinfo: Final = 0
XEN_DOMCTL_SCHEDOP_getinfo: Final = 1
XEN_DOMCTL_SCHEDOP_putvcpuinfo: Final = 2
XEN_DOMCTL_SCHEDOP_getvcpuinfo: Final = 3
XEN_DOMCTL_SENDTRIGGER_NMI: Final = 0
XEN_DOMCTL_SENDTRIGGER_RESET: Final = 1
XEN_DOMCTL_SENDTRIGGER_INIT: Final = 2
XEN_DOMCTL_SENDTRIGGER_POWER: Final = 3
XEN_DOMCTL_SENDTRIGGER_SLEEP: Final = 4

XEN_DOMCTL_PFINFO_LTAB_SHIFT: Final = 28
XEN_DOMCTL_PFINFO_NOTAB: Final = 0x0
XEN_DOMCTL_PFINFO_L1TAB: Final = 0x10000000
XEN_DOMCTL_PFINFO_L2TAB: Final = 0x20000000
XEN_DOMCTL_PFINFO_L3TAB: Final = 0x30000000
XEN_DOMCTL_PFINFO_L4TAB: Final = 0x40000000
XEN_DOMCTL_PFINFO_LTABTYPE_MASK: Final = 0x70000000
XEN_DOMCTL_PFINFO_LPINTAB: Final = 0x80000000
XEN_DOMCTL_PFINFO_XTAB: Final = 0xF0000000
XEN_DOMCTL_PFINFO_XALLOC: Final = 0xE0000000
XEN_DOMCTL_PFINFO_BROKEN: Final = 0xD0000000
XEN_DOMCTL_PFINFO_LTAB_MASK: Final = 0xF0000000


class xen_domctl_createdomain(Struct, size=64):
    ssidref: u32 = 0
    handle: Annotated[bytes, Bytes(16)] = ZERO
    flags: u32 = 0
    iommu_opts: u32 = 0
    max_vcpus: u32 = 0
    max_evtchn_port: u32 = 0
    max_grant_frames: s32 = 0
    max_maptrack_frames: s32 = 0
    grant_opts: u32 = 0
    vmtrace_size: u32 = 0
    cpupool_id: u32 = 0
    arch: xen_arch_domainconfig = ZERO


class xen_domctl_getdomaininfo(Struct, size=112):
    domain: u16 = 0
    pad1: u16 = 0
    flags: u32 = 0
    tot_pages: u64 = 0
    max_pages: u64 = 0
    outstanding_pages: u64 = 0
    shr_pages: u64 = 0
    paged_pages: u64 = 0
    shared_info_frame: u64 = 0
    cpu_time: u64 = 0
    nr_online_vcpus: u32 = 0
    max_vcpu_id: u32 = 0
    ssidref: u32 = 0
    handle: Annotated[bytes, Bytes(16)] = ZERO
    cpupool: u32 = 0
    gpaddr_bits: u8 = 0
    pad2: Annotated[bytes, Bytes(7)] = ZERO
    arch_config: xen_arch_domainconfig = ZERO


class xen_domctl_getpageframeinfo3(Struct, size=16):
    num: u64 = 0
    array: Handle = 0


class xen_domctl_max_mem(Struct, size=8):
    max_memkb: u64 = 0


class xen_domctl_vcpucontext(Struct, size=16):
    vcpu: u32 = 0
    ctxt: Handle = 0


class xen_domctl_getvcpuinfo(Struct, size=24):
    vcpu: u32 = 0
    online: u8 = 0
    blocked: u8 = 0
    running: u8 = 0
    cpu_time: u64 = 0
    cpu: u32 = 0


class xen_domctl_nodeaffinity(Struct, size=16):
    nodemap: xenctl_bitmap = ZERO


class xen_domctl_vcpuaffinity(Struct, size=40):
    vcpu: u32 = 0
    flags: u32 = 0
    cpumap_hard: xenctl_bitmap = ZERO
    cpumap_soft: xenctl_bitmap = ZERO


class xen_domctl_max_vcpus(Struct, size=4):
    max: u32 = 0


class xen_domctl_sched_credit(Struct, size=4):
    weight: u16 = 0
    cap: u16 = 0


class xen_domctl_sched_credit2(Struct, size=4):
    weight: u16 = 0
    cap: u16 = 0


class xen_domctl_sched_rtds(Struct, size=12):
    period: u32 = 0
    budget: u32 = 0
    flags: u32 = 0


class xen_domctl_scheduler_op_u_v(Struct, size=16, anonymous=True):
    vcpus: Handle = 0
    nr_vcpus: u32 = 0
    padding: u32 = 0


class xen_domctl_scheduler_op_u(Union, size=16, anonymous=True):
    credit: xen_domctl_sched_credit = ZERO
    credit2: xen_domctl_sched_credit2 = ZERO
    rtds: xen_domctl_sched_rtds = ZERO
    v: xen_domctl_scheduler_op_u_v = ZERO


class xen_domctl_scheduler_op(Struct, size=24):
    sched_id: u32 = 0
    cmd: u32 = 0
    u: xen_domctl_scheduler_op_u = ZERO


class xen_domctl_setdomainhandle(Struct, size=16):
    handle: Annotated[bytes, Bytes(16)] = ZERO


class xen_domctl_setdebugging(Struct, size=1):
    enable: u8 = 0


class xen_domctl_hypercall_init(Struct, size=8):
    gmfn: u64 = 0


class xen_domctl_settimeoffset(Struct, size=8):
    time_offset_seconds: s64 = 0


class xen_domctl_address_size(Struct, size=4):
    size: u32 = 0


class xen_domctl_sendtrigger(Struct, size=8):
    trigger: u32 = 0
    vcpu: u32 = 0


class xen_domctl_set_target(Struct, size=2):
    target: u16 = 0


class xen_domctl_subscribe(Struct, size=4):
    port: u32 = 0


class xen_domctl_tsc_info(Struct, size=24):
    tsc_mode: u32 = 0
    gtsc_khz: u32 = 0
    incarnation: u32 = 0
    pad: u32 = 0
    elapsed_nsec: u64 = 0


class xen_domctl_set_virq_handler(Struct, size=4):
    virq: u32 = 0


class xen_domctl_paging_mempool(Struct, size=8):
    size: u64 = 0


class xen_domctl_u(Union, size=128, anonymous=True):
    createdomain: xen_domctl_createdomain = ZERO
    getdomaininfo: xen_domctl_getdomaininfo = ZERO
    getpageframeinfo3: xen_domctl_getpageframeinfo3 = ZERO
    nodeaffinity: xen_domctl_nodeaffinity = ZERO
    vcpuaffinity: xen_domctl_vcpuaffinity = ZERO
    max_mem: xen_domctl_max_mem = ZERO
    vcpucontext: xen_domctl_vcpucontext = ZERO
    getvcpuinfo: xen_domctl_getvcpuinfo = ZERO
    max_vcpus: xen_domctl_max_vcpus = ZERO
    scheduler_op: xen_domctl_scheduler_op = ZERO
    setdomainhandle: xen_domctl_setdomainhandle = ZERO
    setdebugging: xen_domctl_setdebugging = ZERO
    hypercall_init: xen_domctl_hypercall_init = ZERO
    settimeoffset: xen_domctl_settimeoffset = ZERO
    tsc_info: xen_domctl_tsc_info = ZERO
    address_size: xen_domctl_address_size = ZERO
    sendtrigger: xen_domctl_sendtrigger = ZERO
    set_target: xen_domctl_set_target = ZERO
    subscribe: xen_domctl_subscribe = ZERO
    set_virq_handler: xen_domctl_set_virq_handler = ZERO
    paging_mempool: xen_domctl_paging_mempool = ZERO
    pad: Annotated[bytes, Bytes(128)] = ZERO


class xen_domctl(Struct, size=144):
    """Xen refuses any other `interface_version` than its own."""

    cmd: u32 = 0
    interface_version: u32 = 0
    domain: u16 = 0
    _pad: Annotated[tuple[int, ...], Array(u16, 3)] = ZERO
    u: xen_domctl_u = ZERO
