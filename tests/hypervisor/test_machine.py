"""The machine: ids of domains, who is meant, and what becomes of a fault."""

import pytest

from hypervisor.abi.errno import XEN_EFAULT, XEN_ESRCH
from hypervisor.abi.sched import SHUTDOWN_crash
from hypervisor.abi.xen import DOMID_FIRST_RESERVED, DOMID_IO, DOMID_SELF, DOMID_XEN
from hypervisor.abi.xen import __HYPERVISOR_xen_version as xen_version
from hypervisor.domain import Traits
from hypervisor.errors import AlreadyExists, NoSuchDomain
from tests.hypervisor.fakes import Guest, new_machine


def test_the_first_domain_is_dom0_and_ids_are_not_used_again_soon() -> None:
    machine, _ = new_machine()
    guests = [Guest(machine) for _ in range(3)]
    assert [guest.domid for guest in guests] == [0, 1, 2]
    guests[2].destroy()
    assert Guest(machine).domid == 3


def test_ids_come_round_and_skip_those_in_use() -> None:
    machine, _ = new_machine()
    Guest(machine)
    last = machine.create_domain(Traits(), domid=DOMID_FIRST_RESERVED - 1)
    machine._last_domid = DOMID_FIRST_RESERVED - 2
    assert machine.create_domain(Traits()).domid == 1
    assert last.domid == DOMID_FIRST_RESERVED - 1


@pytest.mark.parametrize("domid", [0, -1, DOMID_FIRST_RESERVED, DOMID_SELF, 1 << 16])
def test_an_id_that_is_taken_or_reserved_is_refused(domid: int) -> None:
    machine, _ = new_machine()
    Guest(machine)
    with pytest.raises(AlreadyExists):
        machine.create_domain(Traits(), domid=domid)


def test_who_is_meant() -> None:
    machine, _ = new_machine()
    dom0, guest = Guest(machine), Guest(machine)
    assert machine.resolve(guest.domain, DOMID_SELF) is guest.domain
    assert machine.resolve(guest.domain, 0) is dom0.domain
    for domid in (DOMID_SELF, DOMID_IO, DOMID_XEN, 7, 65535):
        with pytest.raises(NoSuchDomain):
            machine.domain(domid)


def test_an_unexpected_exception_costs_the_caller_its_life_and_nobody_else_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, host = new_machine()
    dom0, guest, other = Guest(machine), Guest(machine), Guest(machine)

    def broken(*_: int) -> int:
        raise ZeroDivisionError("somebody's mistake")

    monkeypatch.setattr("hypervisor.hypercalls.TABLE", machine_table(broken))
    assert guest.hypercall(xen_version, 0, 0) == -XEN_EFAULT
    monkeypatch.undo()
    assert guest.domain.shutdown_reason == SHUTDOWN_crash
    assert host.stopped[-1] is guest.domain
    (fault,) = machine.faults
    assert (fault.domid, fault.vcpu_id, fault.hypercall, fault.args) == (guest.domid, 0, "broken", (0, 0))
    assert "somebody's mistake" in fault.traceback
    assert guest.hypercall(xen_version, 0, 0) == -XEN_ESRCH
    assert other.hypercall(xen_version, 0, 0) > 0
    assert dom0.domain.executing
    assert machine.audit() == []


def machine_table(handler: object) -> dict[int, object]:
    from hypervisor.hypercalls import Entry
    from hypervisor.privileges import PRIVILEGES

    return {xen_version: Entry(handler, PRIVILEGES[xen_version], (0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF)}  # type: ignore[arg-type]


def test_the_record_of_faults_is_bounded() -> None:
    machine, _ = new_machine()
    guest = Guest(machine)
    for _ in range(1000):
        machine.record_fault(guest.vcpu, "x", (), "")
    assert len(machine.faults) == 256


def test_expired_timers_act() -> None:
    machine, host = new_machine()
    guest = Guest(machine)
    guest.vcpu.timers.set_singleshot(1000)
    host.time_ns = 999
    assert machine.expire_timers() == 0
    host.time_ns = 1000
    assert machine.expire_timers() == 1
