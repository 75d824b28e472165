"""sysctl: what a control domain may ask about the machine as a whole.

Follows xen/common/sysctl.c. As with domctl, another version of the interface is -EACCES, and the answer
goes to a place that was found writable before. The processors of the machine are those that native domains are
scheduled on, of no particular speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from hypervisor.abi import sysctl as abi
from hypervisor.abi.domctl import XEN_SCHEDULER_CREDIT, xen_domctl_getdomaininfo
from hypervisor.domain_info import domain_info
from hypervisor.errors import Unsupported, WrongInterface
from hypervisor.scheduler_op import adjust_machine

if TYPE_CHECKING:
    from hypervisor.vcpu.state import Vcpu


def sysctl(caller: Vcpu, arg: int) -> int:
    """The hypercall: `arg` is the guest address of a xen_sysctl."""
    memory = caller.access
    request = memory.read_struct(abi.xen_sysctl, arg)
    if request.interface_version != abi.XEN_SYSCTL_INTERFACE_VERSION:
        raise WrongInterface("sysctl", request.interface_version, abi.XEN_SYSCTL_INTERFACE_VERSION)
    operation = _OPERATIONS.get(request.cmd)
    if operation is None:
        raise Unsupported(f"sysctl {request.cmd}")
    memory.check_writable(arg, abi.xen_sysctl.size)
    operation(caller, request)
    memory.write_struct(arg, request)
    return 0


def _physinfo(caller: Vcpu, request: abi.xen_sysctl) -> None:
    machine = caller.domain.machine
    frames, pcpus = machine.frames, machine.scheduler.pcpus
    request.u.physinfo = abi.xen_sysctl_physinfo(
        threads_per_core=1,
        cores_per_socket=pcpus,
        nr_cpus=pcpus,
        max_cpu_id=pcpus - 1,
        nr_nodes=1,
        capabilities=abi.XEN_SYSCTL_PHYSCAP_hvm
        | abi.XEN_SYSCTL_PHYSCAP_hap
        | abi.XEN_SYSCTL_PHYSCAP_gnttab_v1,
        total_pages=frames.total,
        free_pages=frames.free,
        max_mfn=frames.max_mfn,
    )


def _sched_id(_caller: Vcpu, request: abi.xen_sysctl) -> None:
    request.u.sched_id = abi.xen_sysctl_sched_id(sched_id=XEN_SCHEDULER_CREDIT)


def _scheduler_op(caller: Vcpu, request: abi.xen_sysctl) -> None:
    adjust_machine(caller.domain.machine, request.u.scheduler_op)


def _getdomaininfolist(caller: Vcpu, request: abi.xen_sysctl) -> None:
    """The domains from `first_domain` on, by id, at most `max_domains`; how many goes to `num_domains`."""
    wanted = request.u.getdomaininfolist
    domains = caller.domain.machine.domains
    listed = sorted(domid for domid in domains if domid >= wanted.first_domain)[: wanted.max_domains]
    for index, domid in enumerate(listed):
        info = domain_info(domains[domid])
        caller.access.write_struct(wanted.buffer + index * xen_domctl_getdomaininfo.size, info)
    wanted.num_domains = len(listed)


_OPERATIONS: Final[Mapping[int, Callable[[Vcpu, abi.xen_sysctl], None]]] = MappingProxyType(
    {
        abi.XEN_SYSCTL_physinfo: _physinfo,
        abi.XEN_SYSCTL_sched_id: _sched_id,
        abi.XEN_SYSCTL_scheduler_op: _scheduler_op,
        abi.XEN_SYSCTL_getdomaininfolist: _getdomaininfolist,
    }
)
