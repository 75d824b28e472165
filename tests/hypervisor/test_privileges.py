"""The table of rights, against the operations that the ABI names, and as a guest meets it."""

import pytest

from hypervisor.abi import xen
from hypervisor.abi.errno import XEN_ENOSYS, XEN_EPERM
from hypervisor.abi.operations import OPERATIONS
from hypervisor.errors import NotPermitted
from hypervisor.hypercalls import TABLE
from hypervisor.privileges import NO_OPERATION, PRIVILEGES, Who, may_target
from tests.hypervisor.fakes import Guest, new_machine


def test_every_operation_listed_is_one_of_the_abi() -> None:
    for number, rights in PRIVILEGES.items():
        name = TABLE[number].name
        if name in OPERATIONS:
            assert set(rights) - {NO_OPERATION} <= set(OPERATIONS[name]), name
        else:
            assert set(rights) == {NO_OPERATION}, name


@pytest.mark.parametrize(
    ("number", "operation"),
    [
        (number, operation)
        for number, rights in PRIVILEGES.items()
        for operation, who in rights.items()
        if who is Who.CONTROL and number not in (xen.__HYPERVISOR_domctl, xen.__HYPERVISOR_sysctl)
    ],
)
def test_what_is_for_control_domains_is_refused_to_others(number: int, operation: int) -> None:
    machine, _ = new_machine()
    dom0, guest = Guest(machine), Guest(machine)
    assert guest.hypercall(number, operation, 0, 0) == -XEN_EPERM
    assert dom0.hypercall(number, operation, 0, 0) != -XEN_EPERM


def test_all_of_domctl_and_sysctl_is_for_control_domains() -> None:
    for number in (xen.__HYPERVISOR_domctl, xen.__HYPERVISOR_sysctl):
        assert set(PRIVILEGES[number].values()) == {Who.CONTROL}
        machine, _ = new_machine()
        dom0, guest = Guest(machine), Guest(machine)
        assert guest.hypercall(number, 0) == -XEN_EPERM
        assert dom0.hypercall(number, 0) not in (-XEN_EPERM, -XEN_ENOSYS)


def test_others_are_for_control_domains_oneself_is_for_all() -> None:
    machine, _ = new_machine()
    dom0, guest = Guest(machine), Guest(machine)
    may_target(guest.domain, guest.domain, "look at")
    may_target(dom0.domain, guest.domain, "look at")
    with pytest.raises(NotPermitted) as caught:
        may_target(guest.domain, dom0.domain, "look at")
    assert (caught.value.domid, caught.value.what) == (guest.domid, "look at domain 0")
