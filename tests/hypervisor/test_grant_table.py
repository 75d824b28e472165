"""A table's frames, its reserved entries, and what becomes of grants when domains die."""

import pytest

from hypervisor.abi.grant_table import (
    GNTTAB_RESERVED_CONSOLE,
    GNTTAB_RESERVED_XENSTORE,
    GNTST_bad_domain,
    GNTST_okay,
    GTF_permit_access,
    grant_entry_v1,
)
from hypervisor.abi.memory import XENMAPSPACE_grant_table, XENMEM_add_to_physmap, xen_add_to_physmap
from hypervisor.abi.xen import DOMID_SELF, __HYPERVISOR_memory_op
from hypervisor.audit import audit
from hypervisor.domain import Traits
from hypervisor.errors import InvalidArgument, OutOfMemory
from hypervisor.grant_audit import audit_entries
from hypervisor.grant_entries import ENTRIES_PER_FRAME
from hypervisor.lifecycle import Life
from hypervisor.machine import Machine
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import ARRAY, PAGE, WINDOW, GrantGuest

REF = 9


@pytest.fixture
def guests() -> tuple[GrantGuest, GrantGuest, GrantGuest]:
    """dom0, and two guests."""
    machine, _host = new_machine()
    return GrantGuest(machine), GrantGuest(machine), GrantGuest(machine)


def check(machine: Machine) -> None:
    """All counts agree, and every entry shows the truth."""
    machine.bury()
    assert audit(machine) == []
    assert [found for domain in machine.domains.values() for found in audit_entries(domain.grants)] == []


# Frames


def test_a_guest_sees_its_entries_as_real_memory(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    """Put into the physmap, written by the guest, used by another domain."""
    dom0, guest, _other = guests
    request = xen_add_to_physmap(domid=DOMID_SELF, space=XENMAPSPACE_grant_table, idx=0, gpfn=0x40)
    guest.domain.memory.write_struct(ARRAY, request)
    assert guest.hypercall(__HYPERVISOR_memory_op, XENMEM_add_to_physmap, ARRAY) == 0
    entry = grant_entry_v1(GTF_permit_access, dom0.domid, 3)
    guest.domain.memory.write_struct(0x40 * PAGE + REF * grant_entry_v1.size, entry)
    handle = dom0.map(guest.domid, REF).handle
    assert guest.domain.memory.read_u16(0x40 * PAGE + REF * grant_entry_v1.size) == GTF_permit_access | 8 | 16
    assert dom0.unmap(handle) == GNTST_okay
    assert guest.domain.memory.read_u16(0x40 * PAGE + REF * grant_entry_v1.size) == GTF_permit_access
    check(dom0.machine)


def test_frames_are_added_on_demand_up_to_the_limit(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest],
) -> None:
    table = guests[1].domain.grants
    used = guests[1].machine.frames.used
    assert len(table.shared_mfns) == 1
    fourth = table.shared_frame(3)
    assert table.shared_mfns[3] == fourth
    assert len(set(table.shared_mfns)) == 4
    assert guests[1].machine.frames.used == used + 3
    assert table.shared_frame(0) == table.shared_mfns[0]
    assert table.shared_frame(63) == table.shared_mfns[63]
    for index in (64, 2**31, 2**64 - 1):
        with pytest.raises(InvalidArgument):
            table.shared_frame(index)
    assert table.entries.count == 64 * ENTRIES_PER_FRAME
    assert guests[1].domain.reservation.tot_pages == 8
    check(guests[1].machine)


def test_entries_in_added_frames_are_granted_like_others(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest],
) -> None:
    dom0, guest, _other = guests
    guest.domain.grants.grow(3)
    last = 3 * ENTRIES_PER_FRAME - 1
    guest.grant(last, dom0.domid, 3)
    assert dom0.map(guest.domid, last).status == GNTST_okay
    assert guest.in_use(last) == "rw"
    check(dom0.machine)


def test_growth_without_memory_leaves_the_table_as_it_was() -> None:
    machine, _host = new_machine(memory_bytes=16 * PAGE)
    guest = GrantGuest(machine)
    table = guest.domain.grants
    with pytest.raises(OutOfMemory):
        table.grow(64)
    assert (len(table.shared_mfns), table.entries.count) == (1, ENTRIES_PER_FRAME)
    table.grow(3)
    assert len(table.shared_mfns) == 3
    check(machine)


@pytest.mark.parametrize(
    "traits",
    [
        Traits(max_grant_frames=0),
        Traits(max_grant_frames=65),
        Traits(max_maptrack_frames=-1),
        Traits(max_maptrack_frames=1025),
    ],
)
def test_limits_have_limits(traits: Traits) -> None:
    machine, _host = new_machine()
    with pytest.raises(InvalidArgument):
        machine.create_domain(traits)


# Reserved entries


def test_reserved_entries_are_granted_like_others(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    """What a toolstack has seeded for its daemons."""
    dom0, guest, _other = guests
    guest.grant(GNTTAB_RESERVED_CONSOLE, dom0.domid, 3)
    guest.grant(GNTTAB_RESERVED_XENSTORE, dom0.domid, 4, readonly=True)
    guest.domain.memory.write(3 * PAGE, b"console")
    assert dom0.map(guest.domid, GNTTAB_RESERVED_CONSOLE).status == GNTST_okay
    assert dom0.domain.memory.read(WINDOW * PAGE, 7) == b"console"
    assert dom0.map(guest.domid, GNTTAB_RESERVED_XENSTORE, WINDOW + 1, readonly=True).status == GNTST_okay
    check(dom0.machine)


# Death


def test_pages_outlive_their_owner_while_they_are_mapped(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest],
) -> None:
    dom0, guest, _other = guests
    guest.grant(REF, dom0.domid, 3)
    guest.domain.memory.write(3 * PAGE, b"still here")
    handle = dom0.map(guest.domid, REF).handle
    guest.destroy()
    check(dom0.machine)
    assert guest.domain.life is Life.DEAD
    assert guest.domid in dom0.machine.domains
    assert dom0.domain.memory.read(WINDOW * PAGE, 10) == b"still here"
    # Of a dead domain nothing new can be had, not even what is mapped already.
    assert dom0.map(guest.domid, REF, WINDOW + 1).status == GNTST_bad_domain
    assert dom0.copy_from(guest.domid, REF, 5) == GNTST_bad_domain
    assert dom0.unmap(handle) == GNTST_okay
    check(dom0.machine)
    assert guest.domid not in dom0.machine.domains
    assert dom0.map(guest.domid, REF).status == GNTST_bad_domain


def test_nothing_is_granted_by_the_dying(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    dom0, guest, other = guests
    guest.grant(REF, dom0.domid, 3)
    for number in range(4):
        other.grant(REF + number, guest.domid, 3)
        assert guest.map(other.domid, REF + number, WINDOW + number).status == GNTST_okay
    assert not guest.domain.kill(1)
    assert guest.domain.is_dying
    assert dom0.map(guest.domid, REF).status == GNTST_bad_domain
    assert dom0.copy_from(guest.domid, REF, 5) == GNTST_bad_domain
    assert guest.in_use(REF) == ""
    guest.destroy()
    check(dom0.machine)


@pytest.mark.parametrize("budget", [1, 3, 1000])
def test_what_the_dead_had_mapped_is_released_in_slices(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest], budget: int
) -> None:
    dom0, mapper, granter = guests
    for number in range(12):
        granter.grant(REF + number, mapper.domid, 3 + number % 4)
        mapper.map(granter.domid, REF + number, WINDOW + number, readonly=number % 3 == 0)
    assert mapper.unmap(4, WINDOW + 4) == GNTST_okay
    slices = 0
    mapped = 11
    while not mapper.domain.kill(budget):
        slices += 1
        left = sum(1 for _ in mapper.domain.grants.maptrack)
        assert mapped - left <= budget
        mapped = left
        assert audit(dom0.machine) == []
    assert slices >= 12 // budget
    assert all(granter.in_use(REF + number) == "" for number in range(12))
    check(dom0.machine)
    assert mapper.domid not in dom0.machine.domains


def test_domains_that_map_each_other_and_themselves_die_in_any_order(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest],
) -> None:
    machine = guests[0].machine
    for granter in guests:
        for mapper in guests:
            granter.grant(20 + mapper.domid, mapper.domid, 3)
            assert mapper.map(granter.domid, 20 + mapper.domid, WINDOW + granter.domid).status == GNTST_okay
    for guest in (guests[1], guests[0], guests[2]):
        check(machine)
        guest.destroy(budget=2)
    check(machine)
    assert machine.domains == {}
    assert machine.frames.used == 0


def test_a_page_given_up_by_its_owner_stays_with_its_mapper(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest],
) -> None:
    """Ballooned out while it is granted: the mapping holds the frame, nobody gets it anew."""
    dom0, guest, _other = guests
    guest.grant(REF, dom0.domid, 3)
    guest.domain.memory.write(3 * PAGE, b"old")
    handle = dom0.map(guest.domid, REF, readonly=True).handle
    mfn, _count = guest.domain.memory.remove_ram(3, 1)
    guest.domain.reservation.give_up(mfn)
    assert dom0.domain.memory.read(WINDOW * PAGE, 3) == b"old"
    assert dom0.copy_from(guest.domid, REF, 5) == GNTST_okay
    assert dom0.unmap(handle) == GNTST_okay
    assert guest.in_use(REF) == ""
    assert not dom0.machine.frames.exists(mfn)
    check(dom0.machine)
