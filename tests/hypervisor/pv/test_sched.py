"""sched_op of a native domain, as far as it is local."""

import pytest

from hypervisor.abi.sched import SCHEDOP_block, SCHEDOP_poll, SCHEDOP_yield, sched_poll
from hypervisor.errors import GuestFault, InvalidArgument
from hypervisor.pv.sched import sched_op
from hypervisor.pv.vcpu import UPCALL_MASK, UPCALL_PENDING
from tests.hypervisor.pv.flat_domain import FlatDomain

AT = 0x100
PORTS_AT = 0x200


def poll(domain: FlatDomain, ports: list[int], timeout: int = 0) -> int:
    domain.page_tables.write(0, PORTS_AT, b"".join(port.to_bytes(4, "little") for port in ports))
    domain.page_tables.write(0, AT, sched_poll(ports=PORTS_AT, nr_ports=len(ports), timeout=timeout).pack())
    return sched_op(domain.vcpu, SCHEDOP_poll, AT)


def test_yielding_ends_the_slice_and_blocks_nothing() -> None:
    domain = FlatDomain()
    assert sched_op(domain.vcpu, SCHEDOP_yield, 0) == 0
    assert (domain.vcpu.blocked, domain.rota.yielded, domain.reschedules) == (False, True, 1)


@pytest.mark.parametrize("pending", [False, True])
def test_blocking_unmasks_upcalls_and_waits_for_one(pending: bool) -> None:
    domain = FlatDomain()
    domain.vcpu.info[UPCALL_MASK] = 1
    domain.vcpu.info[UPCALL_PENDING] = int(pending)
    assert sched_op(domain.vcpu, SCHEDOP_block, 0) == 0
    assert domain.vcpu.info[UPCALL_MASK] == 0
    assert domain.vcpu.blocked is not pending
    assert domain.reschedules == 1


def test_a_poll_waits_for_its_ports_and_its_time() -> None:
    domain = FlatDomain()
    domain.vcpu.info[UPCALL_MASK] = 1
    assert poll(domain, [4, 5], timeout=77) == 0
    assert (domain.vcpu.blocked, domain.vcpu.poll_ports) == (True, (4, 5))
    assert domain.vcpu.deadline_ns == 77
    domain.ports.set_pending(6)
    assert domain.vcpu.blocked
    domain.ports.set_pending(5)
    assert not domain.vcpu.blocked
    assert domain.vcpu.deadline_ns is None


def test_a_poll_of_what_is_pending_or_with_an_upcall_due_does_not_wait() -> None:
    domain = FlatDomain()
    domain.vcpu.info[UPCALL_MASK] = 1
    domain.ports.set_pending(5)
    poll(domain, [4, 5])
    assert not domain.vcpu.blocked
    domain.vcpu.info[UPCALL_MASK] = 0
    poll(domain, [7])
    assert not domain.vcpu.blocked


def test_bad_polls_are_refused_and_nothing_waits() -> None:
    domain = FlatDomain()
    with pytest.raises(InvalidArgument):
        poll(domain, [1] * 129)
    with pytest.raises(InvalidArgument):
        poll(domain, [4096])
    domain.page_tables.readable = PORTS_AT
    with pytest.raises(GuestFault):
        sched_op(domain.vcpu, SCHEDOP_poll, AT)
    assert not domain.vcpu.blocked
