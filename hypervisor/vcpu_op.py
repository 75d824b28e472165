"""vcpu_op: what a guest asks for one of its vCPUs: up, down, timers, and the areas of memory kept up to date
for it.

Follows public/vcpu.h, common_vcpu_op and do_vcpu_op of Xen 4.17. VCPUOP_initialise is not offered: what a
vCPU executes is said by whoever runs the domain, so that only the vCPUs which are up from the start can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi.errno import XEN_ENXIO
from hypervisor.abi.sched import SHUTDOWN_poweroff
from hypervisor.abi.vcpu import (
    VCPUOP_down,
    VCPUOP_get_runstate_info,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
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
from hypervisor.abi.xen import vcpu_time_info
from hypervisor.errors import BadGpfn, InvalidArgument, NotFound, Unsupported
from hypervisor.event_2l import ALL_BITS
from hypervisor.extent import PAGE_SIZE
from hypervisor.timers import MILLISECOND_NS, signed64
from hypervisor.vcpu.clock import publish_runstate, publish_system_time, runstate_info
from hypervisor.vcpu.state import PENDING_SEL, VCPU_INFO_SIZE

if TYPE_CHECKING:
    from hypervisor.vcpu.state import Vcpu

STIME_DELTA_MAX: Final = (1 << 62) - 1
VCPU_INFO_ALIGNMENT: Final = 8


def vcpu_op(caller: Vcpu, operation: int, vcpu_id: int, arg: int) -> int:
    """The hypercall: `arg` is the guest address of the operation's struct, if it has one."""
    vcpus = caller.domain.vcpus
    if vcpu_id >= len(vcpus):
        raise NotFound(f"vcpu {vcpu_id} of domain {caller.domain.domid}")
    handler = _OPERATIONS.get(operation)
    if handler is None:
        raise Unsupported(f"vcpu_op {operation}")
    return handler(caller, vcpus[vcpu_id], arg)


def _up(_caller: Vcpu, vcpu: Vcpu, _arg: int) -> int:
    if not vcpu.initialised:
        raise InvalidArgument("vcpu", vcpu.id, "an initialised one")
    if not vcpu.online:
        vcpu.online = True
        vcpu.unblock()
    return 0


def _down(_caller: Vcpu, vcpu: Vcpu, _arg: int) -> int:
    """The last one to go down takes the domain with it."""
    domain = vcpu.domain
    if any(other.online for other in domain.vcpus if other is not vcpu):
        vcpu.online = False
    else:
        domain.shutdown(SHUTDOWN_poweroff)
    return 0


def _is_up(_caller: Vcpu, vcpu: Vcpu, _arg: int) -> int:
    return int(vcpu.online)


def _get_runstate_info(caller: Vcpu, vcpu: Vcpu, arg: int) -> int:
    now_ns = caller.domain.machine.host.now_ns()
    caller.access.write_struct(arg, runstate_info(vcpu, now_ns))
    return 0


def _set_periodic_timer(caller: Vcpu, vcpu: Vcpu, arg: int) -> int:
    period_ns = caller.access.read_struct(vcpu_set_periodic_timer, arg).period_ns
    if not MILLISECOND_NS <= period_ns <= STIME_DELTA_MAX:
        raise InvalidArgument("period_ns", period_ns, f"{MILLISECOND_NS} to {STIME_DELTA_MAX}")
    vcpu.timers.set_periodic(period_ns)
    return 0


def _stop_periodic_timer(_caller: Vcpu, vcpu: Vcpu, _arg: int) -> int:
    vcpu.timers.set_periodic(0)
    return 0


def _set_singleshot_timer(caller: Vcpu, vcpu: Vcpu, arg: int) -> int:
    """A timeout past 2**63 is negative to Xen, so it is over. VCPU_SSHOTTMR_future does nothing in 4.17."""
    _require_own(caller, vcpu)
    timeout_ns = caller.access.read_struct(vcpu_set_singleshot_timer, arg).timeout_abs_ns
    vcpu.timers.set_singleshot(signed64(timeout_ns))
    return 0


def _stop_singleshot_timer(caller: Vcpu, vcpu: Vcpu, _arg: int) -> int:
    _require_own(caller, vcpu)
    vcpu.timers.stop_singleshot()
    return 0


def _require_own(caller: Vcpu, vcpu: Vcpu) -> None:
    if vcpu is not caller:
        raise InvalidArgument("vcpu", vcpu.id, "the calling one")


def _register_vcpu_info(caller: Vcpu, vcpu: Vcpu, arg: int) -> int:
    """Move vcpu_info to a page of the guest's choice, once. All counts as pending then, so none is lost."""
    request = caller.access.read_struct(vcpu_register_vcpu_info, arg)
    if request.offset > PAGE_SIZE - VCPU_INFO_SIZE or request.offset % VCPU_INFO_ALIGNMENT:
        raise InvalidArgument("vcpu_info offset", request.offset, "aligned, inside a page", errno=XEN_ENXIO)
    if vcpu.info_frame is not None:
        raise InvalidArgument("vcpu_info", "registered", "once")
    if vcpu is not caller and vcpu.online:
        raise InvalidArgument("vcpu", vcpu.id, "the calling one, or one that is down")
    _move_info(vcpu, request.mfn, request.offset)
    publish_system_time(vcpu)
    return 0


def _move_info(vcpu: Vcpu, gpfn: int, offset: int) -> None:
    domain = vcpu.domain
    frame = domain.memory.mfn(gpfn)
    if frame is None or domain.memory.mapped(gpfn) is not None:
        raise BadGpfn(domain.domid, gpfn, "not RAM of its own")
    domain.machine.frames.acquire(frame, domain.domid, writable=True)
    info = domain.machine.frames.view(frame)[offset : offset + VCPU_INFO_SIZE]
    info[:] = vcpu.info
    vcpu.place_info(info, frame)
    vcpu.info_words[PENDING_SEL] = ALL_BITS
    vcpu.mark_events_pending()


def _register_runstate_memory_area(caller: Vcpu, vcpu: Vcpu, arg: int) -> int:
    memory = caller.access
    address = memory.read_u64(arg)
    if address:
        memory.check_writable(address, vcpu_runstate_info.size)
    vcpu.runstate_area = address
    if address:
        publish_runstate(vcpu, caller.domain.machine.host.now_ns())
    return 0


def _register_vcpu_time_memory_area(caller: Vcpu, vcpu: Vcpu, arg: int) -> int:
    memory = caller.access
    address = memory.read_u64(arg)
    if address:
        memory.check_writable(address, vcpu_time_info.size)
    vcpu.time_area = address
    publish_system_time(vcpu)
    return 0


_OPERATIONS: Final[Mapping[int, Callable[[Vcpu, Vcpu, int], int]]] = MappingProxyType(
    {
        VCPUOP_up: _up,
        VCPUOP_down: _down,
        VCPUOP_is_up: _is_up,
        VCPUOP_get_runstate_info: _get_runstate_info,
        VCPUOP_set_periodic_timer: _set_periodic_timer,
        VCPUOP_stop_periodic_timer: _stop_periodic_timer,
        VCPUOP_set_singleshot_timer: _set_singleshot_timer,
        VCPUOP_stop_singleshot_timer: _stop_singleshot_timer,
        VCPUOP_register_vcpu_info: _register_vcpu_info,
        VCPUOP_register_runstate_memory_area: _register_runstate_memory_area,
        VCPUOP_register_vcpu_time_memory_area: _register_vcpu_time_memory_area,
    }
)
