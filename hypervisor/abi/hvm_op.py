"""hvm/hvm_op.h: operations on auto-translated domains. Alternate p2m views are listed by number alone."""

from typing import Annotated, Final

from hypervisor.abi.layout import ZERO, Array, Struct, u8, u16, u32, u64

HVMOP_set_param: Final = 0
HVMOP_get_param: Final = 1
HVMOP_flush_tlbs: Final = 5
HVMOP_pagetable_dying: Final = 9
HVMOP_get_time: Final = 10
HVMOP_xentrace: Final = 11
HVMOP_set_mem_access: Final = 12
HVMOP_get_mem_access: Final = 13
HVMOP_get_mem_type: Final = 15
HVMOP_set_evtchn_upcall_vector: Final = 23
HVMOP_guest_request_vm_event: Final = 24
HVMOP_altp2m: Final = 25

HVMOP_ALTP2M_INTERFACE_VERSION: Final = 0x1
HVMOP_altp2m_get_domain_state: Final = 1
HVMOP_altp2m_set_domain_state: Final = 2
HVMOP_altp2m_vcpu_enable_notify: Final = 3
HVMOP_altp2m_create_p2m: Final = 4
HVMOP_altp2m_destroy_p2m: Final = 5
HVMOP_altp2m_switch_p2m: Final = 6
HVMOP_altp2m_set_mem_access: Final = 7
HVMOP_altp2m_change_gfn: Final = 8
HVMOP_altp2m_set_mem_access_multi: Final = 9
HVMOP_altp2m_set_suppress_ve: Final = 10
HVMOP_altp2m_get_suppress_ve: Final = 11
HVMOP_altp2m_get_mem_access: Final = 12
HVMOP_altp2m_vcpu_disable_notify: Final = 13
HVMOP_altp2m_get_p2m_idx: Final = 14
HVMOP_altp2m_set_suppress_ve_multi: Final = 15
HVMOP_altp2m_set_visibility: Final = 16

HVM_IOREQSRV_BUFIOREQ_OFF: Final = 0
HVM_IOREQSRV_BUFIOREQ_LEGACY: Final = 1
HVM_IOREQSRV_BUFIOREQ_ATOMIC: Final = 2


class xen_hvm_param(Struct, size=16):
    domid: u16 = 0
    pad: u16 = 0
    index: u32 = 0
    value: u64 = 0


class xen_hvm_pagetable_dying(Struct, size=16):
    domid: u16 = 0
    pad: Annotated[tuple[int, ...], Array(u16, 3)] = ZERO
    gpa: u64 = 0


class xen_hvm_get_time(Struct, size=8):
    now: u64 = 0


class xen_hvm_get_mem_type(Struct, size=16):
    domid: u16 = 0
    mem_type: u16 = 0
    pad: Annotated[tuple[int, ...], Array(u16, 2)] = ZERO
    pfn: u64 = 0


class xen_hvm_evtchn_upcall_vector(Struct, size=8):
    vcpu: u32 = 0
    vector: u8 = 0
