"""Mapping and unmapping, each with every way to be refused."""

from itertools import product

import pytest

from hypervisor.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_guest_avail_mask,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_no_space,
    GNTST_okay,
    GNTTABOP_map_grant_ref,
    GTF_permit_access,
    gnttab_map_grant_ref,
)
from hypervisor.abi.xen import DOMID_IDLE, DOMID_INVALID, DOMID_IO, DOMID_SELF, DOMID_XEN
from hypervisor.audit import audit
from hypervisor.domain import Traits
from hypervisor.grant_audit import audit_entries
from hypervisor.grant_pin import PIN_LIMIT
from hypervisor.maptrack import HANDLES_PER_FRAME
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import PAGE, UNTOUCHED, WINDOW, GrantGuest

REF = 9


@pytest.fixture
def guests() -> tuple[GrantGuest, GrantGuest]:
    """A mapper (dom0) and a granter, who lets it use frame 3 under REF."""
    machine, _host = new_machine()
    mapper, granter = GrantGuest(machine), GrantGuest(machine)
    granter.grant(REF, mapper.domid, 3)
    return mapper, granter


def check(*guests: GrantGuest) -> None:
    """Every count of the machine agrees with what it counts, and entries show the truth."""
    assert audit(guests[0].machine) == []
    assert [finding for guest in guests for finding in audit_entries(guest.domain.grants)] == []


def counts(guest: GrantGuest, gpfn: int) -> tuple[int, int]:
    """References to a frame of `guest`, and the writable ones among them."""
    mfn = guest.domain.memory.mfn(gpfn)
    assert mfn is not None
    frames = guest.machine.frames
    return frames.refs[mfn], frames.writable[mfn]


def test_a_mapped_page_is_the_same_memory(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    granter.domain.memory.write(3 * PAGE, b"granted")
    result = mapper.map(granter.domid, REF)
    assert result.status == GNTST_okay
    assert granter.in_use(REF) == "rw"
    assert mapper.domain.memory.read(WINDOW * PAGE, 7) == b"granted"
    mapper.domain.memory.write(WINDOW * PAGE + 100, b"written")
    assert granter.domain.memory.read(3 * PAGE + 100, 7) == b"written"
    mfn = granter.domain.memory.mfn(3)
    assert mfn is not None
    assert result.dev_bus_addr == mfn * PAGE
    check(*guests)
    assert mapper.unmap(result.handle) == GNTST_okay
    assert granter.in_use(REF) == ""
    assert mapper.domain.memory.mapped(WINDOW) is None
    check(*guests)
    counters = mapper.domain.counters
    assert (counters.grant_maps, counters.grant_unmaps) == (1, 1)


def test_a_readonly_mapping_cannot_be_written(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    assert mapper.map(granter.domid, REF, readonly=True).status == GNTST_okay
    assert granter.in_use(REF) == "r"
    assert mapper.domain.memory.page(WINDOW).readonly
    check(*guests)


def test_a_readonly_grant_is_mapped_readonly_or_not_at_all(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    granter.grant(REF, mapper.domid, 3, readonly=True)
    assert mapper.map(granter.domid, REF).status == GNTST_general_error
    assert granter.in_use(REF) == ""
    assert mapper.map(granter.domid, REF, readonly=True).status == GNTST_okay
    # The pin does not turn it into a writable one either.
    assert mapper.map(granter.domid, REF, WINDOW + 1).status == GNTST_general_error
    assert granter.in_use(REF) == "r"
    check(*guests)


def test_in_use_bits_go_with_the_last_use_that_needs_them(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    reading = mapper.map(granter.domid, REF, WINDOW, readonly=True).handle
    writing = mapper.map(granter.domid, REF, WINDOW + 1).handle
    again = mapper.map(granter.domid, REF, WINDOW + 2).handle
    assert not granter.end(REF)
    assert mapper.unmap(writing, WINDOW + 1) == GNTST_okay
    assert granter.in_use(REF) == "rw"
    assert mapper.unmap(again, WINDOW + 2) == GNTST_okay
    assert granter.in_use(REF) == "r"
    check(*guests)
    assert mapper.unmap(reading) == GNTST_okay
    assert granter.in_use(REF) == ""
    assert granter.end(REF)
    check(*guests)


def test_a_pinned_grant_keeps_its_frame_and_its_domain(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    third = GrantGuest(granter.machine)
    granter.domain.memory.write(3 * PAGE, b"first")
    granter.domain.memory.write(4 * PAGE, b"other")
    first = mapper.map(granter.domid, REF, readonly=True).handle
    # The granter rewrites the entry in use: another frame, another domain.
    granter.grant(REF, third.domid, 4)
    assert third.map(granter.domid, REF).status == GNTST_general_error
    second = mapper.map(granter.domid, REF, WINDOW + 1)
    assert second.status == GNTST_okay
    assert mapper.domain.memory.read((WINDOW + 1) * PAGE, 5) == b"first"
    assert mapper.unmap(first) == GNTST_okay
    assert mapper.unmap(second.handle, WINDOW + 1) == GNTST_okay
    assert third.map(granter.domid, REF).status == GNTST_okay
    assert third.domain.memory.read(WINDOW * PAGE, 5) == b"other"
    check(*guests, third)


def test_ones_own_grant_can_be_mapped() -> None:
    machine, _host = new_machine()
    guest = GrantGuest(machine)
    guest.grant(REF, guest.domid, 3)
    assert guest.map(DOMID_SELF, REF).status == GNTST_bad_domain
    result = guest.map(guest.domid, REF)
    assert result.status == GNTST_okay
    guest.domain.memory.write(3 * PAGE, b"self")
    assert guest.domain.memory.read(WINDOW * PAGE, 4) == b"self"
    check(guest)
    # What is mapped is not granted on, not even by its owner.
    guest.grant(REF + 1, guest.domid, WINDOW)
    assert guest.map(guest.domid, REF + 1, WINDOW + 1).status == GNTST_bad_page
    assert guest.unmap(result.handle) == GNTST_okay
    check(guest)


@pytest.mark.parametrize("domid", [99, DOMID_SELF, DOMID_IO, DOMID_XEN, DOMID_IDLE, DOMID_INVALID, 0xFFFF])
def test_domains_that_do_not_exist_grant_nothing(guests: tuple[GrantGuest, GrantGuest], domid: int) -> None:
    assert guests[0].map(domid, REF).status == GNTST_bad_domain
    check(*guests)


@pytest.mark.parametrize("reference", [512, 513, 64 * 512, 2**31, 2**32 - 1])
def test_references_outside_the_table(guests: tuple[GrantGuest, GrantGuest], reference: int) -> None:
    assert guests[0].map(guests[1].domid, reference).status == GNTST_bad_gntref
    check(*guests)


@pytest.mark.parametrize("gpfn", [8, 0x1000, 0xFFFF_FFFF])
def test_a_granted_frame_that_is_not_there(guests: tuple[GrantGuest, GrantGuest], gpfn: int) -> None:
    mapper, granter = guests
    granter.grant(REF, mapper.domid, gpfn)
    assert mapper.map(granter.domid, REF).status == GNTST_bad_page
    assert granter.in_use(REF) == ""
    check(*guests)


def test_what_was_mapped_from_others_cannot_be_granted(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    third = GrantGuest(granter.machine)
    mapper.map(granter.domid, REF)
    mapper.grant(REF, third.domid, WINDOW)
    assert third.map(mapper.domid, REF).status == GNTST_bad_page
    assert third.copy_from(mapper.domid, REF, 1) == GNTST_bad_page
    assert mapper.in_use(REF) == ""
    check(*guests, third)


@pytest.mark.parametrize("host_addr", [0, 5 * PAGE, 7 * PAGE, 1 << 44, (1 << 64) - PAGE, (1 << 64) - 1])
def test_a_place_that_is_taken_or_no_place(guests: tuple[GrantGuest, GrantGuest], host_addr: int) -> None:
    mapper, granter = guests
    operation = gnttab_map_grant_ref(host_addr=host_addr, flags=GNTMAP_host_map, ref=REF, dom=granter.domid)
    assert mapper.array(GNTTABOP_map_grant_ref, [operation])[0].status == GNTST_general_error
    assert granter.in_use(REF) == ""
    check(*guests)


def test_a_mapping_is_no_vacant_place(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    assert mapper.map(granter.domid, REF).status == GNTST_okay
    assert mapper.map(granter.domid, REF).status == GNTST_general_error
    check(*guests)


def test_low_bits_of_host_addr_mean_nothing(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    operation = gnttab_map_grant_ref(
        host_addr=WINDOW * PAGE + 0x123, flags=GNTMAP_host_map, ref=REF, dom=granter.domid
    )
    done = mapper.array(GNTTABOP_map_grant_ref, [operation])[0]
    assert (done.status, done.host_addr) == (GNTST_okay, WINDOW * PAGE + 0x123)
    assert mapper.domain.memory.mapped(WINDOW) is not None
    check(*guests)


def test_a_refused_map_leaves_the_other_results_as_they_were(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    operation = gnttab_map_grant_ref(
        host_addr=WINDOW * PAGE,
        flags=GNTMAP_host_map,
        ref=600,
        dom=granter.domid,
        status=UNTOUCHED,
        handle=0xABCD,
        dev_bus_addr=0x1122334455667788,
    )
    done = mapper.array(GNTTABOP_map_grant_ref, [operation])[0]
    operation.status = GNTST_bad_gntref
    assert done == operation


def test_each_kind_of_use_has_a_limit(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    for readonly in (True, False):
        base = WINDOW + readonly * 0x1000
        handles = []
        for number in range(PIN_LIMIT):
            result = mapper.map(granter.domid, REF, base + number, readonly=readonly)
            assert result.status == GNTST_okay
            handles.append(result.handle)
        refused = mapper.map(granter.domid, REF, base + PIN_LIMIT, readonly=readonly)
        assert refused.status == GNTST_general_error
        assert mapper.unmap(handles[5], base + 5) == GNTST_okay
        assert mapper.map(granter.domid, REF, base + 5, readonly=readonly).status == GNTST_okay
    check(*guests)


def test_handles_run_out_before_anything_is_pinned() -> None:
    machine, _host = new_machine()
    granter = GrantGuest(machine)
    traits = Traits(max_maptrack_frames=1)
    mapper = GrantGuest(machine)
    mapper.domain.grants.maptrack.limit = traits.max_maptrack_frames * HANDLES_PER_FRAME
    for reference in range(8, 11):
        granter.grant(reference, mapper.domid, 3)
    handles = [
        mapper.map(granter.domid, 8 + number % 3, WINDOW + number, readonly=True).handle
        for number in range(HANDLES_PER_FRAME)
    ]
    assert sorted(handles) == list(range(HANDLES_PER_FRAME))
    granter.grant(11, mapper.domid, 4)
    assert mapper.map(granter.domid, 11, 2 * WINDOW).status == GNTST_no_space
    assert granter.in_use(11) == ""
    assert mapper.unmap(handles[0], WINDOW) == GNTST_okay
    assert mapper.map(granter.domid, 11, 2 * WINDOW).status == GNTST_okay
    check(granter, mapper)


def test_handles_that_stand_for_nothing(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    handle = mapper.map(granter.domid, REF).handle
    for wrong in (handle + 1, 2**31, 2**32 - 1):
        assert mapper.unmap(wrong) == GNTST_bad_handle
    assert granter.unmap(handle) == GNTST_bad_handle
    assert mapper.unmap(handle) == GNTST_okay
    assert mapper.unmap(handle) == GNTST_bad_handle
    check(*guests)


def test_an_unmap_must_name_the_place_of_its_handle(guests: tuple[GrantGuest, GrantGuest]) -> None:
    """Two mappings of one frame, one read-only: neither handle takes the other's page away (XSA-234)."""
    mapper, granter = guests
    writing = mapper.map(granter.domid, REF, WINDOW).handle
    reading = mapper.map(granter.domid, REF, WINDOW + 1, readonly=True).handle
    for handle, gpfn in ((writing, WINDOW + 1), (reading, WINDOW), (writing, 3), (writing, WINDOW + 2)):
        assert mapper.unmap(handle, gpfn) == GNTST_general_error
        assert granter.in_use(REF) == "rw"
        check(*guests)
    assert mapper.unmap(writing, WINDOW) == GNTST_okay
    assert granter.in_use(REF) == "r"
    assert mapper.unmap(reading, WINDOW + 1) == GNTST_okay
    check(*guests)


def test_unmapping_nothing_changes_nothing(guests: tuple[GrantGuest, GrantGuest]) -> None:
    """XSA-394: unmaps without effect, however many, and then the right one."""
    mapper, granter = guests
    handle = mapper.map(granter.domid, REF).handle
    for dev_bus_addr in (0, 1, PAGE, 2**64 - 1):
        for _ in range(10):
            assert mapper.unmap_addresses(handle, 0, dev_bus_addr) == GNTST_okay
            assert granter.in_use(REF) == "rw"
    check(*guests)
    assert mapper.unmap(handle) == GNTST_okay
    assert mapper.domain.counters.grant_unmaps == 1
    check(*guests)


MAP_FLAGS = [
    sum(flags)
    for flags in product(
        (0, GNTMAP_device_map),
        (0, GNTMAP_host_map),
        (0, GNTMAP_readonly),
        (0, GNTMAP_application_map),
        (0, GNTMAP_contains_pte),
        (0, 1 << 5, 1 << 16, GNTMAP_guest_avail_mask),
    )
]


def expected_status(flags: int) -> int:
    """Auto-translated guests map for the host and nothing else."""
    if not flags & (GNTMAP_host_map | GNTMAP_device_map):
        return GNTST_bad_gntref
    return GNTST_okay if flags & ~GNTMAP_readonly == GNTMAP_host_map else GNTST_general_error


ADDRESSES = {"zero": None, "right": 0, "low bits": 0x7FF, "wrong": PAGE}
"""an address to pass to an unmap, by its distance from the right one"""


@pytest.mark.parametrize("host", ADDRESSES)
@pytest.mark.parametrize("bus", ADDRESSES)
def test_map_flags_times_unmap_arguments(guests: tuple[GrantGuest, GrantGuest], host: str, bus: str) -> None:
    """XSA-224: whatever is asked for, counts are restored exactly, or there is an error and no change."""
    mapper, granter = guests
    clean = counts(granter, 3)
    expected = {"zero": GNTST_okay, "wrong": GNTST_general_error}.get(host)
    for flags in MAP_FLAGS:
        result = mapper.map(granter.domid, REF, flags=flags)
        assert result.status == expected_status(flags), hex(flags)
        if result.status == GNTST_okay:
            mapped = counts(granter, 3)
            assert mapped == (clean[0] + 1, clean[1] + (not flags & GNTMAP_readonly))
            host_addr = at(result.host_addr, host)
            for _ in range(3 if expected is not None else 0):
                status = mapper.unmap_addresses(result.handle, host_addr, at(result.dev_bus_addr, bus))
                assert (status, counts(granter, 3)) == (expected, mapped)
                check(*guests)
            right = result.host_addr if expected is not None else host_addr
            assert mapper.unmap_addresses(result.handle, right, at(result.dev_bus_addr, bus)) == GNTST_okay
        assert counts(granter, 3) == clean
        assert granter.flags(REF) == GTF_permit_access
        check(*guests)


def at(address: int, which: str) -> int:
    """An address near, or not near, the right one."""
    distance = ADDRESSES[which]
    return 0 if distance is None else address + distance
