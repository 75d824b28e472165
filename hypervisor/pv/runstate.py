"""Runstate: how long a vCPU has been running, runnable, blocked and offline, and the guest's copy of it.

Follows update_runstate_area (xen/common/domain.c) of Xen 4.17. With VMASST_TYPE_runstate_update_flag the guest sees
XEN_RUNSTATE_UPDATE set in state_entry_time while the copy is written.
"""

from __future__ import annotations

from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.vcpu import (
    XEN_RUNSTATE_UPDATE,
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    RUNSTATE_running,
    vcpu_runstate_info,
)
from hypervisor.abi.xen import VMASST_TYPE_runstate_update_flag
from hypervisor.pv.pvclock import write_area

if TYPE_CHECKING:
    from hypervisor.pv.vcpu import PvVcpu

_INFO: Final = Codec("<i4xQ4Q")
_ENTRY: Final = Codec("<Q")
_ENTRY_AT: Final = vcpu_runstate_info.offsets["state_entry_time"]
_UPDATE_FLAG: Final = 1 << VMASST_TYPE_runstate_update_flag


def enter(vcpu: PvVcpu, state: int, now_ns: int) -> None:
    """Account the time since the last change to the state (RUNSTATE_*) that ends."""
    vcpu.runstate_ns[vcpu.runstate] += max(0, now_ns - vcpu.runstate_entry_ns)
    vcpu.runstate = state
    vcpu.runstate_entry_ns = now_ns


def run(vcpu: PvVcpu, now_ns: int) -> None:
    """The vCPU is executed from now on; the guest's copy says so."""
    enter(vcpu, RUNSTATE_running, now_ns)
    publish(vcpu)


def stand(vcpu: PvVcpu, now_ns: int) -> None:
    """The vCPU is not executed from now on: for want of work, or of a processor, which is time stolen from it."""
    state = RUNSTATE_offline if not vcpu.online else RUNSTATE_blocked if vcpu.blocked else RUNSTATE_runnable
    if state != vcpu.runstate:
        enter(vcpu, state, now_ns)


def info(vcpu: PvVcpu, now_ns: int) -> bytes:
    """A vcpu_runstate_info whose times include the state that lasts."""
    times = list(vcpu.runstate_ns)
    times[vcpu.runstate] += max(0, now_ns - vcpu.runstate_entry_ns)
    return _INFO.pack(vcpu.runstate, vcpu.runstate_entry_ns, *times)


def publish(vcpu: PvVcpu) -> None:
    """Bring the guest's copy up to date, if it has one. The times in it are those of the last change."""
    area = vcpu.runstate_area
    if not area or not vcpu.kernel_root:
        return
    entry_ns = vcpu.runstate_entry_ns
    flagged = bool(vcpu.domain.vm_assist & _UPDATE_FLAG)
    if flagged:
        entry_ns |= XEN_RUNSTATE_UPDATE
        write_area(vcpu, area + _ENTRY_AT, _ENTRY.pack(entry_ns))
    write_area(vcpu, area, _INFO.pack(vcpu.runstate, entry_ns, *vcpu.runstate_ns))
    if flagged:
        write_area(vcpu, area + _ENTRY_AT, _ENTRY.pack(vcpu.runstate_entry_ns))


assert _INFO.size == vcpu_runstate_info.size
