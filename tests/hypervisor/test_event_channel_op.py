"""event_channel_op: what passes between guest memory and the event channels; faults change nothing."""

import random

import pytest

from hypervisor.abi.errno import (
    XEN_EBUSY,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOSYS,
    XEN_EPERM,
    XEN_ESRCH,
)
from hypervisor.abi.event_channel import (
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_reset_cont,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_unbound,
    evtchn_alloc_unbound,
    evtchn_bind_interdomain,
    evtchn_bind_ipi,
    evtchn_bind_virq,
    evtchn_reset,
    evtchn_send,
    evtchn_status,
)
from hypervisor.abi.xen import (
    DOMID_COW,
    DOMID_IDLE,
    DOMID_INVALID,
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    VIRQ_TIMER,
)
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as EVENT_CHANNEL_OP
from hypervisor.continuation import SLICE_STEPS, Continuation
from hypervisor.extent import PAGE_SIZE
from tests.hypervisor.fakes import Guest, new_machine

NOWHERE = 0x7000_0000
READ_ONLY_GPFN = 100


def guests() -> tuple[Guest, Guest, Guest]:
    """dom0 and two unprivileged domains; the second has a read-only page."""
    machine, _ = new_machine()
    dom0, guest, other = Guest(machine), Guest(machine), Guest(machine)
    frame = other.domain.memory.mfn(1)
    guest.domain.memory.map_foreign(READ_ONLY_GPFN, frame, False)
    return dom0, guest, other


def op(guest: Guest, operation: int, argument) -> tuple[int, object]:
    return guest.operate(EVENT_CHANNEL_OP, operation, argument)


@pytest.mark.parametrize(
    "operation",
    [EVTCHNOP_bind_pirq, EVTCHNOP_init_control, EVTCHNOP_expand_array, EVTCHNOP_set_priority, 15, 2**32 - 1],
)
def test_what_is_not_offered(operation: int) -> None:
    _, guest, _ = guests()
    assert guest.hypercall(EVENT_CHANNEL_OP, operation, 0) == -XEN_ENOSYS


@pytest.mark.parametrize("operation", [*range(2), *range(3, 11), EVTCHNOP_reset_cont])
@pytest.mark.parametrize("address", [NOWHERE, 8 * PAGE_SIZE - 1, 2**64 - 1, 2**63])
def test_an_argument_that_is_not_there(operation: int, address: int) -> None:
    _, guest, _ = guests()
    assert guest.hypercall(EVENT_CHANNEL_OP, operation, address) == -XEN_EFAULT
    assert guest.domain.events.active == 0


@pytest.mark.parametrize(
    ("operation", "argument"),
    [
        (EVTCHNOP_alloc_unbound, evtchn_alloc_unbound(dom=DOMID_SELF, remote_dom=DOMID_SELF)),
        (EVTCHNOP_bind_virq, evtchn_bind_virq(virq=VIRQ_TIMER)),
        (EVTCHNOP_bind_ipi, evtchn_bind_ipi()),
        (EVTCHNOP_bind_interdomain, evtchn_bind_interdomain(remote_dom=0, remote_port=1)),
    ],
)
def test_an_answer_that_cannot_be_written_costs_no_port(operation: int, argument) -> None:
    dom0, guest, other = guests()
    dom0.domain.events.alloc_unbound(guest.domid)
    other.domain.memory.write_struct(PAGE_SIZE, argument)
    address = READ_ONLY_GPFN * PAGE_SIZE
    assert guest.hypercall(EVENT_CHANNEL_OP, operation, address) == -XEN_EFAULT
    assert guest.domain.events.active == 0
    assert guest.domain.events.audit() == dom0.domain.events.audit() == []


def test_a_struct_that_straddles_two_pages() -> None:
    _, guest, _ = guests()
    address = PAGE_SIZE - 2
    guest.domain.memory.write_struct(address, evtchn_alloc_unbound(dom=DOMID_SELF, remote_dom=0))
    assert guest.hypercall(EVENT_CHANNEL_OP, EVTCHNOP_alloc_unbound, address) == 0
    assert guest.domain.memory.read_struct(evtchn_alloc_unbound, address).port == 1


@pytest.mark.parametrize("domid", [3, 100, DOMID_COW, DOMID_IO, DOMID_XEN, DOMID_INVALID, DOMID_IDLE])
def test_domains_that_do_not_exist(domid: int) -> None:
    """XSA-232: special domids have no event channels to look into."""
    dom0, _, _ = guests()
    for operation, argument in (
        (EVTCHNOP_alloc_unbound, evtchn_alloc_unbound(dom=domid, remote_dom=0)),
        (EVTCHNOP_bind_interdomain, evtchn_bind_interdomain(remote_dom=domid, remote_port=1)),
        (EVTCHNOP_status, evtchn_status(dom=domid, port=1)),
        (EVTCHNOP_reset, evtchn_reset(dom=domid)),
    ):
        assert op(dom0, operation, argument)[0] == -XEN_ESRCH


def test_only_dom0_acts_on_others() -> None:
    dom0, guest, other = guests()
    for operation, argument in (
        (EVTCHNOP_alloc_unbound, evtchn_alloc_unbound(dom=other.domid, remote_dom=guest.domid)),
        (EVTCHNOP_status, evtchn_status(dom=other.domid, port=1)),
        (EVTCHNOP_reset, evtchn_reset(dom=other.domid)),
    ):
        assert op(guest, operation, argument)[0] == -XEN_EPERM
    assert other.domain.events.active == 0
    argument = evtchn_alloc_unbound(dom=other.domid, remote_dom=guest.domid)
    result, answer = op(dom0, EVTCHNOP_alloc_unbound, argument)
    assert (result, answer.port) == (0, 1)
    argument = evtchn_bind_interdomain(remote_dom=other.domid, remote_port=1)
    result, answer = op(guest, EVTCHNOP_bind_interdomain, argument)
    assert (result, answer.local_port) == (0, 1)


def test_the_remote_self_is_the_caller_not_the_owner_of_the_port() -> None:
    dom0, guest, _ = guests()
    argument = evtchn_alloc_unbound(dom=guest.domid, remote_dom=DOMID_SELF)
    assert op(dom0, EVTCHNOP_alloc_unbound, argument)[0] == 0
    assert guest.domain.events.lookup(1).remote_domid == dom0.domid


def test_status_of_both_ends() -> None:
    dom0, guest, _ = guests()
    op(guest, EVTCHNOP_alloc_unbound, evtchn_alloc_unbound(dom=DOMID_SELF, remote_dom=0, port=77))
    result, answer = op(guest, EVTCHNOP_status, evtchn_status(dom=DOMID_SELF, port=1))
    assert (result, answer.status, answer.u.unbound.dom) == (0, EVTCHNSTAT_unbound, 0)
    op(dom0, EVTCHNOP_bind_interdomain, evtchn_bind_interdomain(remote_dom=guest.domid, remote_port=1))
    result, answer = op(dom0, EVTCHNOP_status, evtchn_status(dom=guest.domid, port=1))
    assert (result, answer.status) == (0, EVTCHNSTAT_interdomain)
    assert (answer.u.interdomain.dom, answer.u.interdomain.port) == (0, 1)


def test_the_hypercall_sends() -> None:
    dom0, guest, _ = guests()
    op(guest, EVTCHNOP_alloc_unbound, evtchn_alloc_unbound(dom=DOMID_SELF, remote_dom=0))
    op(dom0, EVTCHNOP_bind_interdomain, evtchn_bind_interdomain(remote_dom=guest.domid, remote_port=1))
    assert op(dom0, EVTCHNOP_send, evtchn_send(port=1))[0] == 0
    assert guest.domain.events.poll(1)
    assert op(dom0, EVTCHNOP_send, evtchn_send(port=2))[0] == -XEN_EINVAL


def test_reset_is_a_continuation_and_only_of_a_paused_peer() -> None:
    dom0, guest, other = guests()
    for _ in range(2 * SLICE_STEPS + 1):
        other.domain.events.alloc_unbound(0)
    assert op(dom0, EVTCHNOP_reset, evtchn_reset(dom=other.domid))[0] == -XEN_EINVAL
    other.domain.pause()
    dom0.domain.memory.write_struct(0, evtchn_reset(dom=other.domid))
    result = dom0.machine.hypercall(dom0.vcpu, EVENT_CHANNEL_OP, (EVTCHNOP_reset, 0))
    assert result == Continuation(EVENT_CHANNEL_OP, (EVTCHNOP_reset_cont, 0))
    assert other.domain.events.active == SLICE_STEPS + 1
    assert op(dom0, EVTCHNOP_reset, evtchn_reset(dom=other.domid))[0] == -XEN_EBUSY
    assert dom0.hypercall(EVENT_CHANNEL_OP, EVTCHNOP_reset_cont, 0x100) == 0
    assert other.domain.events.active == 0
    assert op(guest, EVTCHNOP_reset_cont, evtchn_reset(dom=DOMID_SELF))[0] == -XEN_EBUSY


def test_a_guest_may_close_and_unmask_anything_it_likes() -> None:
    """Random operations with random arguments: error codes only, and the tables stay whole."""
    dom0, guest, other = guests()
    everybody = (dom0, guest, other)
    dice = random.Random(0)
    small = [0, 1, 2, 3, 5, 63, 64, 4095, 4096, 0x7FF0, 2**16 - 1, 2**31, 2**32 - 1]
    results = set()
    for _ in range(20_000):
        caller = dice.choice(everybody)
        operation = dice.choice([*range(15), EVTCHNOP_send, EVTCHNOP_close, EVTCHNOP_unmask])
        words = [dice.choice(small) if dice.random() < 0.8 else dice.getrandbits(32) for _ in range(6)]
        caller.domain.memory.write(0x100, b"".join(word.to_bytes(4, "little") for word in words))
        results.add(caller.hypercall(EVENT_CHANNEL_OP, operation, 0x100))
    assert not dom0.machine.faults
    assert [guest.domain.events.audit() for guest in everybody] == [[], [], []]
    assert -XEN_EFAULT not in results
    assert 0 in results
    assert max(results) == 0
