"""The operations on whole tables, and the door in front of all."""

import pytest

from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOSYS, XEN_EPERM, XEN_ESRCH
from hypervisor.abi.grant_table import (
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_virt_addr,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_dump_table,
    GNTTABOP_get_status_frames,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    gnttab_get_version,
    gnttab_query_size,
    gnttab_set_version,
    gnttab_setup_table,
    gnttab_swap_grant_ref,
)
from hypervisor.abi.layout import Struct
from hypervisor.abi.memory import XENMAPSPACE_grant_table, XENMEM_add_to_physmap, xen_add_to_physmap
from hypervisor.abi.xen import (
    DOMID_INVALID,
    DOMID_IO,
    DOMID_SELF,
    DOMID_XEN,
    __HYPERVISOR_grant_table_op,
    __HYPERVISOR_memory_op,
)
from hypervisor.audit import audit
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import ARRAY, PAGE, UNTOUCHED, GrantGuest

REF = 9
FRAME_LIST = 2 * PAGE
INVALID_GPFN = 2**64 - 1


@pytest.fixture
def guests() -> tuple[GrantGuest, GrantGuest]:
    """dom0 and a guest."""
    machine, _host = new_machine()
    return GrantGuest(machine), GrantGuest(machine)


def operate(guest: GrantGuest, command: int, request: Struct, count: int = 1) -> int:
    """The result of an operation on one struct, which lies at ARRAY afterwards."""
    guest.domain.memory.write_struct(ARRAY, request)
    return guest.hypercall(__HYPERVISOR_grant_table_op, command, ARRAY, count)


def setup_table(guest: GrantGuest, domid: int, frames: int, frame_list: int = FRAME_LIST) -> int:
    """The status."""
    request = gnttab_setup_table(domid, frames, UNTOUCHED, frame_list)
    assert operate(guest, GNTTABOP_setup_table, request) == 0
    return guest.domain.memory.read_struct(gnttab_setup_table, ARRAY).status


def add_frame(guest: GrantGuest, index: int, gpfn: int) -> None:
    request = xen_add_to_physmap(domid=DOMID_SELF, space=XENMAPSPACE_grant_table, idx=index, gpfn=gpfn)
    guest.domain.memory.write_struct(ARRAY, request)
    assert guest.hypercall(__HYPERVISOR_memory_op, XENMEM_add_to_physmap, ARRAY) == 0


def test_setup_tells_where_the_guest_has_put_its_frames(guests: tuple[GrantGuest, GrantGuest]) -> None:
    guest = guests[1]
    add_frame(guest, 1, 0x41)
    add_frame(guest, 0, 0x40)
    guest.domain.memory.write(FRAME_LIST, b"\xaa" * 40)
    assert setup_table(guest, DOMID_SELF, 3) == GNTST_okay
    found = [guest.domain.memory.read_u64(FRAME_LIST + 8 * index) for index in range(4)]
    assert found == [0x40, 0x41, INVALID_GPFN, 0xAAAA_AAAA_AAAA_AAAA]
    assert len(guest.domain.grants.shared_mfns) == 3
    # Moved to another place, a frame is told to be there.
    add_frame(guest, 0, 0x50)
    assert setup_table(guest, guest.domid, 1) == GNTST_okay
    assert guest.domain.memory.read_u64(FRAME_LIST) == 0x50
    assert audit(guest.machine) == []


def test_setup_of_nothing_and_of_too_much(guests: tuple[GrantGuest, GrantGuest]) -> None:
    guest = guests[1]
    assert setup_table(guest, DOMID_SELF, 0, frame_list=2**64 - 8) == GNTST_okay
    for frames in (65, 2**31, 2**32 - 1):
        assert setup_table(guest, DOMID_SELF, frames) == GNTST_general_error
    assert len(guest.domain.grants.shared_mfns) == 1
    assert setup_table(guest, DOMID_SELF, 64) == GNTST_okay
    assert len(guest.domain.grants.shared_mfns) == 64


def test_setup_needs_a_place_for_its_list(guests: tuple[GrantGuest, GrantGuest]) -> None:
    guest = guests[1]
    for frame_list in (8 * PAGE, 8 * PAGE - 4, 2**64 - 8, 2**63):
        assert setup_table(guest, DOMID_SELF, 1, frame_list) == GNTST_bad_virt_addr


def test_only_dom0_looks_at_other_tables(guests: tuple[GrantGuest, GrantGuest]) -> None:
    dom0, guest = guests
    assert setup_table(dom0, guest.domid, 2) == GNTST_okay
    assert len(guest.domain.grants.shared_mfns) == 2
    assert setup_table(guest, dom0.domid, 2) == GNTST_permission_denied
    for domid in (99, DOMID_IO, DOMID_XEN, DOMID_INVALID):
        assert setup_table(dom0, domid, 2) == GNTST_bad_domain
    assert len(dom0.domain.grants.shared_mfns) == 1


def test_query_size(guests: tuple[GrantGuest, GrantGuest]) -> None:
    dom0, guest = guests
    guest.domain.grants.grow(5)
    for caller, domid, expected in (
        (guest, DOMID_SELF, (5, 64, GNTST_okay)),
        (dom0, guest.domid, (5, 64, GNTST_okay)),
        (guest, dom0.domid, (77, 88, GNTST_permission_denied)),
        (guest, DOMID_XEN, (77, 88, GNTST_bad_domain)),
    ):
        assert operate(caller, GNTTABOP_query_size, gnttab_query_size(domid, 77, 88, UNTOUCHED)) == 0
        found = caller.domain.memory.read_struct(gnttab_query_size, ARRAY)
        assert (found.nr_frames, found.max_nr_frames, found.status) == expected


@pytest.mark.parametrize("count", [0, 2])
def test_single_operations_take_one(guests: tuple[GrantGuest, GrantGuest], count: int) -> None:
    assert operate(guests[1], GNTTABOP_setup_table, gnttab_setup_table(DOMID_SELF), count) == -XEN_EINVAL
    assert operate(guests[1], GNTTABOP_query_size, gnttab_query_size(DOMID_SELF), count) == -XEN_EINVAL


def test_the_version_is_one(guests: tuple[GrantGuest, GrantGuest]) -> None:
    dom0, guest = guests
    for caller, domid, expected in (
        (guest, DOMID_SELF, 0),
        (dom0, guest.domid, 0),
        (guest, dom0.domid, -XEN_EPERM),
        (dom0, DOMID_INVALID, -XEN_ESRCH),
    ):
        assert operate(caller, GNTTABOP_get_version, gnttab_get_version(domid, 0, 77)) == expected
        found = caller.domain.memory.read_struct(gnttab_get_version, ARRAY)
        assert found.version == (77 if expected else 1)


@pytest.mark.parametrize(
    ("version", "expected"),
    [(1, 0), (2, -XEN_ENOSYS), (0, -XEN_EINVAL), (3, -XEN_EINVAL), (2**32 - 1, -XEN_EINVAL)],
)
def test_no_other_version_can_be_set(
    guests: tuple[GrantGuest, GrantGuest], version: int, expected: int
) -> None:
    guest = guests[1]
    guest.grant(REF, 0, 3)
    assert operate(guest, GNTTABOP_set_version, gnttab_set_version(version)) == expected
    assert guest.domain.memory.read_struct(gnttab_set_version, ARRAY).version == 1
    assert guests[0].map(guest.domid, REF).status == GNTST_okay


def test_entries_are_swapped_unless_one_is_in_use(guests: tuple[GrantGuest, GrantGuest]) -> None:
    dom0, guest = guests
    guest.grant(REF, dom0.domid, 3)
    guest.grant(REF + 1, dom0.domid, 4, readonly=True)
    guest.domain.memory.write(4 * PAGE, b"four")
    swaps = [gnttab_swap_grant_ref(REF, REF + 1, UNTOUCHED), gnttab_swap_grant_ref(REF, REF, UNTOUCHED)]
    assert [swap.status for swap in guest.array(GNTTABOP_swap_grant_ref, swaps)] == [0, 0]
    assert dom0.map(guest.domid, REF, readonly=True).status == GNTST_okay
    assert dom0.domain.memory.read(0x1000 * PAGE, 4) == b"four"
    refused = guest.array(
        GNTTABOP_swap_grant_ref,
        [
            gnttab_swap_grant_ref(REF, REF + 1, UNTOUCHED),
            gnttab_swap_grant_ref(REF + 1, REF, UNTOUCHED),
            gnttab_swap_grant_ref(REF, 512, UNTOUCHED),
            gnttab_swap_grant_ref(2**32 - 1, REF, UNTOUCHED),
            gnttab_swap_grant_ref(512, 512, UNTOUCHED),
        ],
    )
    assert [swap.status for swap in refused] == [GNTST_eagain] * 2 + [GNTST_bad_gntref] * 3
    assert guest.in_use(REF) == "r"
    assert audit(guest.machine) == []


@pytest.mark.parametrize(
    "command",
    [
        GNTTABOP_dump_table,
        GNTTABOP_transfer,
        GNTTABOP_unmap_and_replace,
        GNTTABOP_get_status_frames,
        GNTTABOP_cache_flush,
        13,
        0xFFF,
    ],
)
def test_what_is_not_implemented_says_so(guests: tuple[GrantGuest, GrantGuest], command: int) -> None:
    assert guests[0].hypercall(__HYPERVISOR_grant_table_op, command, ARRAY, 1) == -XEN_ENOSYS


def test_progress_in_the_command_is_nobodys(guests: tuple[GrantGuest, GrantGuest]) -> None:
    for command in (GNTTABOP_map_grant_ref, GNTTABOP_copy, GNTTABOP_query_size):
        forged = command | 0x1000
        assert guests[0].hypercall(__HYPERVISOR_grant_table_op, forged, ARRAY, 1) == -XEN_EINVAL


@pytest.mark.parametrize(
    "command",
    [
        GNTTABOP_setup_table,
        GNTTABOP_query_size,
        GNTTABOP_get_version,
        GNTTABOP_set_version,
        GNTTABOP_map_grant_ref,
    ],
)
def test_structs_that_are_not_there(guests: tuple[GrantGuest, GrantGuest], command: int) -> None:
    for address in (8 * PAGE, 8 * PAGE - 1, 2**64 - 1, 2**64 - 8, 2**63):
        assert guests[1].hypercall(__HYPERVISOR_grant_table_op, command, address, 1) == -XEN_EFAULT
    assert len(guests[1].domain.grants.shared_mfns) == 1
