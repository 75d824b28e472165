"""sysctl: the machine as a control domain sees it."""

import pytest

from hypervisor.abi import sysctl as abi
from hypervisor.abi.domctl import xen_domctl_getdomaininfo
from hypervisor.abi.errno import XEN_EACCES, XEN_EFAULT, XEN_ENOSYS, XEN_EPERM
from hypervisor.abi.xen import __HYPERVISOR_sysctl as sysctl
from tests.hypervisor.fakes import ARGUMENT, Guest, new_machine

BUFFER = 0x1000


@pytest.fixture
def dom0() -> Guest:
    return Guest(new_machine()[0], pages=16)


def control(caller: Guest, request: abi.xen_sysctl) -> tuple[int, abi.xen_sysctl]:
    caller.domain.memory.write_struct(ARGUMENT, request)
    result = caller.hypercall(sysctl, ARGUMENT)
    return result, caller.domain.memory.read_struct(abi.xen_sysctl, ARGUMENT)


def asking(cmd: int, version: int = abi.XEN_SYSCTL_INTERFACE_VERSION) -> abi.xen_sysctl:
    return abi.xen_sysctl(cmd=cmd, interface_version=version)


def listed(caller: Guest, first: int, most: int, buffer: int = BUFFER) -> tuple[int, list[int]]:
    request = asking(abi.XEN_SYSCTL_getdomaininfolist)
    request.u.getdomaininfolist = abi.xen_sysctl_getdomaininfolist(
        first_domain=first, max_domains=most, buffer=buffer
    )
    result, answer = control(caller, request)
    memory = caller.domain.memory
    size = xen_domctl_getdomaininfo.size
    found = [
        memory.read_struct(xen_domctl_getdomaininfo, BUFFER + index * size).domain
        for index in range(answer.u.getdomaininfolist.num_domains if result == 0 else 0)
    ]
    return result, found


def test_the_machine_and_its_memory(dom0: Guest) -> None:
    result, answer = control(dom0, asking(abi.XEN_SYSCTL_physinfo))
    info = answer.u.physinfo
    assert result == 0
    assert (info.total_pages, info.free_pages) == (16384, 16384 - dom0.machine.frames.used)
    assert (info.nr_cpus, info.nr_nodes, info.max_cpu_id) == (1, 1, 0)
    assert info.capabilities & abi.XEN_SYSCTL_PHYSCAP_gnttab_v1
    assert not info.capabilities & abi.XEN_SYSCTL_PHYSCAP_gnttab_v2


def test_domains_are_listed_by_id(dom0: Guest) -> None:
    guests = [Guest(dom0.machine) for _ in range(5)]
    guests[1].destroy()
    for _ in range(2):
        assert listed(dom0, 0, 100) == (0, [0, 1, 3, 4, 5])
    assert listed(dom0, 1, 2) == (0, [1, 3])
    assert listed(dom0, 2, 1) == (0, [3])
    assert listed(dom0, 6, 100) == (0, [])
    assert listed(dom0, 0, 0) == (0, [])


def test_a_list_goes_to_memory_that_is_there(dom0: Guest) -> None:
    Guest(dom0.machine)
    assert listed(dom0, 0, 10, buffer=(1 << 64) - 16)[0] == -XEN_EFAULT
    assert listed(dom0, 0, 10, buffer=16 << 12)[0] == -XEN_EFAULT
    assert listed(dom0, 0, 10, buffer=(16 << 12) - 112)[0] == -XEN_EFAULT


@pytest.mark.parametrize("version", [0, 0x14, 0x16])
def test_another_interface_version_is_refused(dom0: Guest, version: int) -> None:
    assert control(dom0, asking(abi.XEN_SYSCTL_physinfo, version))[0] == -XEN_EACCES


def test_what_is_not_there_and_who_may_not(dom0: Guest) -> None:
    assert control(dom0, asking(0))[0] == -XEN_ENOSYS
    assert control(dom0, asking(abi.XEN_SYSCTL_debug_keys))[0] == -XEN_ENOSYS
    assert dom0.hypercall(sysctl, 1 << 60) == -XEN_EFAULT
    assert Guest(dom0.machine).hypercall(sysctl, 0) == -XEN_EPERM
