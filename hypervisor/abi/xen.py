"""xen.h: hypercall numbers, virtual interrupts, domain ids, and the page that Xen shares with a domain.

Xen owns vcpu_time_info and the wc_ fields; it sets pending and selector bits, the guest clears them and owns
the masks. Paging operations (MMU_, MMUEXT_) are in mmu.py, start_info is in start_info.py.
"""

from typing import Annotated, Final

from hypervisor.abi.arch_x86_64 import XEN_LEGACY_MAX_VCPUS, arch_shared_info, arch_vcpu_info
from hypervisor.abi.layout import ZERO, Array, Bytes, Handle, Struct, s8, u8, u32, u64

# Hypercall numbers, in Xen's spelling.
__HYPERVISOR_set_trap_table: Final = 0
__HYPERVISOR_mmu_update: Final = 1
__HYPERVISOR_set_gdt: Final = 2
__HYPERVISOR_stack_switch: Final = 3
__HYPERVISOR_set_callbacks: Final = 4
__HYPERVISOR_fpu_taskswitch: Final = 5
__HYPERVISOR_sched_op_compat: Final = 6
__HYPERVISOR_platform_op: Final = 7
__HYPERVISOR_set_debugreg: Final = 8
__HYPERVISOR_get_debugreg: Final = 9
__HYPERVISOR_update_descriptor: Final = 10
__HYPERVISOR_memory_op: Final = 12
__HYPERVISOR_multicall: Final = 13
__HYPERVISOR_update_va_mapping: Final = 14
__HYPERVISOR_set_timer_op: Final = 15
__HYPERVISOR_event_channel_op_compat: Final = 16
__HYPERVISOR_xen_version: Final = 17
__HYPERVISOR_console_io: Final = 18
__HYPERVISOR_physdev_op_compat: Final = 19
__HYPERVISOR_grant_table_op: Final = 20
__HYPERVISOR_vm_assist: Final = 21
__HYPERVISOR_update_va_mapping_otherdomain: Final = 22
__HYPERVISOR_iret: Final = 23
__HYPERVISOR_vcpu_op: Final = 24
__HYPERVISOR_set_segment_base: Final = 25
__HYPERVISOR_mmuext_op: Final = 26
__HYPERVISOR_xsm_op: Final = 27
__HYPERVISOR_nmi_op: Final = 28
__HYPERVISOR_sched_op: Final = 29
__HYPERVISOR_callback_op: Final = 30
__HYPERVISOR_xenoprof_op: Final = 31
__HYPERVISOR_event_channel_op: Final = 32
__HYPERVISOR_physdev_op: Final = 33
__HYPERVISOR_hvm_op: Final = 34
__HYPERVISOR_sysctl: Final = 35
__HYPERVISOR_domctl: Final = 36
__HYPERVISOR_kexec_op: Final = 37
__HYPERVISOR_tmem_op: Final = 38
__HYPERVISOR_argo_op: Final = 39
__HYPERVISOR_xenpmu_op: Final = 40
__HYPERVISOR_dm_op: Final = 41
__HYPERVISOR_hypfs_op: Final = 42
__HYPERVISOR_arch_0: Final = 48
__HYPERVISOR_arch_1: Final = 49
__HYPERVISOR_arch_2: Final = 50
__HYPERVISOR_arch_3: Final = 51
__HYPERVISOR_arch_4: Final = 52
__HYPERVISOR_arch_5: Final = 53
__HYPERVISOR_arch_6: Final = 54
__HYPERVISOR_arch_7: Final = 55

# The same for use inside a class, where Python mangles names that start with two underscores.
HYPERVISOR_set_trap_table: Final = __HYPERVISOR_set_trap_table
HYPERVISOR_mmu_update: Final = __HYPERVISOR_mmu_update
HYPERVISOR_set_gdt: Final = __HYPERVISOR_set_gdt
HYPERVISOR_stack_switch: Final = __HYPERVISOR_stack_switch
HYPERVISOR_set_callbacks: Final = __HYPERVISOR_set_callbacks
HYPERVISOR_fpu_taskswitch: Final = __HYPERVISOR_fpu_taskswitch
HYPERVISOR_sched_op_compat: Final = __HYPERVISOR_sched_op_compat
HYPERVISOR_platform_op: Final = __HYPERVISOR_platform_op
HYPERVISOR_set_debugreg: Final = __HYPERVISOR_set_debugreg
HYPERVISOR_get_debugreg: Final = __HYPERVISOR_get_debugreg
HYPERVISOR_update_descriptor: Final = __HYPERVISOR_update_descriptor
HYPERVISOR_memory_op: Final = __HYPERVISOR_memory_op
HYPERVISOR_multicall: Final = __HYPERVISOR_multicall
HYPERVISOR_update_va_mapping: Final = __HYPERVISOR_update_va_mapping
HYPERVISOR_set_timer_op: Final = __HYPERVISOR_set_timer_op
HYPERVISOR_event_channel_op_compat: Final = __HYPERVISOR_event_channel_op_compat
HYPERVISOR_xen_version: Final = __HYPERVISOR_xen_version
HYPERVISOR_console_io: Final = __HYPERVISOR_console_io
HYPERVISOR_physdev_op_compat: Final = __HYPERVISOR_physdev_op_compat
HYPERVISOR_grant_table_op: Final = __HYPERVISOR_grant_table_op
HYPERVISOR_vm_assist: Final = __HYPERVISOR_vm_assist
HYPERVISOR_update_va_mapping_otherdomain: Final = __HYPERVISOR_update_va_mapping_otherdomain
HYPERVISOR_iret: Final = __HYPERVISOR_iret
HYPERVISOR_vcpu_op: Final = __HYPERVISOR_vcpu_op
HYPERVISOR_set_segment_base: Final = __HYPERVISOR_set_segment_base
HYPERVISOR_mmuext_op: Final = __HYPERVISOR_mmuext_op
HYPERVISOR_xsm_op: Final = __HYPERVISOR_xsm_op
HYPERVISOR_nmi_op: Final = __HYPERVISOR_nmi_op
HYPERVISOR_sched_op: Final = __HYPERVISOR_sched_op
HYPERVISOR_callback_op: Final = __HYPERVISOR_callback_op
HYPERVISOR_xenoprof_op: Final = __HYPERVISOR_xenoprof_op
HYPERVISOR_event_channel_op: Final = __HYPERVISOR_event_channel_op
HYPERVISOR_physdev_op: Final = __HYPERVISOR_physdev_op
HYPERVISOR_hvm_op: Final = __HYPERVISOR_hvm_op
HYPERVISOR_sysctl: Final = __HYPERVISOR_sysctl
HYPERVISOR_domctl: Final = __HYPERVISOR_domctl
HYPERVISOR_kexec_op: Final = __HYPERVISOR_kexec_op
HYPERVISOR_tmem_op: Final = __HYPERVISOR_tmem_op
HYPERVISOR_argo_op: Final = __HYPERVISOR_argo_op
HYPERVISOR_xenpmu_op: Final = __HYPERVISOR_xenpmu_op
HYPERVISOR_dm_op: Final = __HYPERVISOR_dm_op
HYPERVISOR_hypfs_op: Final = __HYPERVISOR_hypfs_op
HYPERVISOR_arch_0: Final = __HYPERVISOR_arch_0
HYPERVISOR_arch_1: Final = __HYPERVISOR_arch_1
HYPERVISOR_arch_2: Final = __HYPERVISOR_arch_2
HYPERVISOR_arch_3: Final = __HYPERVISOR_arch_3
HYPERVISOR_arch_4: Final = __HYPERVISOR_arch_4
HYPERVISOR_arch_5: Final = __HYPERVISOR_arch_5
HYPERVISOR_arch_6: Final = __HYPERVISOR_arch_6
HYPERVISOR_arch_7: Final = __HYPERVISOR_arch_7

# Virtual interrupts. TIMER, DEBUG, XENOPROF and XENPMU are bound once per vCPU, the others once per domain.
VIRQ_TIMER: Final = 0
VIRQ_DEBUG: Final = 1
VIRQ_CONSOLE: Final = 2
VIRQ_DOM_EXC: Final = 3
VIRQ_TBUF: Final = 4
VIRQ_DEBUGGER: Final = 6
VIRQ_XENOPROF: Final = 7
VIRQ_CON_RING: Final = 8
VIRQ_PCPU_STATE: Final = 9
VIRQ_MEM_EVENT: Final = 10
VIRQ_ARGO: Final = 11
VIRQ_ENOMEM: Final = 12
VIRQ_XENPMU: Final = 13
VIRQ_ARCH_0: Final = 16
VIRQ_ARCH_1: Final = 17
VIRQ_ARCH_2: Final = 18
VIRQ_ARCH_3: Final = 19
VIRQ_ARCH_4: Final = 20
VIRQ_ARCH_5: Final = 21
VIRQ_ARCH_6: Final = 22
VIRQ_ARCH_7: Final = 23
NR_VIRQS: Final = 24

CONSOLEIO_write: Final = 0
CONSOLEIO_read: Final = 1

VMASST_CMD_enable: Final = 0
VMASST_CMD_disable: Final = 1
VMASST_TYPE_4gb_segments: Final = 0
VMASST_TYPE_4gb_segments_notify: Final = 1
VMASST_TYPE_writable_pagetables: Final = 2
VMASST_TYPE_pae_extended_cr3: Final = 3
VMASST_TYPE_architectural_iopl: Final = 4
VMASST_TYPE_runstate_update_flag: Final = 5
VMASST_TYPE_m2p_strict: Final = 32

DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_SELF: Final = 0x7FF0
DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2
DOMID_COW: Final = 0x7FF3
DOMID_INVALID: Final = 0x7FF4
DOMID_IDLE: Final = 0x7FFF
DOMID_MASK: Final = 0x7FFF

XEN_PVCLOCK_TSC_STABLE_BIT: Final = 1
XEN_PVCLOCK_GUEST_STOPPED: Final = 2


class multicall_entry(Struct, size=64):
    op: u64 = 0
    result: u64 = 0
    args: Annotated[tuple[int, ...], Array(u64, 6)] = ZERO


class vcpu_time_info(Struct, size=32):
    """The version is odd while Xen updates the rest."""

    version: u32 = 0
    pad0: u32 = 0
    tsc_timestamp: u64 = 0
    system_time: u64 = 0
    tsc_to_system_mul: u32 = 0
    tsc_shift: s8 = 0
    flags: u8 = 0
    pad1: Annotated[bytes, Bytes(2)] = ZERO


class vcpu_info(Struct, size=64):
    """The guest clears evtchn_upcall_pending before it scans evtchn_pending_sel; it alone writes the mask."""

    evtchn_upcall_pending: u8 = 0
    evtchn_upcall_mask: u8 = 0
    evtchn_pending_sel: u64 = 0
    arch: arch_vcpu_info = ZERO
    time: vcpu_time_info = ZERO


_vcpu_info = vcpu_info  # shared_info has a field of this name


class shared_info(Struct, size=3136):
    vcpu_info: Annotated[tuple[_vcpu_info, ...], Array(_vcpu_info, XEN_LEGACY_MAX_VCPUS)] = ZERO
    evtchn_pending: Annotated[tuple[int, ...], Array(u64, 64)] = ZERO
    evtchn_mask: Annotated[tuple[int, ...], Array(u64, 64)] = ZERO
    wc_version: u32 = 0
    wc_sec: u32 = 0
    wc_nsec: u32 = 0
    wc_sec_hi: u32 = 0
    arch: arch_shared_info = ZERO


class xenctl_bitmap(Struct, size=16):
    bitmap: Handle = 0
    nr_bits: u32 = 0
