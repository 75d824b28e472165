"""Scheduling, timers, version, emergency console and HVM parameters (public/sched.h, version.h,
hvm/hvm_op.h), as calls.
"""

from typing import Final

from hypervisor.abi import hvm_op, sched, version
from hypervisor.abi.xen import (
    DOMID_SELF,
    CONSOLEIO_write,
    HYPERVISOR_console_io,
    HYPERVISOR_hvm_op,
    HYPERVISOR_sched_op,
    HYPERVISOR_set_timer_op,
    HYPERVISOR_xen_version,
)
from kernel.hypercalls.arguments import ArgumentArea
from kernel.hypercalls.call import Pending, itself, nothing

_VERSION_BITS: Final = 16


def sched_yield(_area: ArgumentArea) -> Pending[None]:
    """Let other vCPUs run first."""
    return Pending("SCHEDOP_yield", HYPERVISOR_sched_op, (sched.SCHEDOP_yield, 0), nothing, None)


def sched_shutdown(area: ArgumentArea, reason: int) -> Pending[None]:
    """End this domain for a SHUTDOWN_* reason."""
    value = sched.sched_shutdown(reason=reason)
    args = (sched.SCHEDOP_shutdown, area.place(value))
    return Pending("SCHEDOP_shutdown", HYPERVISOR_sched_op, args, nothing, value)


def sched_remote_shutdown(area: ArgumentArea, domid: int, reason: int) -> Pending[None]:
    """Declare another domain shut down."""
    value = sched.sched_remote_shutdown(domain_id=domid, reason=reason)
    args = (sched.SCHEDOP_remote_shutdown, area.place(value))
    return Pending("SCHEDOP_remote_shutdown", HYPERVISOR_sched_op, args, nothing, value)


def set_timer(_area: ArgumentArea, deadline_ns: int) -> Pending[None]:
    """Raise VIRQ_TIMER at this system time; 0 for never."""
    return Pending("set_timer_op", HYPERVISOR_set_timer_op, (deadline_ns,), nothing, deadline_ns)


def xen_version(_area: ArgumentArea) -> Pending[tuple[int, int]]:
    """Xen's major and minor version."""
    return Pending("XENVER_version", HYPERVISOR_xen_version, (version.XENVER_version, 0), _major_minor, None)


def _major_minor(result: int) -> tuple[int, int]:
    return result >> _VERSION_BITS, result & ((1 << _VERSION_BITS) - 1)


def get_features(area: ArgumentArea, submap: int = 0) -> Pending[int]:
    """The bits XENFEAT_* of one submap."""
    slot = area.put(version.xen_feature_info(submap_idx=submap))
    args = (version.XENVER_get_features, slot.address)
    return Pending(
        "XENVER_get_features", HYPERVISOR_xen_version, args, lambda _: slot.get().submap, slot.value
    )


def console_write(area: ArgumentArea, data: bytes) -> Pending[int]:
    """Write to the hypervisor's own console."""
    address = area.address + area.put_bytes(data)
    return Pending(
        "CONSOLEIO_write", HYPERVISOR_console_io, (CONSOLEIO_write, len(data), address), itself, len(data)
    )


def hvm_get_param(area: ArgumentArea, index: int, domid: int = DOMID_SELF) -> Pending[int]:
    """The value of an HVM_PARAM_*."""
    slot = area.put(hvm_op.xen_hvm_param(domid=domid, index=index))
    args = (hvm_op.HVMOP_get_param, slot.address)
    return Pending("HVMOP_get_param", HYPERVISOR_hvm_op, args, lambda _: slot.get().value, slot.value)


def hvm_set_param(area: ArgumentArea, index: int, value: int, domid: int = DOMID_SELF) -> Pending[None]:
    """Set an HVM_PARAM_*."""
    param = hvm_op.xen_hvm_param(domid=domid, index=index, value=value)
    args = (hvm_op.HVMOP_set_param, area.place(param))
    return Pending("HVMOP_set_param", HYPERVISOR_hvm_op, args, nothing, param)
