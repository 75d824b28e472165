"""Time as a guest computes it from its time stamp counter: vcpu_time_info, and the wall clock of shared_info.

Follows __update_vcpu_system_time (xen/arch/x86/time.c), update_domain_wallclock_time (xen/common/time.c) and
public/xen.h: nanoseconds are system_time + ((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul >> 32.

While a record is written no vCPU of the domain executes, since one engine has them all; so the version only says that
it is new. The guest is not told that its counter is stable (XEN_PVCLOCK_TSC_STABLE_BIT), so that it lets no step of a
new record set its clock back.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.xen import shared_info, vcpu_info
from hypervisor.errors import GuestFault
from hypervisor.pv.canonical import U32

if TYPE_CHECKING:
    from hypervisor.pv.domain import PvDomain
    from hypervisor.pv.vcpu import PvVcpu

NANOSECONDS: Final = 1_000_000_000

_RECORD: Final = Codec("<IIQQIbB2x")
_TIME: Final = vcpu_info.offsets["time"]
_WALL: Final = Codec("<III")
_WC_VERSION: Final = shared_info.offsets["wc_version"]
_WC_SEC_HI: Final = Codec("<I")
_WC_SEC_HI_AT: Final = shared_info.offsets["wc_sec_hi"]


@lru_cache(maxsize=16)
def scale(tsc_hz: int) -> tuple[int, int]:
    """tsc_to_system_mul and tsc_shift: the multiplier has 32 bits and its highest bit is set."""
    shift = 0
    while tsc_hz > 2 * NANOSECONDS:
        tsc_hz >>= 1
        shift -= 1
    while tsc_hz <= NANOSECONDS:
        tsc_hz <<= 1
        shift += 1
    return min((NANOSECONDS << 32) // tsc_hz, U32), shift


def publish(vcpu: PvVcpu) -> None:
    """Write the vCPU's record of this moment, and the copy that it may have asked for. To be called when the vCPU is
    going to be executed, and after time has stood still.
    """
    domain = vcpu.domain
    multiplier, shift = scale(domain.tsc_hz)
    info = vcpu.info
    version = int.from_bytes(info[_TIME : _TIME + 4], "little")
    version = (version | 1) + 1 & U32
    now_ns = domain.now_ns()
    record = _RECORD.pack(version, 0, domain.read_tsc(), now_ns, multiplier, shift, 0)
    vcpu.published_ns = now_ns
    info[_TIME : _TIME + _RECORD.size] = record
    if vcpu.time_area and vcpu.kernel_root:
        write_area(vcpu, vcpu.time_area, record)


def refresh(vcpu: PvVcpu, now_ns: int) -> None:
    """Publish again if the last record is a second old: the rate of the counter is known only so well."""
    if now_ns - vcpu.published_ns >= NANOSECONDS:
        publish(vcpu)


def write_area(vcpu: PvVcpu, address: int, data: bytes) -> None:
    """Bring a copy that the guest has asked for up to date, unless it has unmapped it: its loss, as with Xen."""
    with suppress(GuestFault):
        vcpu.domain.page_tables.write(vcpu.kernel_root, address, data)


def publish_wall_clock(domain: PvDomain) -> None:
    """Write the Unix time at which system time was 0."""
    seconds, nanoseconds = divmod(max(0, domain.wall_clock_ns() - domain.now_ns()), NANOSECONDS)
    page = domain.shared_info
    version = int.from_bytes(page[_WC_VERSION : _WC_VERSION + 4], "little")
    _WALL.pack_into(page, _WC_VERSION, (version | 1) + 1 & U32, seconds & U32, nanoseconds)
    _WC_SEC_HI.pack_into(page, _WC_SEC_HI_AT, seconds >> 32 & U32)
