"""memory_op: what it tells of domains, and how its command is taken apart."""

import pytest

from hypervisor.abi import memory as abi
from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOSYS, XEN_EPERM, XEN_ESRCH
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.abi.xen import __HYPERVISOR_memory_op as memory_op
from hypervisor.memory_command import MAX_EXTENTS, MEMOP_EXTENT_SHIFT, go_on
from tests.hypervisor.fakes import Guest, new_machine

TOLD = (abi.XENMEM_current_reservation, abi.XENMEM_maximum_reservation, abi.XENMEM_maximum_gpfn)


@pytest.fixture
def guest() -> Guest:
    machine, _ = new_machine()
    Guest(machine)
    return Guest(machine, pages=20)


def test_a_domain_learns_of_its_own_memory(guest: Guest) -> None:
    guest.domain.reservation.max_pages = 33
    for domid in (DOMID_SELF, guest.domid):
        told = [guest.operate(memory_op, op, abi.xen_memory_domain(domid=domid))[0] for op in TOLD]
        assert told == [20, 33, 19]


def test_and_of_nobody_elses(guest: Guest) -> None:
    dom0 = Guest(new_machine()[0])
    assert dom0.operate(memory_op, TOLD[0], abi.xen_memory_domain(domid=1))[0] == -XEN_ESRCH
    for op in TOLD:
        assert guest.operate(memory_op, op, abi.xen_memory_domain(domid=0))[0] == -XEN_EPERM
        assert guest.operate(memory_op, op, abi.xen_memory_domain(domid=99))[0] == -XEN_ESRCH


def test_a_control_domain_learns_of_others(guest: Guest) -> None:
    machine = guest.machine
    caller = machine.domains[0].vcpus[0]
    caller.domain.memory.write_struct(0, abi.xen_memory_domain(domid=guest.domid))
    assert machine.hypercall(caller, memory_op, (TOLD[0], 0)) == 20


def test_the_size_of_the_machine_stays_the_same(guest: Guest) -> None:
    before = guest.hypercall(memory_op, abi.XENMEM_maximum_ram_page, 0)
    Guest(guest.machine, pages=3000)
    assert guest.hypercall(memory_op, abi.XENMEM_maximum_ram_page, 0) == before == (64 << 20) >> 12


def test_progress_is_for_operations_that_have_some(guest: Guest) -> None:
    for op in (*TOLD, abi.XENMEM_maximum_ram_page, abi.XENMEM_add_to_physmap, abi.XENMEM_remove_from_physmap):
        assert guest.hypercall(memory_op, op | 1 << MEMOP_EXTENT_SHIFT, 0x100) == -XEN_EINVAL


def test_handles_are_checked(guest: Guest) -> None:
    for op in (
        *TOLD,
        abi.XENMEM_add_to_physmap,
        abi.XENMEM_add_to_physmap_batch,
        abi.XENMEM_remove_from_physmap,
    ):
        assert guest.hypercall(memory_op, op, 20 << 12) == -XEN_EFAULT


def test_what_is_not_there_says_so(guest: Guest) -> None:
    for op in (abi.XENMEM_exchange, abi.XENMEM_claim_pages, abi.XENMEM_machphys_mapping, 63):
        assert guest.hypercall(memory_op, op, 0x100) == -XEN_ENOSYS


def test_a_continuation_is_a_command() -> None:
    rest = go_on(abi.XENMEM_populate_physmap, MAX_EXTENTS, 0x123)
    assert rest.number == memory_op
    command, arg = rest.args
    assert (command & 63, command >> 6, arg) == (abi.XENMEM_populate_physmap, MAX_EXTENTS, 0x123)
    assert command >> 32 == 0
