"""struct xen_domctl_getdomaininfo of a domain: what domctl tells of one and sysctl of many (getdomaininfo
in xen/common/domctl.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi import domctl as abi
from hypervisor.abi.vcpu import RUNSTATE_running
from hypervisor.extent import PAGE_SHIFT
from hypervisor.guest_memory import GPFN_LIMIT
from hypervisor.lifecycle import Life

if TYPE_CHECKING:
    from hypervisor.domain import Domain

INVALID_GFN: Final = 0xFFFF_FFFF_FFFF_FFFF
NO_SHUTDOWN_REASON: Final = 0xFF  # SHUTDOWN_CODE_INVALID, as a u8
GPADDR_BITS: Final = (GPFN_LIMIT - 1).bit_length() + PAGE_SHIFT


def domain_info(domain: Domain) -> abi.xen_domctl_getdomaininfo:
    """A snapshot of `domain`, a dying one included."""
    now_ns = domain.machine.host.now_ns()
    place = domain.memory.special_gpfn(domain.shared_info_mfn)
    return abi.xen_domctl_getdomaininfo(
        domain=domain.domid,
        flags=_flags(domain),
        tot_pages=domain.tot_pages,
        max_pages=domain.max_pages,
        shared_info_frame=INVALID_GFN if place is None else place,
        cpu_time=sum(vcpu.running_ns(now_ns) for vcpu in domain.vcpus),
        nr_online_vcpus=sum(vcpu.online for vcpu in domain.vcpus),
        max_vcpu_id=domain.vcpus[-1].id if domain.vcpus else abi.XEN_INVALID_MAX_VCPU_ID,
        handle=domain.handle,
        gpaddr_bits=GPADDR_BITS,
    )


def _flags(domain: Domain) -> int:
    online = [vcpu for vcpu in domain.vcpus if vcpu.online]
    flags = 0 if domain.traits.pv else abi.XEN_DOMINF_hvm_guest | abi.XEN_DOMINF_hap
    if online and all(vcpu.waits for vcpu in online):
        flags |= abi.XEN_DOMINF_blocked
    if any(vcpu.runstate == RUNSTATE_running for vcpu in online):
        flags |= abi.XEN_DOMINF_running
    if domain.life is Life.DEAD:
        flags |= abi.XEN_DOMINF_dying
    if domain.pause_count:
        flags |= abi.XEN_DOMINF_paused
    reason = domain.shutdown_reason
    if reason is not None:
        flags |= abi.XEN_DOMINF_shutdown
    return flags | (NO_SHUTDOWN_REASON if reason is None else reason) << abi.XEN_DOMINF_shutdownshift
