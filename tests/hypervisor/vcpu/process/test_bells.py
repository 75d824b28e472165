"""Which bell rings for whom: steps of two processes, in the orders in which an event could be lost, or be taken from
somebody who may not send it.
"""

import select
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest

from hypervisor.abi.vcpu import VCPUOP_register_vcpu_info, vcpu_register_vcpu_info
from hypervisor.abi.xen import __HYPERVISOR_multicall as MULTICALL
from hypervisor.abi.xen import __HYPERVISOR_vcpu_op as VCPU_OP
from hypervisor.abi.xen import multicall_entry
from hypervisor.vcpu.process.bells import Bells
from hypervisor.vcpu.process.doorbell import PAGE_SIZE
from tests.hypervisor.fakes import ARGUMENT, Guest, new_machine
from tests.hypervisor.vcpu.process.wired import (
    Wired,
    alloc_unbound,
    bind_interdomain,
    close,
    open_files,
    send,
)


@dataclass
class Two:
    """Two process domains and one that is none; nothing is told to anybody but by requests of his own."""

    bells: Bells = field(default_factory=Bells)

    def __post_init__(self) -> None:
        self.machine, _ = new_machine()
        self.keeper = Guest(self.machine)
        self.one, self.other = Guest(self.machine), Guest(self.machine)
        self.first, self.second = Wired(self.one, self.bells), Wired(self.other, self.bells)

    def link(self) -> tuple[int, int]:
        """A channel that the second has bound: it knows, the first has to ask."""
        far = alloc_unbound(self.one, self.first, self.other.domid)
        return far, bind_interdomain(self.other, self.second, self.one.domid, far)

    def settle(self) -> None:
        for wired in (self.first, self.second) * 2:
            wired.take()
        for guest in (self.one, self.other):
            for channel in guest.domain.events.links():
                guest.domain.events.bits.clear_pending(channel)

    def is_pending(self, guest: Guest, port: int) -> bool:
        channel = guest.domain.events.lookup(port)
        assert channel is not None
        return guest.domain.events.bits.is_pending(channel)


@pytest.fixture
def two() -> Iterator[Two]:
    files = open_files()
    two = Two()
    yield two
    two.first.close()
    two.second.close()
    assert len(two.bells) == 0
    assert open_files() == files


def test_events_between_processes_are_no_hypercalls(two: Two) -> None:
    one_port, other_port = two.link()
    two.settle()
    before = sum(two.other.domain.counters.hypercalls.values())
    assert send(two.other, two.second, other_port) == 0
    assert sum(two.other.domain.counters.hypercalls.values()) == before
    assert not two.second.ends.listener.collect()
    assert not two.is_pending(two.one, one_port)
    two.first.take()
    assert two.is_pending(two.one, one_port)


def test_an_event_that_is_rung_before_its_channel_is_known(two: Two) -> None:
    """By a bell that is known for another channel already."""
    two.link()
    two.settle()
    one_port, other_port = two.link()
    assert send(two.other, two.second, other_port) == 0
    assert two.first.platform._connection.listening._all[1].bound == {1}
    two.first.take()
    assert two.is_pending(two.one, one_port)


def test_an_event_that_is_rung_before_its_bell_is_known(two: Two) -> None:
    one_port, other_port = two.link()
    assert send(two.other, two.second, other_port) == 0
    two.first.take()
    assert two.is_pending(two.one, one_port)


def test_a_bell_that_is_told_while_its_listener_falls_asleep_wakes_it(two: Two) -> None:
    one_port = other_port = 0
    idling = two.first.platform.idling
    fall_asleep = idling.listening.fall_asleep

    def link_at_the_last_moment() -> None:
        nonlocal one_port, other_port
        one_port, other_port = two.link()
        fall_asleep()

    with patch.object(idling.listening, "fall_asleep", link_at_the_last_moment):
        assert not idling.before_blocking(None)  # it asks, and learns of the bell, within
    assert len(two.first.platform._connection.listening._all) == 2
    assert not select.select([idling.listening], [], [], 0)[0]
    assert send(two.other, two.second, other_port) == 0
    assert select.select([idling.listening], [], [], 0)[0]
    idling.after_blocking()
    idling.woken()
    assert two.is_pending(two.one, one_port)
    assert send(two.other, two.second, other_port) == 0
    assert not select.select([idling.listening], [], [], 0)[0]


@pytest.mark.parametrize("asks_first", [False, True])
def test_what_was_rung_before_the_other_end_closed_still_counts(two: Two, *, asks_first: bool) -> None:
    one_port, other_port = two.link()
    two.settle()
    assert send(two.other, two.second, other_port) == 0
    close(two.other, two.second, other_port)
    if asks_first:  # the answer says that the bell is gone
        alloc_unbound(two.one, two.first, two.other.domid)
    two.first.take()
    assert two.is_pending(two.one, one_port)


@pytest.mark.parametrize("takes_first", [False, True])
def test_what_was_rung_before_the_other_process_ended_still_counts(two: Two, *, takes_first: bool) -> None:
    one_port, other_port = two.link()
    two.settle()
    assert send(two.other, two.second, other_port) == 0
    two.second.close()
    if takes_first:
        two.first.take()
    close(two.other, None, other_port)
    two.first.take()
    assert two.is_pending(two.one, one_port)
    two.second = Wired(two.other, two.bells)


def test_what_was_rung_for_a_port_that_its_owner_closed_is_nothing(two: Two) -> None:
    one_port, other_port = two.link()
    two.link()
    two.settle()
    assert send(two.other, two.second, other_port) == 0
    close(two.one, two.first, one_port)
    two.first.take()
    assert not two.one.domain.shared_info[2048 + one_port // 8] & 1 << one_port % 8


def test_a_send_comes_before_a_close(two: Two) -> None:
    """To a domain that is no process, by way of the hypervisor, which may not have heard of it yet."""
    far = alloc_unbound(two.keeper, None, two.one.domid)
    near = bind_interdomain(two.one, two.first, two.keeper.domid, far)
    channel = two.keeper.domain.events.lookup(far)
    assert channel is not None
    two.keeper.domain.events.bits.clear_pending(channel)
    assert send(two.one, two.first, near) == 0
    assert not two.keeper.domain.events.bits.is_pending(channel)
    close(two.one, two.first, near)
    assert two.keeper.domain.events.bits.is_pending(channel)


def test_a_process_rings_for_no_port_of_others(two: Two) -> None:
    two.link()
    two.settle()
    stranger = alloc_unbound(two.one, two.first, two.keeper.domid)
    bind_interdomain(two.keeper, None, two.one.domid, stranger)
    two.settle()
    (ringer,) = (
        route[0]
        for route in two.second.platform._connection.routes._routes.values()
        if route[0].memory is not None
    )
    for port in range(PAGE_SIZE):
        ringer.ring(port)
    two.first.take()
    assert not two.is_pending(two.one, stranger)
    assert sum(byte.bit_count() for byte in two.one.domain.shared_info[2048:2560]) == 1


def test_one_bell_serves_all_channels_of_two_domains_and_goes_with_the_last(two: Two) -> None:
    links = [two.link() for _ in range(5)]
    two.settle()
    assert len(two.bells) == 2
    files = len(open_files())
    for _, other_port in links[1:]:
        close(two.other, two.second, other_port)
        two.settle()
        assert len(two.bells) == 2
    assert len(open_files()) == files
    close(two.other, two.second, links[0][1])
    two.settle()
    assert len(two.bells) == 0
    assert len(open_files()) < files


def test_channels_that_come_and_go_before_anybody_asks_cost_nothing(two: Two) -> None:
    files = open_files()
    for _ in range(100):
        far = two.one.domain.events.alloc_unbound(two.other.domid)
        near = two.other.domain.events.bind_interdomain(two.one.domain.events, far)
        two.other.domain.events.close(near)
        two.one.domain.events.close(far)
    assert open_files() == files
    assert len(two.first.changes.bells.noted) == 1
    two.settle()
    assert two.first.is_settled


def test_without_descriptors_for_a_bell_events_go_by_way_of_the_hypervisor(two: Two) -> None:
    with patch("hypervisor.vcpu.process.bell_changes.Bell", side_effect=OSError(24, "too many open files")):
        one_port, other_port = two.link()
    assert len(two.bells) == 0
    two.settle()
    assert send(two.other, two.second, other_port) == 0
    two.second.hear()
    two.first.take()
    assert two.is_pending(two.one, one_port)


def test_a_channel_to_oneself_goes_by_way_of_the_hypervisor(two: Two) -> None:
    far = alloc_unbound(two.one, two.first, two.one.domid)
    near = bind_interdomain(two.one, two.first, two.one.domid, far)
    two.settle()
    assert len(two.bells) == 0
    assert send(two.one, two.first, near) == 0
    two.first.hear()
    two.first.take()
    assert two.is_pending(two.one, far)


def test_a_process_that_ends_leaves_others_a_way_to_its_domain(two: Two) -> None:
    """Whose shared_info shows what was sent to it, to whoever looks."""
    one_port, other_port = two.link()
    two.settle()
    two.first.close()
    two.second.take()
    assert send(two.other, two.second, other_port) == 0
    two.second.hear()
    assert two.is_pending(two.one, one_port)
    two.first = Wired(two.one, two.bells)
    two.settle()
    assert send(two.other, two.second, other_port) == 0
    two.first.take()
    assert two.is_pending(two.one, one_port)


@pytest.mark.parametrize("in_multicall", [False, True])
def test_events_raise_upcalls_where_the_guest_has_moved_its_vcpu_info(
    two: Two, *, in_multicall: bool
) -> None:
    one_port, other_port = two.link()
    two.settle()
    page = two.first.platform.memory.page(0)
    moved = two.first.platform.memory.page(5)[192:256]
    packed = vcpu_register_vcpu_info(mfn=5, offset=192).pack()
    page[ARGUMENT : ARGUMENT + len(packed)] = packed
    if in_multicall:
        args = VCPUOP_register_vcpu_info, 0, ARGUMENT, 0, 0, 0
        page[:64] = multicall_entry(op=VCPU_OP, args=args).pack()
        assert two.first.platform.hypercall(MULTICALL, 0, 1) == 0
    else:
        assert two.first.platform.hypercall(VCPU_OP, VCPUOP_register_vcpu_info, 0, ARGUMENT) == 0
    assert two.one.vcpu.info_frame is not None
    assert moved[0]  # all counts as pending
    assert two.first.platform._take()
    for event in range(2):
        moved[:16] = bytes(16)
        two.one.domain.shared_info[:16] = bytes(16)
        two.one.domain.events.bits._pending[0] = 0
        assert not two.first.platform._take()
        assert send(two.other, two.second, other_port) == 0
        assert two.first.platform._take()
        assert moved[0] == 1
        assert moved[8] == 1
        assert not any(two.one.domain.shared_info[:16])
        if not event:  # and the page moves
            two.first.platform.memory.share(two.other.domid, [5], readonly=True)
            assert two.one.vcpu.info[0] == 1
    assert two.is_pending(two.one, one_port)


def test_a_send_that_is_none_is_the_hypervisors_to_refuse(two: Two) -> None:
    platform = two.first.platform
    assert platform.hypercall(32, 4, 0x7000_0000) == -14
    assert platform.hypercall(32, 4) == platform.hypercall(32, 4, 0)
    assert platform.hypercall(32) < 0


def test_a_process_is_asked_to_look_before_anybody_can_ring(two: Two) -> None:
    """Or it takes what was rung for nothing, and forgets it."""
    two.link()
    two.settle()
    asked: list[bool] = []
    route = two.second.changes.bells.route

    def watched(*args: Any) -> None:
        asked.append(two.first.platform._connection.listening.hypervisor.wants_sync)
        route(*args)

    with patch.object(two.second.changes.bells, "route", watched):
        two.link()
    assert asked == [True]
