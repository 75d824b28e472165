"""Makes a machine with dom0 in it, whose program is given by whoever launches it."""

import os
import resource

from hypervisor.domain import Domain, Traits
from hypervisor.host import Host
from hypervisor.machine import Machine
from kernel.platform import PAGE_SHIFT


def raise_open_files_limit() -> None:
    """Allows this process as many open files as it may have: a domain's memory takes four, a disk one more.

    To be called by programs that are ours; whoever embeds a machine decides for himself.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def host_processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0))


def build_machine(
    host: Host, memory_bytes: int, dom0_bytes: int, pcpus: int | None = None
) -> tuple[Machine, Domain]:
    """A machine and its dom0, which has one vCPU and `dom0_bytes` of RAM and is paused. pcpus: processors for native
    domains, else as many as the host has.

    Real dom0s are built by the hypervisor, since there is nobody else yet; so is this one.

    Raises:
        XenError: the machine is smaller than its dom0.
    """
    machine = Machine(host, memory_bytes, host_processors() if pcpus is None else pcpus)
    pages = dom0_bytes >> PAGE_SHIFT
    dom0 = machine.create_domain(Traits(), domid=0, privileged=True, max_pages=pages)
    dom0.add_vcpus()
    dom0.populate(0, pages)
    return machine, dom0
