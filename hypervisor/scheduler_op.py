"""What a control domain asks about scheduling: the weight and cap of a domain, the time slice of them all.

Follows sched_adjust and sched_adjust_global (xen/common/sched/core.c), csched_dom_cntl and csched_sys_cntl
(credit.c). There is one scheduler, credit, and one pool of processors, 0. Weight and cap count for native
domains, whose engines compete for processors; others keep what they are told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi import domctl, sysctl
from hypervisor.abi.errno import XEN_ESRCH
from hypervisor.credit import MILLISECOND_NS
from hypervisor.errors import InvalidArgument

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.machine import Machine

MICROSECOND_NS: Final = 1000
LEFT_AS_IT_IS: Final = 0xFFFF
"""cap that changes nothing; the weight that does is 0"""


def adjust_domain(domain: Domain, operation: domctl.xen_domctl_scheduler_op) -> None:
    """XEN_DOMCTL_scheduler_op."""
    _check_scheduler(operation.sched_id)
    share, credit = domain.share, operation.u.credit
    if operation.cmd == domctl.XEN_DOMCTL_SCHEDOP_putinfo:
        if credit.weight:
            share.weight = credit.weight
        if credit.cap != LEFT_AS_IT_IS:
            share.cap = credit.cap
        domain.machine.scheduler.changed()
    elif operation.cmd == domctl.XEN_DOMCTL_SCHEDOP_getinfo:
        credit.weight, credit.cap = share.weight, share.cap
    else:
        raise InvalidArgument("command", operation.cmd, "putinfo or getinfo, for a domain as a whole")


def adjust_machine(machine: Machine, operation: sysctl.xen_sysctl_scheduler_op) -> None:
    """XEN_SYSCTL_scheduler_op."""
    if operation.cpupool_id:
        raise InvalidArgument("pool of processors", operation.cpupool_id, "0", errno=XEN_ESRCH)
    _check_scheduler(operation.sched_id)
    scheduler, settings = machine.scheduler, operation.u.sched_credit
    if operation.cmd == sysctl.XEN_SYSCTL_SCHEDOP_putinfo:
        _check_settings(settings)
        scheduler.slice_ns = settings.tslice_ms * MILLISECOND_NS
        scheduler.ratelimit_ns = settings.ratelimit_us * MICROSECOND_NS
        scheduler.changed()
    elif operation.cmd != sysctl.XEN_SYSCTL_SCHEDOP_getinfo:
        raise InvalidArgument("command", operation.cmd, "putinfo or getinfo")
    settings.tslice_ms = scheduler.slice_ns // MILLISECOND_NS
    settings.ratelimit_us = scheduler.ratelimit_ns // MICROSECOND_NS
    settings.vcpu_migr_delay_us = 0


def _check_scheduler(sched_id: int) -> None:
    if sched_id != domctl.XEN_SCHEDULER_CREDIT:
        raise InvalidArgument("scheduler", sched_id, f"{domctl.XEN_SCHEDULER_CREDIT}: credit")


def _check_settings(settings: sysctl.xen_sysctl_credit_schedule) -> None:
    """As Xen does it; vCPUs here have no cache to stay in, so that a delay before they migrate means nothing."""
    shortest, longest = sysctl.XEN_SYSCTL_CSCHED_TSLICE_MIN, sysctl.XEN_SYSCTL_CSCHED_TSLICE_MAX
    if not shortest <= settings.tslice_ms <= longest:
        raise InvalidArgument("tslice_ms", settings.tslice_ms, f"{shortest} to {longest}")
    least, most = sysctl.XEN_SYSCTL_SCHED_RATELIMIT_MIN, sysctl.XEN_SYSCTL_SCHED_RATELIMIT_MAX
    most = min(most, settings.tslice_ms * 1000)
    if settings.ratelimit_us and not least <= settings.ratelimit_us <= most:
        raise InvalidArgument("ratelimit_us", settings.ratelimit_us, f"0, or {least} to {most}")
    if settings.vcpu_migr_delay_us > sysctl.XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US:
        raise InvalidArgument(
            "vcpu_migr_delay_us",
            settings.vcpu_migr_delay_us,
            f"at most {sysctl.XEN_SYSCTL_CSCHED_MGR_DLY_MAX_US}",
        )
