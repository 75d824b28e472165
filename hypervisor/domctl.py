"""domctl: how a control domain makes, builds, watches and destroys others.

Follows xen/common/domctl.c. The struct is read once; a caller that speaks another version of the
interface gets -EACCES. An operation with an answer writes the whole struct back, to a place that was
found writable before anything was done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi import domctl as abi
from hypervisor.abi.event_channel import EVTCHN_2L_NR_CHANNELS
from hypervisor.abi.vcpu import RUNSTATE_running
from hypervisor.abi.xen import DOMID_FIRST_RESERVED
from hypervisor.abi.xen import __HYPERVISOR_domctl as domctl_number
from hypervisor.continuation import SLICE_STEPS, Continuation
from hypervisor.domain import Domain, Traits
from hypervisor.domain_info import domain_info
from hypervisor.errors import InvalidArgument, NoSuchDomain, Unsupported, WrongInterface
from hypervisor.extent import PAGE_SHIFT
from hypervisor.hypercall_page import fill_hypercall_page
from hypervisor.scheduler_op import adjust_domain
from hypervisor.vcpu_context import get_context, set_context

if TYPE_CHECKING:
    from hypervisor.machine import Machine
    from hypervisor.vcpu.state import Vcpu

MAX_VCPUS: Final = 128  # HVM_MAX_VCPUS
MAX_GRANT_FRAMES: Final = 64  # gnttab_max_frames
MAX_MAPTRACK_FRAMES: Final = 1024  # gnttab_max_maptrack_frames
PAGES_LIMIT: Final = 0xFFFF_FFFF  # max_pages is 32 bits wide
NATIVE: Final = 0
TRANSLATED: Final = abi.XEN_DOMCTL_CDF_hvm | abi.XEN_DOMCTL_CDF_hap
HARMLESS: Final = abi.XEN_DOMCTL_CDF_s3_integrity | abi.XEN_DOMCTL_CDF_oos_off


def domctl(caller: Vcpu, arg: int) -> int | Continuation:
    """The hypercall: `arg` is the guest address of a xen_domctl."""
    memory = caller.access
    request = memory.read_struct(abi.xen_domctl, arg)
    if request.interface_version != abi.XEN_DOMCTL_INTERFACE_VERSION:
        raise WrongInterface("domctl", request.interface_version, abi.XEN_DOMCTL_INTERFACE_VERSION)
    answer = _ANSWERS.get(request.cmd)
    if answer is not None:
        memory.check_writable(arg, abi.xen_domctl.size)
        answer(caller, request)
        memory.write_struct(arg, request)
        return 0
    action = _ACTIONS.get(request.cmd)
    if action is None:
        raise Unsupported(f"domctl {request.cmd}")
    done = action(caller, caller.domain.machine.domain(request.domain), request)
    return 0 if done else Continuation(domctl_number, (arg,))


# Making


def _createdomain(caller: Vcpu, request: abi.xen_domctl) -> None:
    wanted = request.domain if 0 < request.domain < DOMID_FIRST_RESERVED else None
    domain = caller.domain.machine.create_domain(_traits(request.u.createdomain), domid=wanted)
    request.domain = domain.domid


def _traits(config: abi.xen_domctl_createdomain) -> Traits:
    """What the toolstack asks for, if there is such a thing. Negative limits ask for the default."""
    flags = config.flags & ~HARMLESS
    if flags not in (NATIVE, TRANSLATED):
        wanted = f"{TRANSLATED:#x}: hvm and hap, an auto-translated guest; or {NATIVE:#x}: a native one"
        raise InvalidArgument("flags", config.flags, wanted)
    _check("max_vcpus", config.max_vcpus, 1, MAX_VCPUS)
    _check("grant_opts", config.grant_opts, 0, abi.XEN_DOMCTL_GRANT_version_mask)
    for name in ("iommu_opts", "vmtrace_size", "cpupool_id"):
        _check(name, getattr(config, name), 0, 0)
    return Traits(
        max_vcpus=config.max_vcpus,
        max_event_port=min(config.max_evtchn_port, EVTCHN_2L_NR_CHANNELS - 1),
        max_grant_frames=_limit("max_grant_frames", config.max_grant_frames, 1, MAX_GRANT_FRAMES),
        max_maptrack_frames=_limit("max_maptrack_frames", config.max_maptrack_frames, 0, MAX_MAPTRACK_FRAMES),
        handle=config.handle,
        pv=flags == NATIVE,
    )


def _limit(name: str, wanted: int, least: int, most: int) -> int:
    if wanted >= 0:
        _check(name, wanted, least, most)
        return wanted
    return most


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidArgument(name, value, f"{least} to {most}")


# Watching


def _getdomaininfo(caller: Vcpu, request: abi.xen_domctl) -> None:
    """Of the domain with this id, or of the next one above it, so that a toolstack can walk all domains."""
    info = domain_info(_at_or_above(caller.domain.machine, request.domain))
    request.domain = info.domain
    request.u.getdomaininfo = info


def _at_or_above(machine: Machine, domid: int) -> Domain:
    domain = machine.domains.get(domid)
    if domain is None:
        if domid >= DOMID_FIRST_RESERVED:
            raise InvalidArgument("domain", domid, "the id of a domain")
        following = min((other for other in machine.domains if other > domid), default=None)
        if following is None:
            raise NoSuchDomain(domid)
        domain = machine.domains[following]
    return domain


def _getvcpuinfo(caller: Vcpu, request: abi.xen_domctl) -> None:
    domain = caller.domain.machine.domain(request.domain)
    info = request.u.getvcpuinfo
    _check("vcpu", info.vcpu, 0, domain.traits.max_vcpus - 1)
    if info.vcpu >= len(domain.vcpus):
        raise NoSuchDomain(domain.domid)  # -ESRCH: the vCPU does not exist yet
    vcpu = domain.vcpus[info.vcpu]
    info.online = vcpu.online
    info.blocked = vcpu.waits
    info.running = vcpu.runstate == RUNSTATE_running
    info.cpu_time = vcpu.running_ns(caller.domain.machine.host.now_ns())
    info.cpu = 0


def _scheduler_op(caller: Vcpu, request: abi.xen_domctl) -> None:
    adjust_domain(caller.domain.machine.domain(request.domain), request.u.scheduler_op)


# Acting; True: it is done


def _not_self(caller: Vcpu, domain: Domain) -> None:
    if caller.domain is domain:
        raise InvalidArgument("domain", domain.domid, "another than the caller")


def _destroydomain(caller: Vcpu, domain: Domain, _request: abi.xen_domctl) -> bool:
    _not_self(caller, domain)
    return domain.kill(SLICE_STEPS)


def _pausedomain(caller: Vcpu, domain: Domain, _request: abi.xen_domctl) -> bool:
    _not_self(caller, domain)
    domain.pause()
    return True


def _unpausedomain(_caller: Vcpu, domain: Domain, _request: abi.xen_domctl) -> bool:
    domain.unpause()
    return True


def _resumedomain(caller: Vcpu, domain: Domain, _request: abi.xen_domctl) -> bool:
    _not_self(caller, domain)
    domain.resume()
    return True


def _max_vcpus(caller: Vcpu, domain: Domain, request: abi.xen_domctl) -> bool:
    """Make the vCPUs; how many was decided when the domain was created."""
    _not_self(caller, domain)
    _check("max", request.u.max_vcpus.max, domain.traits.max_vcpus, domain.traits.max_vcpus)
    domain.add_vcpus()
    return True


def _max_mem(_caller: Vcpu, domain: Domain, request: abi.xen_domctl) -> bool:
    """The limit may be below what the domain has: then it gets no more until it is below."""
    domain.reservation.max_pages = min(request.u.max_mem.max_memkb >> (PAGE_SHIFT - 10), PAGES_LIMIT)
    return True


def _setvcpucontext(caller: Vcpu, domain: Domain, request: abi.xen_domctl) -> bool:
    _not_self(caller, domain)
    set_context(caller, domain, request.u.vcpucontext)
    return True


def _getvcpucontext(caller: Vcpu, domain: Domain, request: abi.xen_domctl) -> bool:
    _not_self(caller, domain)
    get_context(caller, domain, request.u.vcpucontext)
    return True


def _hypercall_init(caller: Vcpu, domain: Domain, request: abi.xen_domctl) -> bool:
    _not_self(caller, domain)
    fill_hypercall_page(domain, request.u.hypercall_init.gmfn)
    return True


def _setdomainhandle(_caller: Vcpu, domain: Domain, request: abi.xen_domctl) -> bool:
    domain.handle = request.u.setdomainhandle.handle
    return True


_ANSWERS: Final[Mapping[int, Callable[[Vcpu, abi.xen_domctl], None]]] = MappingProxyType(
    {
        abi.XEN_DOMCTL_createdomain: _createdomain,
        abi.XEN_DOMCTL_getdomaininfo: _getdomaininfo,
        abi.XEN_DOMCTL_getvcpuinfo: _getvcpuinfo,
        abi.XEN_DOMCTL_scheduler_op: _scheduler_op,
    }
)

_ACTIONS: Final[Mapping[int, Callable[[Vcpu, Domain, abi.xen_domctl], bool]]] = MappingProxyType(
    {
        abi.XEN_DOMCTL_destroydomain: _destroydomain,
        abi.XEN_DOMCTL_pausedomain: _pausedomain,
        abi.XEN_DOMCTL_unpausedomain: _unpausedomain,
        abi.XEN_DOMCTL_resumedomain: _resumedomain,
        abi.XEN_DOMCTL_max_vcpus: _max_vcpus,
        abi.XEN_DOMCTL_max_mem: _max_mem,
        abi.XEN_DOMCTL_setvcpucontext: _setvcpucontext,
        abi.XEN_DOMCTL_hypercall_init: _hypercall_init,
        abi.XEN_DOMCTL_getvcpucontext: _getvcpucontext,
        abi.XEN_DOMCTL_setdomainhandle: _setdomainhandle,
    }
)
