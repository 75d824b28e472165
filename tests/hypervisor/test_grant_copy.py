"""Copies between grants and frames of one's own."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_copy,
    GTF_permit_access,
    GTF_sub_page,
    GTF_transitive,
    gnttab_copy,
    gnttab_copy_ptr,
)
from hypervisor.abi.xen import DOMID_INVALID, DOMID_IO, DOMID_SELF, DOMID_XEN
from hypervisor.audit import audit
from hypervisor.grant_audit import audit_entries
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import PAGE, WINDOW, GrantGuest, granted, own

REF = 9


def three_guests() -> tuple[GrantGuest, GrantGuest, GrantGuest]:
    """A copier (dom0) and two granters, who let it use their frame 3 under REF."""
    machine, _host = new_machine()
    copier, one, other = GrantGuest(machine), GrantGuest(machine), GrantGuest(machine)
    one.grant(REF, copier.domid, 3)
    other.grant(REF, copier.domid, 3)
    return copier, one, other


@pytest.fixture
def guests() -> tuple[GrantGuest, GrantGuest, GrantGuest]:
    return three_guests()


def check(*guests: GrantGuest) -> None:
    """Every count agrees, and nothing is in use that was not before."""
    assert audit(guests[0].machine) == []
    assert [finding for guest in guests for finding in audit_entries(guest.domain.grants)] == []


def test_between_a_grant_and_ones_own_frame(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    copier, one, _other = guests
    one.domain.memory.write(3 * PAGE + 10, b"from the grant")
    assert copier.copy_from(one.domid, REF, 5) == GNTST_okay
    assert copier.domain.memory.read(5 * PAGE + 10, 14) == b"from the grant"
    copier.domain.memory.write(6 * PAGE, b"to the grant")
    assert copier.copy_to(one.domid, REF, 6, 12) == GNTST_okay
    assert one.domain.memory.read(3 * PAGE, 24) == b"to the grantom the grant"
    assert one.flags(REF) == GTF_permit_access
    assert (copier.domain.counters.grant_copies, copier.domain.counters.bytes_copied) == (2, PAGE + 12)
    check(*guests)


def test_between_grants_of_two_domains(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    copier, one, other = guests
    one.domain.memory.write(3 * PAGE + 8, b"third party")
    source, dest = granted(one.domid, REF, 8), granted(other.domid, REF, PAGE - 11)
    assert copier.copy(source, dest, 11, GNTCOPY_source_gref | GNTCOPY_dest_gref) == GNTST_okay
    assert other.domain.memory.read(4 * PAGE - 11, 11) == b"third party"
    check(*guests)


def test_ones_own_grant_goes_by_domid_and_by_self(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    copier = guests[0]
    copier.grant(REF, copier.domid, 3)
    copier.domain.memory.write(3 * PAGE, b"mine")
    for gpfn, domid in ((5, copier.domid), (6, DOMID_SELF)):
        assert copier.copy_from(domid, REF, gpfn) == GNTST_okay
        assert copier.domain.memory.read(gpfn * PAGE, 4) == b"mine"
    both = GNTCOPY_source_gref | GNTCOPY_dest_gref
    assert copier.copy(granted(DOMID_SELF, REF), granted(DOMID_SELF, REF, 100), 4, both) == GNTST_okay
    assert copier.domain.memory.read(3 * PAGE + 100, 4) == b"mine"
    check(*guests)


def test_overlapping_ranges_of_one_page_are_copied_as_they_were(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest],
) -> None:
    copier = guests[0]
    copier.domain.memory.write(5 * PAGE, b"abcdefgh")
    assert copier.copy(own(5), own(5, 2), 8, 0) == GNTST_okay
    assert copier.domain.memory.read(5 * PAGE, 10) == b"ababcdefgh"


def test_frames_are_named_by_their_owner_only(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    """Even by its own id a domain names no frame; nor does dom0 name another's."""
    copier, one, _other = guests
    for domid in (copier.domid, one.domid, 99, DOMID_IO, DOMID_XEN, DOMID_INVALID):
        assert copier.copy(own(1, domid=domid), own(5), 1, 0) == GNTST_permission_denied
        assert copier.copy(own(5), own(1, domid=domid), 1, 0) == GNTST_permission_denied
        if domid not in (copier.domid, one.domid):
            assert copier.copy_from(domid, REF, 5) == GNTST_bad_domain
            assert copier.copy_to(domid, REF, 5) == GNTST_bad_domain
    check(*guests)


def test_a_readonly_grant_is_read(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    copier, one, _other = guests
    one.grant(REF, copier.domid, 3, readonly=True)
    assert copier.copy_from(one.domid, REF, 5) == GNTST_okay
    assert copier.copy_to(one.domid, REF, 5) == GNTST_general_error
    # A mapping that reads does not help a copy that writes.
    copier.map(one.domid, REF, readonly=True)
    assert copier.copy_to(one.domid, REF, 5) == GNTST_general_error
    assert one.in_use(REF) == "r"
    check(*guests)


def test_copies_leave_the_bits_of_mappings_alone(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    """XSA-230."""
    copier, one, _other = guests
    reading = copier.map(one.domid, REF, WINDOW, readonly=True).handle
    assert copier.copy_from(one.domid, REF, 5) == GNTST_okay
    assert copier.copy_to(one.domid, REF, 5) == GNTST_okay
    assert one.in_use(REF) == "r"
    writing = copier.map(one.domid, REF, WINDOW + 1).handle
    assert copier.copy_from(one.domid, REF, 5) == GNTST_okay
    assert one.in_use(REF) == "rw"
    assert copier.unmap(reading) == GNTST_okay
    assert copier.copy_to(one.domid, REF, 5) == GNTST_okay
    assert one.in_use(REF) == "rw"
    assert copier.unmap(writing, WINDOW + 1) == GNTST_okay
    assert one.in_use(REF) == ""
    check(*guests)


def test_a_pinned_grant_is_copied_as_it_was_pinned(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    """XSA-500: the entry in use is rewritten; a copy gets wholly the pinned frame."""
    copier, one, other = guests
    one.domain.memory.write(3 * PAGE, b"pinned")
    one.domain.memory.write(4 * PAGE, b"forged")
    handle = copier.map(one.domid, REF, readonly=True).handle
    for flags in (GTF_permit_access, GTF_permit_access | GTF_sub_page, GTF_transitive, 0):
        one.domain.grants.entries.write(REF, other.domid, 4, flags)
        assert copier.copy_from(one.domid, REF, 5) == GNTST_okay
        assert copier.domain.memory.read(5 * PAGE, 6) == b"pinned"
        assert copier.copy_to(one.domid, REF, 5) == GNTST_okay
        assert one.domain.memory.read(4 * PAGE, 6) == b"forged"
    assert copier.unmap(handle) == GNTST_okay
    assert audit(copier.machine) == []


def test_what_version_1_does_not_have_is_refused(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    copier, one, _other = guests
    for flags in (GTF_permit_access | GTF_sub_page, GTF_transitive):
        one.domain.grants.entries.write(REF, copier.domid, 3, flags)
        assert copier.copy_from(one.domid, REF, 5) == GNTST_general_error
        assert copier.copy_to(one.domid, REF, 5) == GNTST_general_error
        assert one.flags(REF) == flags
    check(*guests)


@pytest.mark.parametrize(
    ("source_offset", "dest_offset", "length", "status"),
    [
        (0, 0, PAGE, GNTST_okay),
        (PAGE - 1, 0, 1, GNTST_okay),
        (0, PAGE - 1, 1, GNTST_okay),
        (1, 0, PAGE, GNTST_bad_copy_arg),
        (0, 1, PAGE, GNTST_bad_copy_arg),
        (PAGE, 0, 1, GNTST_bad_copy_arg),
        (0, 0, PAGE + 1, GNTST_bad_copy_arg),
        (0xFFFF, 0, 1, GNTST_bad_copy_arg),
        (0, 0xFFFF, 0xFFFF, GNTST_bad_copy_arg),
    ],
)
def test_a_copy_stays_inside_its_pages(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest],
    source_offset: int,
    dest_offset: int,
    length: int,
    status: int,
) -> None:
    copier, one, _other = guests
    source, dest = granted(one.domid, REF, source_offset), own(5, dest_offset)
    assert copier.copy(source, dest, length, GNTCOPY_source_gref) == status
    source, dest = own(5, source_offset), granted(one.domid, REF, dest_offset)
    assert copier.copy(source, dest, length, GNTCOPY_dest_gref) == status
    check(*guests)


def test_copying_nothing_looks_at_nothing(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    """The hardening beside XSA-448."""
    copier = guests[0]
    wild = granted(DOMID_INVALID, 0xFFFF_FFFF, 0xFFFF)
    assert copier.copy(wild, wild, 0, 0xFFFF) == GNTST_okay
    assert copier.copy(own(2**64 - 1, 0xFFFF), wild, 0, GNTCOPY_dest_gref) == GNTST_okay
    assert copier.domain.counters.grant_copies == 0


@pytest.mark.parametrize("gpfn", [8, WINDOW, 2**32, 2**52, 2**64 - 1])
def test_frames_that_are_not_there(guests: tuple[GrantGuest, GrantGuest, GrantGuest], gpfn: int) -> None:
    copier, one, _other = guests
    assert copier.copy(granted(one.domid, REF), own(gpfn), 1, GNTCOPY_source_gref) == GNTST_bad_page
    assert copier.copy(own(gpfn), granted(one.domid, REF), 1, GNTCOPY_dest_gref) == GNTST_bad_page
    check(*guests)


def test_what_is_mapped_from_others_is_no_frame_of_ones_own(
    guests: tuple[GrantGuest, GrantGuest, GrantGuest],
) -> None:
    copier, one, other = guests
    copier.map(one.domid, REF, readonly=True)
    assert copier.copy_from(other.domid, REF, WINDOW) == GNTST_bad_page
    assert copier.copy_to(other.domid, REF, WINDOW) == GNTST_bad_page
    assert not any(one.domain.memory.read(3 * PAGE, PAGE))
    check(*guests)


def test_a_failing_side_undoes_the_other(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    copier, one, other = guests
    both = GNTCOPY_source_gref | GNTCOPY_dest_gref
    for source, dest, status in (
        (granted(one.domid, REF), granted(other.domid, REF + 1), GNTST_general_error),
        (granted(one.domid, REF + 1), granted(other.domid, REF), GNTST_general_error),
        (granted(one.domid, REF), granted(other.domid, 512), GNTST_bad_gntref),
        (granted(one.domid, REF, 4000), granted(other.domid, REF), GNTST_bad_copy_arg),
    ):
        assert copier.copy(source, dest, 100, both) == status
        assert (one.flags(REF), other.flags(REF)) == (GTF_permit_access, GTF_permit_access)
        check(*guests)


def test_the_high_half_of_a_reference_is_padding(guests: tuple[GrantGuest, GrantGuest, GrantGuest]) -> None:
    copier, one, _other = guests
    source = own(REF | 0xDEAD_0000_0000, domid=one.domid)
    assert copier.copy(source, own(5), 1, GNTCOPY_source_gref) == GNTST_okay


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 3),
            st.integers(0, 5000),
            st.integers(0, 5000),
            st.integers(0, 5000),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_batches_against_plain_bytes(steps: list[tuple[int, int, int, int, int]]) -> None:
    """Two granted frames and two of its own, copied about; the model is four bytearrays."""
    guests = three_guests()
    copier, one, other = guests
    sides: list[tuple[GrantGuest, int, Callable[[int], gnttab_copy_ptr]]] = [
        (one, 3, lambda offset: granted(one.domid, REF, offset)),
        (other, 3, lambda offset: granted(other.domid, REF, offset)),
        (copier, 5, lambda offset: own(5, offset)),
        (copier, 6, lambda offset: own(6, offset)),
    ]
    model = []
    for number, (guest, gpfn, _pointer) in enumerate(sides):
        content = bytes((number * 64 + index) % 251 for index in range(PAGE))
        guest.domain.memory.write(gpfn * PAGE, content)
        model.append(bytearray(content))
    operations, expected = [], []
    for source, dest, source_offset, dest_offset, length in steps:
        flags = (GNTCOPY_source_gref if source < 2 else 0) | (GNTCOPY_dest_gref if dest < 2 else 0)
        operations.append(
            gnttab_copy(sides[source][2](source_offset), sides[dest][2](dest_offset), length, flags)
        )
        fits = not length or max(source_offset, dest_offset) + length <= PAGE
        expected.append(GNTST_okay if fits else GNTST_bad_copy_arg)
        if fits and length:
            data = bytes(model[source][source_offset : source_offset + length])
            model[dest][dest_offset : dest_offset + length] = data
    done = copier.array(GNTTABOP_copy, operations)
    assert [operation.status for operation in done] == expected
    for (guest, gpfn, _pointer), expectation in zip(sides, model, strict=True):
        assert guest.domain.memory.read(gpfn * PAGE, PAGE) == expectation
    check(*guests)
