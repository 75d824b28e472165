"""Single facts about event channels that the model test would not show: order, slices, limits, the audit."""

import pytest

from hypervisor.abi.xen import NR_VIRQS, VIRQ_DEBUG, VIRQ_DOM_EXC, VIRQ_TIMER
from hypervisor.errors import AlreadyExists, BadPort, Busy, InvalidArgument, NoSpace, TryAgain
from hypervisor.event_channel import ChannelState
from hypervisor.event_channels import EventChannels
from tests.hypervisor.fakes import FakeHost, Guest, new_machine


def pair() -> tuple[Guest, Guest, FakeHost]:
    machine, host = new_machine()
    return Guest(machine, vcpus=2), Guest(machine, vcpus=2), host


def connect(guest: Guest, peer: Guest) -> tuple[int, int]:
    """Ports of a channel between them, with no event pending."""
    remote = peer.domain.events.alloc_unbound(guest.domid)
    local = guest.domain.events.bind_interdomain(peer.domain.events, remote)
    for vcpu in (*guest.domain.vcpus, *peer.domain.vcpus):
        vcpu.info_words[0] = vcpu.info_words[1] = 0
    guest.domain.events.bits.clear_pending(guest.domain.events.lookup(local))
    return local, remote


def audits(*guests: Guest) -> list[str]:
    return [problem for guest in guests for problem in guest.domain.events.audit()]


def test_ports_are_handed_out_lowest_first_and_never_zero() -> None:
    guest, _, _ = pair()
    events = guest.domain.events
    assert [events.bind_ipi(0) for _ in range(5)] == [1, 2, 3, 4, 5]
    for port in (4, 2, 3):
        events.close(port)
    assert [events.bind_ipi(0) for _ in range(4)] == [2, 3, 4, 6]


def test_all_4095_ports_and_not_one_more() -> None:
    guest, peer, _ = pair()
    events = guest.domain.events
    assert [events.bind_ipi(0) for _ in range(4095)] == list(range(1, 4096))
    remote = peer.domain.events.alloc_unbound(guest.domid)
    for attempt in (
        lambda: events.alloc_unbound(1),
        lambda: events.bind_ipi(0),
        lambda: events.bind_virq(VIRQ_TIMER, 0),
        lambda: events.bind_interdomain(peer.domain.events, remote),
    ):
        with pytest.raises(NoSpace):
            attempt()
    assert peer.domain.events.lookup(remote).state is ChannelState.UNBOUND
    assert audits(guest, peer) == []
    last = events.lookup(4095)
    events.bits.set_pending(last)
    assert events.poll(4095)
    assert guest.domain.shared_info[2048 + 511] == 0x80


def test_a_failed_bind_of_a_virq_leaves_it_free_for_later() -> None:
    """XSA-496: no port left, and yet the state of the VIRQ was touched."""
    machine, _ = new_machine()
    guest = Guest(machine, max_event_port=2)
    events = guest.domain.events
    assert [events.bind_ipi(0), events.bind_ipi(0)] == [1, 2]
    for virq in (VIRQ_DEBUG, VIRQ_DOM_EXC):
        with pytest.raises(NoSpace):
            events.bind_virq(virq, 0)
        events.raise_virq(virq)
    assert events.audit() == []
    events.close(1)
    assert events.bind_virq(VIRQ_DOM_EXC, 0) == 1
    events.raise_virq(VIRQ_DOM_EXC)
    assert events.poll(1)


def test_a_send_marks_the_other_end_and_kicks_once() -> None:
    guest, peer, host = pair()
    local, remote = connect(guest, peer)
    host.take_kicks()
    for _ in range(3):
        guest.domain.events.send(local)
    assert host.take_kicks() == [peer.vcpu]
    assert peer.domain.events.poll(remote)
    assert peer.vcpu.info_words[1] == 1
    assert not guest.domain.events.poll(local)
    assert guest.domain.counters.events_sent == 3
    assert peer.domain.counters.events_received == 1
    assert peer.domain.counters.upcalls == 1


def test_a_word_that_the_guest_is_to_look_at_anyway_raises_no_second_upcall() -> None:
    """The handler clears the upcall first and takes the selector later: what comes between, it sees."""
    guest, peer, host = pair()
    first, _ = connect(guest, peer)
    second, _ = connect(guest, peer)
    guest.domain.events.send(first)
    peer.vcpu.info[0] = 0
    host.take_kicks()
    guest.domain.events.send(second)
    assert (peer.vcpu.upcall_pending, host.take_kicks()) == (False, [])


def test_a_masked_event_waits_for_unmask() -> None:
    guest, peer, host = pair()
    local, remote = connect(guest, peer)
    host.take_kicks()
    peer.domain.shared_info[2560:2568].cast("Q")[0] = 1 << remote
    guest.domain.events.send(local)
    assert peer.domain.events.poll(remote)
    assert (peer.vcpu.upcall_pending, host.take_kicks()) == (False, [])
    peer.domain.events.unmask(remote)
    assert (peer.vcpu.upcall_pending, host.take_kicks()) == (True, [peer.vcpu])
    peer.vcpu.info_words[0] = peer.vcpu.info_words[1] = 0
    peer.domain.events.unmask(remote)
    assert not peer.vcpu.upcall_pending


def test_binding_marks_only_the_new_end() -> None:
    guest, peer, _ = pair()
    remote = peer.domain.events.alloc_unbound(guest.domid)
    peer.domain.events.send(remote)
    local = guest.domain.events.bind_interdomain(peer.domain.events, remote)
    assert guest.domain.events.poll(local)
    assert not peer.domain.events.poll(remote)


def test_a_loopback_channel_closes_to_an_unbound_port_of_its_own() -> None:
    guest, _, _ = pair()
    local, remote = connect(guest, guest)
    guest.domain.events.send(local)
    assert guest.domain.events.poll(remote)
    guest.domain.events.close(local)
    peer = guest.domain.events.lookup(remote)
    assert (peer.state, peer.remote_domid) == (ChannelState.UNBOUND, guest.domid)
    assert guest.domain.events.bind_interdomain(guest.domain.events, remote) == local
    assert audits(guest) == []


def test_a_domain_cannot_bind_to_the_port_that_the_call_would_give_it() -> None:
    guest, _, _ = pair()
    with pytest.raises(BadPort):
        guest.domain.events.bind_interdomain(guest.domain.events, 1)
    assert guest.domain.events.active == 0


def test_a_bucket_made_for_a_failed_bind_stays() -> None:
    """As in Xen: port 64 is then valid, though closed."""
    guest, peer, _ = pair()
    events = guest.domain.events
    for _ in range(63):
        events.bind_ipi(0)
    with pytest.raises(BadPort):
        events.status(64)
    with pytest.raises(BadPort):
        events.bind_interdomain(peer.domain.events, 1)
    assert events.status(64).status == 0


def test_a_global_virq_follows_bind_vcpu_and_one_of_a_vcpu_does_not() -> None:
    guest, _, host = pair()
    events = guest.domain.events
    port = events.bind_virq(VIRQ_DOM_EXC, 0)
    events.bind_vcpu(port, 1)
    host.take_kicks()
    events.raise_virq(VIRQ_DOM_EXC)
    assert host.take_kicks() == [guest.domain.vcpus[1]]
    with pytest.raises(AlreadyExists):
        events.bind_virq(VIRQ_DOM_EXC, 0)
    events.close(port)
    assert events.bind_virq(VIRQ_DOM_EXC, 0) == port
    assert events.status(port).vcpu_id == 0
    timer = events.bind_virq(VIRQ_TIMER, 1)
    with pytest.raises(BadPort):
        events.bind_vcpu(timer, 0)


@pytest.mark.parametrize("virq", [NR_VIRQS, 255, 2**31, 2**32 - 1])
def test_a_virq_that_does_not_exist(virq: int) -> None:
    guest, _, _ = pair()
    with pytest.raises(InvalidArgument):
        guest.domain.events.bind_virq(virq, 0)
    guest.domain.events.raise_virq(virq)


@pytest.mark.parametrize("port", [-1, -64, -4096, 0, 64, 4095, 4096, 2**31, 2**32 - 1])
def test_ports_that_do_not_exist(port: int) -> None:
    guest, _, _ = pair()
    events = guest.domain.events
    for call in (events.send, events.close, events.poll, lambda port: events.bind_vcpu(port, 0)):
        with pytest.raises(BadPort):
            call(port)
    assert events.lookup(port) is None


# ---- closing many


def fill(events: EventChannels, peer: EventChannels, count: int) -> None:
    for _ in range(count):
        remote = peer.alloc_unbound(events.domain.domid)
        events.bind_interdomain(peer, remote)


def test_reset_is_sliced_and_resumed() -> None:
    """XSA-344: closing all ports was one long operation."""
    guest, peer, _ = pair()
    events = guest.domain.events
    fill(events, peer.domain.events, 1000)
    assert not events.reset(300, resuming=False)
    assert events.active == 700
    with pytest.raises(Busy):
        events.reset(300, resuming=False)
    slices = 1
    while not events.reset(300, resuming=True):
        slices += 1
    assert slices == 3
    assert events.active == 0
    with pytest.raises(Busy):
        events.reset(300, resuming=True)
    assert events.reset(300, resuming=False)
    assert audits(guest, peer) == []


def test_ports_bound_behind_a_reset_make_it_fail_and_not_hang() -> None:
    """XSA-343: a reset must notice what happened between its slices."""
    guest, peer, _ = pair()
    events = guest.domain.events
    fill(events, peer.domain.events, 20)
    assert not events.reset(10, resuming=False)
    assert events.bind_ipi(0) == 1
    with pytest.raises(TryAgain):
        events.reset(10, resuming=True)
    assert events.reset(10, resuming=False)
    assert audits(guest, peer) == []


def test_a_dying_domain_binds_nothing_and_lets_go_in_slices() -> None:
    guest, peer, _ = pair()
    events = guest.domain.events
    fill(events, peer.domain.events, 100)
    remote = peer.domain.events.alloc_unbound(guest.domid)
    assert not guest.domain.kill(30)
    assert events.active == 70
    for attempt in (
        lambda: events.alloc_unbound(0),
        lambda: events.bind_virq(VIRQ_TIMER, 0),
        lambda: events.bind_interdomain(peer.domain.events, remote),
    ):
        with pytest.raises(InvalidArgument):
            attempt()
    guest.destroy(30)
    assert events.active == 0
    assert audits(guest, peer) == []
    peer.domain.events.send(1)
    with pytest.raises(BadPort):
        events.send(1)
    events.raise_virq(VIRQ_TIMER)


# ---- the audit


def corruptions() -> dict[str, object]:
    def drop_peer(events: EventChannels) -> None:
        events.lookup(1).peer.peer = None

    def lose_port(events: EventChannels) -> None:
        events._channels[2] = None

    def double_free(events: EventChannels) -> None:
        events._freed.append(1)

    def miscount(events: EventChannels) -> None:
        events.active += 1

    def forget_virq(events: EventChannels) -> None:
        events._virqs.clear()

    def wrong_state(events: EventChannels) -> None:
        events.lookup(1).state = ChannelState.IPI

    def wrong_vcpu(events: EventChannels) -> None:
        events.lookup(2).vcpu_id = 2

    def wrong_port(events: EventChannels) -> None:
        events.lookup(1).port = 2

    def beyond(events: EventChannels) -> None:
        events._fresh = 2

    return {f.__name__: f for f in locals().copy().values() if callable(f)}


@pytest.mark.parametrize("corruption", corruptions().values(), ids=corruptions().keys())
def test_the_audit_notices(corruption) -> None:
    guest, peer, _ = pair()
    connect(guest, peer)
    guest.domain.events.bind_virq(VIRQ_TIMER, 1)
    assert audits(guest, peer) == []
    corruption(guest.domain.events)
    assert guest.domain.events.audit()
