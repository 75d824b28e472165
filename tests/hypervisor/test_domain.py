"""Domains: vCPUs, and a death that is complete however peers hold on to the dying."""

import gc
import os

import pytest

from hypervisor.abi.event_channel import EVTCHNOP_bind_virq, evtchn_bind_virq
from hypervisor.abi.xen import VIRQ_DOM_EXC
from hypervisor.abi.xen import __HYPERVISOR_event_channel_op as event_channel_op
from hypervisor.domain import Traits
from hypervisor.errors import OutOfMemory
from hypervisor.extent import PAGE_SIZE
from hypervisor.guest_memory import PageKind
from hypervisor.lifecycle import Life
from tests.hypervisor.fakes import Guest, new_machine


def kill_in_slices(guest: Guest, budget: int) -> int:
    slices = 1
    while not guest.domain.kill(budget):
        slices += 1
        assert slices < 100_000
    return slices


def test_vcpus_lie_in_shared_info_up_to_the_legacy_limit() -> None:
    machine, _ = new_machine()
    domain = Guest(machine, vcpus=40).domain
    assert [vcpu.id for vcpu in domain.vcpus] == list(range(40))
    assert [vcpu.online for vcpu in domain.vcpus] == [True] + [False] * 39
    domain.vcpus[31].select_events(1)
    domain.vcpus[32].select_events(1)
    assert domain.shared_info[31 * 64] == 1
    assert domain.shared_info[32 * 64] == 0
    before = domain.vcpus
    domain.add_vcpus()
    assert len(before) == 40


def test_shared_info_is_a_real_frame() -> None:
    machine, _ = new_machine()
    domain = Guest(machine).domain
    domain.memory.map_foreign(100, domain.shared_info_mfn, True, PageKind.SPECIAL)
    domain.vcpus[0].select_events(0b100)
    assert domain.memory.read_u64(100 * PAGE_SIZE + 8) == 0b100
    assert domain.memory.read(100 * PAGE_SIZE, 1) == b"\1"


def test_dom0_is_told_of_shutdown_death_and_end() -> None:
    machine, _ = new_machine()
    dom0 = Guest(machine)
    result, bound = dom0.operate(event_channel_op, EVTCHNOP_bind_virq, evtchn_bind_virq(virq=VIRQ_DOM_EXC))
    assert result == 0
    word = memoryview(dom0.domain.shared_info[2048:2560]).cast("Q")

    def told() -> bool:
        pending = bool(word[0] & 1 << bound.port)
        word[0] = 0
        return pending

    guest = Guest(machine, pages=4)
    peer = Guest(machine)
    frame = guest.domain.memory.mfn(1)
    assert frame is not None
    peer.domain.memory.map_foreign(50, frame, True, PageKind.FOREIGN)
    assert not told()
    guest.domain.shutdown(0)
    assert told()
    assert guest.domain.kill(1000)
    assert guest.domain.life is Life.DEAD
    assert told()
    peer.domain.memory.unmap_foreign(50)
    machine.bury()
    assert guest.domain.life is Life.GONE
    assert told()


def test_death_is_sliced_and_each_slice_is_consistent() -> None:
    machine, _ = new_machine()
    Guest(machine)
    guest = Guest(machine, pages=3000)
    for gpfn in range(0, 3000, 7):
        frame, _ = guest.domain.memory.remove_ram(gpfn, 1)
        guest.domain.reservation.give_up(frame)
    assert machine.audit() == []
    slices = 1
    while not guest.domain.kill(64):
        slices += 1
        assert machine.audit() == []
    assert slices > 3
    assert machine.audit() == []
    assert guest.domid not in machine.domains


def test_a_zombie_waits_for_its_last_frame() -> None:
    machine, _ = new_machine()
    dom0, guest, peer = Guest(machine), Guest(machine, pages=600), Guest(machine)
    guest.domain.memory.write(5 * PAGE_SIZE, b"still here")
    frame = guest.domain.memory.mfn(5)
    assert frame is not None
    peer.domain.memory.map_foreign(70, frame, True, PageKind.FOREIGN)
    kill_in_slices(guest, 16)
    assert (guest.domain.life, guest.domain.tot_pages) == (Life.DEAD, 1)
    assert machine.domain(guest.domid) is guest.domain
    assert peer.domain.memory.read(70 * PAGE_SIZE, 10) == b"still here"
    assert machine.audit() == []
    assert guest.domain.kill(1), "again, and nothing happens"
    kill_in_slices(peer, 16)
    assert list(machine.domains) == [dom0.domid]
    assert machine.frames.used == dom0.domain.tot_pages + dom0.domain.reservation.special_pages
    assert machine.audit() == []


def test_a_special_frame_that_a_peer_maps_keeps_the_zombie() -> None:
    machine, _ = new_machine()
    Guest(machine)
    guest, peer = Guest(machine), Guest(machine)
    peer.domain.memory.map_foreign(70, guest.domain.shared_info_mfn, True, PageKind.FOREIGN)
    kill_in_slices(guest, 100)
    assert (guest.domain.life, guest.domain.reservation.special_pages) == (Life.DEAD, 1)
    peer.domain.memory.unmap_foreign(70)
    machine.bury()
    assert guest.domain.life is Life.GONE
    assert machine.audit() == []


def test_domains_leave_nothing_behind() -> None:
    """XSA-149, -151, -253: descriptors, frames and table entries are flat over many lives."""
    machine, _ = new_machine()
    Guest(machine)

    def census() -> tuple[int, int, int]:
        return len(os.listdir("/proc/self/fd")), machine.frames.used, len(machine.frames.owners)

    def live_and_die() -> None:
        guest = Guest(machine, pages=600)
        guest.domain.memory.write(0, b"x" * 600 * PAGE_SIZE)
        guest.destroy()

    live_and_die()
    gc.collect()  # of what other tests left
    before = census()
    for _ in range(200):
        live_and_die()
    assert census() == before
    assert set(machine.frames.accounts) == {0}


@pytest.mark.parametrize("after", range(3))
def test_a_domain_that_cannot_be_made_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Fail the k-th allocation: shared_info, then the first grant frame."""
    machine, _ = new_machine()
    Guest(machine)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    machine.frames.total = machine.frames.used + after
    if after < 2:
        with pytest.raises(OutOfMemory):
            machine.create_domain(Traits())
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
    else:
        machine.create_domain(Traits())
    assert machine.audit() == []
