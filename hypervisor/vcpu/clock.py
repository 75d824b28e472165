"""Time and runstate as a guest reads them from memory: vcpu_time_info, the wall clock of shared_info,
vcpu_runstate_info.

Follows __update_vcpu_system_time (xen/arch/x86/time.c) and update_domain_wallclock_time (xen/common/time.c).
A version that is odd tells the guest to read again. The time stamp counter of a vCPU that is a Python program
counts the nanoseconds of system time, so its scale never changes and one record holds for ever; all vCPUs
agree on it.
"""

from __future__ import annotations

from contextlib import suppress
from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.vcpu import RUNSTATE_running, vcpu_runstate_info
from hypervisor.abi.xen import XEN_PVCLOCK_TSC_STABLE_BIT, shared_info, vcpu_info, vcpu_time_info
from hypervisor.errors import GuestFault

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu

NANOSECOND_TSC_SHIFT: Final = 1
NANOSECOND_TSC_MUL: Final = 1 << 31
"""((ticks << 1) * 2**31) >> 32: a tick is a nanosecond"""

VERSION_MASK: Final = 0xFFFF_FFFF
NANOSECONDS: Final = 1_000_000_000

_TIME: Final = Codec("<QQIbB2x")
_VERSION: Final = vcpu_info.offsets["time"] // 4
_TIME_FIELDS: Final = vcpu_info.offsets["time"] + vcpu_time_info.offsets["tsc_timestamp"]
_WC_VERSION: Final = shared_info.offsets["wc_version"] // 4
_WC_SEC: Final = shared_info.offsets["wc_sec"] // 4
_WC_NSEC: Final = shared_info.offsets["wc_nsec"] // 4
_WC_SEC_HI: Final = shared_info.offsets["wc_sec_hi"] // 4


def _begin(version: int) -> int:
    return (version + 1 | 1) & VERSION_MASK


def _end(version: int) -> int:
    return (version + 1) & VERSION_MASK


def publish_system_time(vcpu: Vcpu) -> None:
    """Write the vCPU's time record, and the copy of it that the guest may have asked for elsewhere."""
    now_ns = vcpu.domain.machine.host.now_ns()
    words = vcpu.info.cast("I")
    words[_VERSION] = version = _begin(words[_VERSION])
    _TIME.pack_into(
        vcpu.info,
        _TIME_FIELDS,
        now_ns,
        now_ns,
        NANOSECOND_TSC_MUL,
        NANOSECOND_TSC_SHIFT,
        XEN_PVCLOCK_TSC_STABLE_BIT,
    )
    words[_VERSION] = _end(version)
    if vcpu.time_area:
        _copy_time(vcpu, version, bytes(vcpu.info[_TIME_FIELDS : _TIME_FIELDS + _TIME.size]))


def _copy_time(vcpu: Vcpu, version: int, fields: bytes) -> None:
    memory = vcpu.domain.memory
    with suppress(GuestFault):  # the guest has unmapped its copy: its loss, as with Xen
        memory.write_u32(vcpu.time_area, version)
        memory.write(vcpu.time_area + vcpu_time_info.offsets["tsc_timestamp"], fields)
        memory.write_u32(vcpu.time_area, _end(version))


def publish_wall_clock(domain: Domain) -> None:
    """Write the Unix time at which system time was 0."""
    host = domain.machine.host
    seconds, nanoseconds = divmod(max(0, host.wall_clock_ns() - host.now_ns()), NANOSECONDS)
    words = domain.shared_info.cast("I")
    words[_WC_VERSION] = version = _begin(words[_WC_VERSION])
    words[_WC_SEC] = seconds & VERSION_MASK
    words[_WC_NSEC] = nanoseconds
    words[_WC_SEC_HI] = seconds >> 32 & VERSION_MASK
    words[_WC_VERSION] = _end(version)


def runstate_info(vcpu: Vcpu, now_ns: int) -> vcpu_runstate_info:
    """What VCPUOP_get_runstate_info tells: the times include the state that lasts."""
    times = list(vcpu.runstate_ns)
    times[vcpu.runstate] += max(0, now_ns - vcpu.runstate_entry_ns)
    return vcpu_runstate_info(state=vcpu.runstate, state_entry_time=vcpu.runstate_entry_ns, time=tuple(times))


def enter_running(vcpu: Vcpu) -> None:
    """The vCPU is executed from now on; the guest's registered runstate area says so."""
    now_ns = vcpu.domain.machine.host.now_ns()
    vcpu.enter_runstate(RUNSTATE_running, now_ns)
    if vcpu.runstate_area:
        publish_runstate(vcpu, now_ns)


def publish_runstate(vcpu: Vcpu, now_ns: int) -> None:
    """Bring the registered runstate area up to date, unless the guest has unmapped it."""
    with suppress(GuestFault):
        vcpu.domain.memory.write_struct(vcpu.runstate_area, runstate_info(vcpu, now_ns))
