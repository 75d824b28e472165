"""vcpu.h: bringing vCPUs up, their timers, and the areas of memory that Xen keeps up to date for each."""

from typing import Annotated, Final

from hypervisor.abi.layout import ZERO, Array, Handle, Struct, Union, s32, u32, u64

VCPUOP_initialise: Final = 0
VCPUOP_up: Final = 1
VCPUOP_down: Final = 2
VCPUOP_is_up: Final = 3
VCPUOP_get_runstate_info: Final = 4
VCPUOP_register_runstate_memory_area: Final = 5
VCPUOP_set_periodic_timer: Final = 6
VCPUOP_stop_periodic_timer: Final = 7
VCPUOP_set_singleshot_timer: Final = 8
VCPUOP_stop_singleshot_timer: Final = 9
VCPUOP_register_vcpu_info: Final = 10
VCPUOP_send_nmi: Final = 11
VCPUOP_get_physid: Final = 12
VCPUOP_register_vcpu_time_memory_area: Final = 13

XEN_RUNSTATE_UPDATE: Final = 0x8000000000000000
RUNSTATE_running: Final = 0
RUNSTATE_runnable: Final = 1
RUNSTATE_blocked: Final = 2
RUNSTATE_offline: Final = 3

VCPU_SSHOTTMR_future: Final = 1


class vcpu_runstate_info(Struct, size=48):
    """`time` is indexed by RUNSTATE_*, in ns."""

    state: s32 = 0
    state_entry_time: u64 = 0
    time: Annotated[tuple[int, ...], Array(u64, 4)] = ZERO


class vcpu_register_runstate_memory_area_addr(Union, size=8, anonymous=True):
    h: Handle = ZERO
    v: u64 = ZERO
    p: u64 = ZERO


class vcpu_register_runstate_memory_area(Struct, size=8):
    addr: vcpu_register_runstate_memory_area_addr = ZERO


class vcpu_set_periodic_timer(Struct, size=8):
    period_ns: u64 = 0


class vcpu_set_singleshot_timer(Struct, size=16):
    timeout_abs_ns: u64 = 0
    flags: u32 = 0


class vcpu_register_vcpu_info(Struct, size=16):
    mfn: u64 = 0
    offset: u32 = 0
    rsvd: u32 = 0


class vcpu_get_physid(Struct, size=8):
    phys_id: u64 = 0


class vcpu_register_time_memory_area_addr(Union, size=8, anonymous=True):
    h: Handle = ZERO
    v: u64 = ZERO
    p: u64 = ZERO


class vcpu_register_time_memory_area(Struct, size=8):
    addr: vcpu_register_time_memory_area_addr = ZERO
