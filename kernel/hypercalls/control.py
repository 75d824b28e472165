"""What the control domain does to others (public/domctl.h, sysctl.h), laid out as calls. Any other domain
gets EPERM.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from hypervisor.abi import domctl as abi
from hypervisor.abi import sysctl
from hypervisor.abi.arch_x86_64 import vcpu_guest_context, xen_arch_domainconfig
from hypervisor.abi.domctl import XEN_DOMCTL_INTERFACE_VERSION
from hypervisor.abi.sysctl import XEN_SYSCTL_INTERFACE_VERSION
from hypervisor.abi.xen import DOMID_INVALID, HYPERVISOR_domctl, HYPERVISOR_sysctl
from kernel.hypercalls.arguments import ArgumentArea
from kernel.hypercalls.call import Pending

T = TypeVar("T")

_INFO: Final = abi.xen_domctl_getdomaininfo
SAME_CAP: Final = 0xFFFF


def _domctl(
    area: ArgumentArea,
    name: str,
    command: int,
    domid: int,
    decode: Callable[[abi.xen_domctl], T],
    **alternative: Any,
) -> Pending[T]:
    value = abi.xen_domctl(
        cmd=command,
        interface_version=XEN_DOMCTL_INTERFACE_VERSION,
        domain=domid,
        u=abi.xen_domctl_u(**alternative),
    )
    slot = area.put(value)
    shown = (domid, *alternative.values())
    return Pending(
        f"XEN_DOMCTL_{name}", HYPERVISOR_domctl, (slot.address,), lambda _: decode(slot.get()), shown
    )


def _done(_domctl: abi.xen_domctl) -> None:
    pass


def createdomain(
    area: ArgumentArea,
    handle: bytes,
    *,
    flags: int,
    max_vcpus: int = 1,
    max_evtchn_port: int = 4095,
    max_grant_frames: int = 64,
    max_maptrack_frames: int = 1024,
    grant_version: int = 1,
    emulation_flags: int = 0,
    domid: int = DOMID_INVALID,
) -> Pending[int]:
    """Make a domain, paused and without memory; returns its id. `domid` asks for a certain one."""
    config = abi.xen_domctl_createdomain(
        handle=handle,
        flags=flags,
        max_vcpus=max_vcpus,
        max_evtchn_port=max_evtchn_port,
        max_grant_frames=max_grant_frames,
        max_maptrack_frames=max_maptrack_frames,
        grant_opts=grant_version,
        arch=xen_arch_domainconfig(emulation_flags=emulation_flags),
    )
    return _domctl(
        area,
        "createdomain",
        abi.XEN_DOMCTL_createdomain,
        domid,
        lambda done: done.domain,
        createdomain=config,
    )


def destroydomain(area: ArgumentArea, domid: int) -> Pending[None]:
    """Begin a domain's end; its frames go as soon as nobody maps them any more."""
    return _domctl(area, "destroydomain", abi.XEN_DOMCTL_destroydomain, domid, _done)


def pausedomain(area: ArgumentArea, domid: int) -> Pending[None]:
    """Stop a domain's vCPUs."""
    return _domctl(area, "pausedomain", abi.XEN_DOMCTL_pausedomain, domid, _done)


def unpausedomain(area: ArgumentArea, domid: int) -> Pending[None]:
    """Let a domain's vCPUs run."""
    return _domctl(area, "unpausedomain", abi.XEN_DOMCTL_unpausedomain, domid, _done)


def max_mem(area: ArgumentArea, domid: int, kib: int) -> Pending[None]:
    """Set how much memory a domain may have."""
    limit = abi.xen_domctl_max_mem(max_memkb=kib)
    return _domctl(area, "max_mem", abi.XEN_DOMCTL_max_mem, domid, _done, max_mem=limit)


def max_vcpus(area: ArgumentArea, domid: int, count: int) -> Pending[None]:
    """Give a new domain its vCPUs."""
    limit = abi.xen_domctl_max_vcpus(max=count)
    return _domctl(area, "max_vcpus", abi.XEN_DOMCTL_max_vcpus, domid, _done, max_vcpus=limit)


def setvcpucontext(
    area: ArgumentArea, domid: int, vcpu_id: int, context: vcpu_guest_context
) -> Pending[None]:
    """Say what a vCPU of a native domain begins with."""
    value = abi.xen_domctl_vcpucontext(vcpu=vcpu_id, ctxt=area.place(context))
    return _domctl(area, "setvcpucontext", abi.XEN_DOMCTL_setvcpucontext, domid, _done, vcpucontext=value)


def scheduler_op_get(area: ArgumentArea, domid: int) -> Pending[abi.xen_domctl_sched_credit]:
    """Weight and cap of a domain."""

    def decode(done: abi.xen_domctl) -> abi.xen_domctl_sched_credit:
        return done.u.scheduler_op.u.credit

    wanted = abi.xen_domctl_scheduler_op(
        sched_id=abi.XEN_SCHEDULER_CREDIT, cmd=abi.XEN_DOMCTL_SCHEDOP_getinfo
    )
    return _domctl(area, "scheduler_op", abi.XEN_DOMCTL_scheduler_op, domid, decode, scheduler_op=wanted)


def scheduler_op_put(
    area: ArgumentArea, domid: int, *, weight: int = 0, cap: int = SAME_CAP
) -> Pending[None]:
    """Change a domain's weight and cap, a percentage of one processor; those that are not given stay. A cap of 0 is
    none.
    """
    wanted = abi.xen_domctl_scheduler_op(
        sched_id=abi.XEN_SCHEDULER_CREDIT, cmd=abi.XEN_DOMCTL_SCHEDOP_putinfo
    )
    wanted.u.credit = abi.xen_domctl_sched_credit(weight=weight, cap=cap)
    return _domctl(area, "scheduler_op", abi.XEN_DOMCTL_scheduler_op, domid, _done, scheduler_op=wanted)


def hypercall_init(area: ArgumentArea, domid: int, mfn: int) -> Pending[None]:
    """Fill the hypercall page that a native kernel has asked for."""
    value = abi.xen_domctl_hypercall_init(gmfn=mfn)
    return _domctl(area, "hypercall_init", abi.XEN_DOMCTL_hypercall_init, domid, _done, hypercall_init=value)


def getdomaininfo(area: ArgumentArea, domid: int) -> Pending[abi.xen_domctl_getdomaininfo]:
    """State and memory of the domain `domid`, or else of the next one that exists, as Xen does it: compare
    `.domain`.
    """

    def decode(done: abi.xen_domctl) -> abi.xen_domctl_getdomaininfo:
        return done.u.getdomaininfo

    return _domctl(area, "getdomaininfo", abi.XEN_DOMCTL_getdomaininfo, domid, decode)


def _sysctl(
    area: ArgumentArea, name: str, command: int, decode: Callable[[sysctl.xen_sysctl], T], **alternative: Any
) -> Pending[T]:
    value = sysctl.xen_sysctl(
        cmd=command, interface_version=XEN_SYSCTL_INTERFACE_VERSION, u=sysctl.xen_sysctl_u(**alternative)
    )
    slot = area.put(value)
    shown = tuple(alternative.values())
    return Pending(
        f"XEN_SYSCTL_{name}", HYPERVISOR_sysctl, (slot.address,), lambda _: decode(slot.get()), shown
    )


def physinfo(area: ArgumentArea) -> Pending[sysctl.xen_sysctl_physinfo]:
    """Processors and memory of the machine."""

    def decode(done: sysctl.xen_sysctl) -> sysctl.xen_sysctl_physinfo:
        return done.u.physinfo

    return _sysctl(area, "physinfo", sysctl.XEN_SYSCTL_physinfo, decode)


def getdomaininfolist(
    area: ArgumentArea, first_domid: int, max_domains: int
) -> Pending[list[abi.xen_domctl_getdomaininfo]]:
    """State and memory of up to `max_domains` domains from `first_domid` on. Raises ArgumentsFull if they do
    not fit.
    """
    buffer = area.reserve(_INFO.size * max_domains)
    request = sysctl.xen_sysctl_getdomaininfolist(
        first_domain=first_domid, max_domains=max_domains, buffer=area.address + buffer
    )

    def decode(done: sysctl.xen_sysctl) -> list[abi.xen_domctl_getdomaininfo]:
        found = min(done.u.getdomaininfolist.num_domains, max_domains)
        return [_INFO.unpack(area.view, buffer + index * _INFO.size) for index in range(found)]

    return _sysctl(
        area, "getdomaininfolist", sysctl.XEN_SYSCTL_getdomaininfolist, decode, getdomaininfolist=request
    )
