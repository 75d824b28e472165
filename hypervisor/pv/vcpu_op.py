"""vcpu_op: what a native guest asks for one of its vCPUs.

Follows public/vcpu.h, common_vcpu_op (xen/common/domain.c) and arch_do_vcpu_op of Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi.arch_x86_64 import vcpu_guest_context
from hypervisor.abi.errno import XEN_ENOENT, XEN_ENXIO
from hypervisor.abi.sched import SCHEDOP_shutdown, SHUTDOWN_poweroff, sched_shutdown
from hypervisor.abi.vcpu import (
    RUNSTATE_offline,
    RUNSTATE_runnable,
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    vcpu_register_vcpu_info,
    vcpu_runstate_info,
    vcpu_set_periodic_timer,
    vcpu_set_singleshot_timer,
)
from hypervisor.abi.xen import HYPERVISOR_sched_op, vcpu_time_info
from hypervisor.errors import AlreadyExists, InvalidArgument, Unsupported
from hypervisor.pv import pvclock, runstate
from hypervisor.pv.canonical import U64
from hypervisor.pv.layout import MFN_END, PAGE_SIZE
from hypervisor.pv.start_of_day import start_of_day
from hypervisor.pv.timers import MIN_PERIOD_NS, set_periodic, set_singleshot
from hypervisor.pv.vcpu import UPCALL_PENDING, VCPU_INFO_SIZE
from hypervisor.timers import signed64

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

STIME_DELTA_MAX: Final = (1 << 62) - 1
VCPU_INFO_ALIGNMENT: Final = 8
LEGACY_MAX_VCPUS: Final = 32
PENDING_SEL: Final = 1


def vcpu_op(caller: PvVcpu, operation: int, vcpu_id: int, arg: int) -> int:
    """The hypercall: `arg` is the guest address of the operation's struct, if it has one."""
    vcpus = caller.domain.vcpus
    if vcpu_id >= len(vcpus):
        return -XEN_ENOENT  # no exception: Linux asks for all 8192 that there could be
    handler = _OPERATIONS.get(operation)
    if handler is None:
        raise Unsupported(f"vcpu_op {operation}")
    return handler(caller, vcpus[vcpu_id], arg)


def _read(caller: PvVcpu, arg: int, size: int) -> bytes:
    return caller.domain.page_tables.read(caller.kernel_root, arg, size)


def _initialise(caller: PvVcpu, vcpu: PvVcpu, arg: int) -> int:
    """It stays down. A vCPU beyond those of shared_info needs its vcpu_info first."""
    if vcpu.id >= LEGACY_MAX_VCPUS and not vcpu.info_mfn:
        raise InvalidArgument("vcpu_info", "none", f"a registered one for vCPU {vcpu.id}")
    context = vcpu_guest_context.unpack(_read(caller, arg, vcpu_guest_context.size))
    if vcpu.initialised:
        raise AlreadyExists(f"context of vcpu {vcpu.id}")
    start_of_day(vcpu, context)
    return 0


def _up(_caller: PvVcpu, vcpu: PvVcpu, _arg: int) -> int:
    if not vcpu.initialised:
        raise InvalidArgument("vcpu", vcpu.id, "an initialised one")
    if not vcpu.online:
        vcpu.online = True
        runstate.enter(vcpu, RUNSTATE_runnable, vcpu.domain.now_ns())
    return 0


def _down(caller: PvVcpu, vcpu: PvVcpu, _arg: int) -> int:
    """The last one to go down takes the domain with it."""
    domain = vcpu.domain
    if not any(other.online for other in domain.vcpus if other is not vcpu):
        domain.argument[: sched_shutdown.size] = sched_shutdown(reason=SHUTDOWN_poweroff).pack()
        return domain.hypervisor.request(
            HYPERVISOR_sched_op, (SCHEDOP_shutdown, domain.argument_address), 0, caller.id
        )
    if vcpu.online:
        vcpu.online = False
        runstate.enter(vcpu, RUNSTATE_offline, domain.now_ns())
        domain.reschedule()
    return 0


def _is_up(_caller: PvVcpu, vcpu: PvVcpu, _arg: int) -> int:
    return int(vcpu.online)


def _get_runstate_info(caller: PvVcpu, vcpu: PvVcpu, arg: int) -> int:
    domain = caller.domain
    domain.page_tables.write(caller.kernel_root, arg, runstate.info(vcpu, domain.now_ns()))
    return 0


def _set_periodic_timer(caller: PvVcpu, vcpu: PvVcpu, arg: int) -> int:
    request = vcpu_set_periodic_timer.unpack(_read(caller, arg, vcpu_set_periodic_timer.size))
    if not MIN_PERIOD_NS <= request.period_ns <= STIME_DELTA_MAX:
        raise InvalidArgument("period_ns", request.period_ns, f"{MIN_PERIOD_NS} to {STIME_DELTA_MAX}")
    set_periodic(vcpu, request.period_ns)
    return 0


def _stop_periodic_timer(_caller: PvVcpu, vcpu: PvVcpu, _arg: int) -> int:
    set_periodic(vcpu, 0)
    return 0


def _set_singleshot_timer(caller: PvVcpu, vcpu: PvVcpu, arg: int) -> int:
    """A timeout past 2**63 is negative to Xen, so it is over. VCPU_SSHOTTMR_future does nothing in 4.17."""
    _require_own(caller, vcpu)
    request = vcpu_set_singleshot_timer.unpack(_read(caller, arg, vcpu_set_singleshot_timer.size))
    set_singleshot(vcpu, signed64(request.timeout_abs_ns))
    return 0


def _stop_singleshot_timer(caller: PvVcpu, vcpu: PvVcpu, _arg: int) -> int:
    _require_own(caller, vcpu)
    vcpu.singleshot_ns = None
    return 0


def _require_own(caller: PvVcpu, vcpu: PvVcpu) -> None:
    if vcpu is not caller:
        raise InvalidArgument("vcpu", vcpu.id, "the calling one")


def _register_vcpu_info(caller: PvVcpu, vcpu: PvVcpu, arg: int) -> int:
    """Move vcpu_info to a page of the guest's choice, once; it stays ordinary memory. All counts as pending then, so
    that nothing is lost.
    """
    request = vcpu_register_vcpu_info.unpack(_read(caller, arg, vcpu_register_vcpu_info.size))
    offset = request.offset
    if offset > PAGE_SIZE - VCPU_INFO_SIZE or offset % VCPU_INFO_ALIGNMENT:
        raise InvalidArgument("vcpu_info offset", offset, "aligned, inside a page", errno=XEN_ENXIO)
    if vcpu.info_mfn:
        raise InvalidArgument("vcpu_info", "registered", "once")
    if vcpu is not caller and vcpu.online:
        raise InvalidArgument("vcpu", vcpu.id, "the calling one, or one that is down")
    if request.mfn >= MFN_END:
        raise InvalidArgument("vcpu_info frame", hex(request.mfn), "a frame of the domain's")
    domain = caller.domain
    domain.page_tables.take_writable(request.mfn)
    info = domain.memory.frame(request.mfn)[offset : offset + VCPU_INFO_SIZE]
    info[:] = vcpu.info
    vcpu.place_info(info, request.mfn, offset)
    vcpu.info_words[PENDING_SEL] = U64
    info[UPCALL_PENDING] = 1
    pvclock.publish(vcpu)
    return 0


def _register_runstate_memory_area(caller: PvVcpu, vcpu: PvVcpu, arg: int) -> int:
    area = int.from_bytes(_read(caller, arg, 8), "little")
    if area:
        caller.domain.page_tables.check_writable(caller.kernel_root, area, vcpu_runstate_info.size)
    vcpu.runstate_area = area
    if vcpu is caller:
        runstate.publish(vcpu)
    elif area:
        pvclock.write_area(caller, area, runstate.info(vcpu, caller.domain.now_ns()))
    return 0


def _register_vcpu_time_memory_area(caller: PvVcpu, vcpu: PvVcpu, arg: int) -> int:
    area = int.from_bytes(_read(caller, arg, 8), "little")
    if area:
        caller.domain.page_tables.check_writable(caller.kernel_root, area, vcpu_time_info.size)
    vcpu.time_area = area
    pvclock.publish(vcpu)
    return 0


def _send_nmi(_caller: PvVcpu, vcpu: PvVcpu, arg: int) -> int:
    if arg:
        raise InvalidArgument("argument of VCPUOP_send_nmi", hex(arg), "null")
    vcpu.nmi_pending = True
    vcpu.unblock()
    vcpu.domain.reschedule()
    return 0


def _get_physid(_caller: PvVcpu, vcpu: PvVcpu, _arg: int) -> int:
    raise InvalidArgument("vcpu", vcpu.id, "one of the hardware domain's, pinned")


_OPERATIONS: Final[Mapping[int, Callable[[PvVcpu, PvVcpu, int], int]]] = MappingProxyType(
    {
        VCPUOP_initialise: _initialise,
        VCPUOP_up: _up,
        VCPUOP_down: _down,
        VCPUOP_is_up: _is_up,
        VCPUOP_get_runstate_info: _get_runstate_info,
        VCPUOP_register_runstate_memory_area: _register_runstate_memory_area,
        VCPUOP_set_periodic_timer: _set_periodic_timer,
        VCPUOP_stop_periodic_timer: _stop_periodic_timer,
        VCPUOP_set_singleshot_timer: _set_singleshot_timer,
        VCPUOP_stop_singleshot_timer: _stop_singleshot_timer,
        VCPUOP_register_vcpu_info: _register_vcpu_info,
        VCPUOP_send_nmi: _send_nmi,
        VCPUOP_get_physid: _get_physid,
        VCPUOP_register_vcpu_time_memory_area: _register_vcpu_time_memory_area,
    }
)
