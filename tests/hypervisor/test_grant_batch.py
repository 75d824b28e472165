"""Arrays of operations: faults, pages that do not lie together, slices, and results stored once."""

from collections import Counter

import pytest

from hypervisor import grant_batch
from hypervisor.abi.errno import XEN_EFAULT, XEN_EINVAL
from hypervisor.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTMAP_host_map,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_no_space,
    GNTST_okay,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_grant_ref,
    gnttab_copy,
    gnttab_map_grant_ref,
    gnttab_unmap_grant_ref,
)
from hypervisor.audit import audit
from hypervisor.continuation import Continuation
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import (
    ARRAY,
    GRANT_TABLE_OP,
    PAGE,
    UNTOUCHED,
    WINDOW,
    GrantGuest,
    granted,
    own,
)

REF = 9
MAP_SIZE = gnttab_map_grant_ref.size
COPY_SIZE = gnttab_copy.size


@pytest.fixture
def guests() -> tuple[GrantGuest, GrantGuest]:
    """A mapper (dom0) and a granter, who lets it use frame 3 under REF and the twenty references after."""
    machine, _host = new_machine()
    mapper, granter = GrantGuest(machine), GrantGuest(machine)
    for number in range(21):
        granter.grant(REF + number, mapper.domid, 3)
    return mapper, granter


def maps(granter: GrantGuest, count: int) -> list[gnttab_map_grant_ref]:
    return [
        gnttab_map_grant_ref(
            (WINDOW + number) * PAGE, GNTMAP_host_map, REF + number, granter.domid, UNTOUCHED
        )
        for number in range(count)
    ]


def mapped(guest: GrantGuest) -> int:
    return sum(1 for _ in guest.domain.grants.maptrack)


def put(guest: GrantGuest, address: int, operations: list[gnttab_map_grant_ref]) -> None:
    guest.domain.memory.write(address, b"".join(operation.pack() for operation in operations))


def test_every_status_has_its_bytes() -> None:
    assert set(grant_batch.STATUS) == set(range(GNTST_no_space, GNTST_okay + 1))
    assert grant_batch.STATUS[GNTST_bad_domain] == b"\xfe\xff"


def test_an_empty_array_is_done_wherever_it_is(guests: tuple[GrantGuest, GrantGuest]) -> None:
    for command in (GNTTABOP_map_grant_ref, GNTTABOP_unmap_grant_ref, GNTTABOP_copy):
        for address in (0, 2**64 - 1):
            assert guests[0].hypercall(GRANT_TABLE_OP, command, address, 0) == 0


@pytest.mark.parametrize("count", [2**31, 2**32 - 1])
def test_a_negative_count_is_invalid(guests: tuple[GrantGuest, GrantGuest], count: int) -> None:
    assert guests[0].hypercall(GRANT_TABLE_OP, GNTTABOP_copy, ARRAY, count) == -XEN_EINVAL


def test_good_and_bad_ones_each_get_their_status(guests: tuple[GrantGuest, GrantGuest]) -> None:
    mapper, granter = guests
    operations = maps(granter, 5)
    operations[1].dom = 99
    operations[3].ref = 512
    done = mapper.array(GNTTABOP_map_grant_ref, operations)
    assert [operation.status for operation in done] == [0, GNTST_bad_domain, 0, GNTST_bad_gntref, 0]
    unmaps = [
        gnttab_unmap_grant_ref(done[number].host_addr, 0, handle, UNTOUCHED)
        for number, handle in ((0, done[0].handle), (2, done[2].handle), (0, done[0].handle))
    ]
    statuses = [operation.status for operation in mapper.array(GNTTABOP_unmap_grant_ref, unmaps)]
    assert statuses == [0, 0, GNTST_bad_handle]
    assert audit(mapper.machine) == []


@pytest.mark.parametrize(
    "address",
    [
        8 * PAGE,
        8 * PAGE - MAP_SIZE,
        8 * PAGE - 2 * MAP_SIZE - 1,
        2**64 - 3 * MAP_SIZE,
        2**64 - MAP_SIZE,
        2**63,
    ],
)
def test_an_array_that_is_not_all_there_does_nothing(
    guests: tuple[GrantGuest, GrantGuest], address: int
) -> None:
    mapper, granter = guests
    there = max(0, min(3, (8 * PAGE - address) // MAP_SIZE))
    put(mapper, address, maps(granter, there))
    assert mapper.hypercall(GRANT_TABLE_OP, GNTTABOP_map_grant_ref, address, 3) == -XEN_EFAULT
    assert mapped(mapper) == 0
    for number in range(there):
        found = mapper.domain.memory.read_struct(gnttab_map_grant_ref, address + number * MAP_SIZE)
        assert found.status == UNTOUCHED


def test_an_array_that_cannot_be_written_does_nothing(guests: tuple[GrantGuest, GrantGuest]) -> None:
    """It lies in a page that the caller has mapped read-only."""
    mapper, granter = guests
    put(granter, 3 * PAGE, maps(granter, 2))
    mapper.map(granter.domid, REF + 20, 0x2000, readonly=True)
    result = mapper.hypercall(GRANT_TABLE_OP, GNTTABOP_map_grant_ref, 0x2000 * PAGE, 2)
    assert result == -XEN_EFAULT
    assert mapped(mapper) == 1
    assert audit(mapper.machine) == []


@pytest.mark.parametrize("before", range(1, MAP_SIZE, 5))
def test_operations_may_lie_across_pages_that_are_apart(
    guests: tuple[GrantGuest, GrantGuest], before: int
) -> None:
    """One is split between RAM and a granted page, at every fifth byte."""
    mapper, granter = guests
    mapper.map(granter.domid, REF + 20, 8)
    address = 8 * PAGE - MAP_SIZE - before
    put(mapper, address, maps(granter, 3))
    assert mapper.hypercall(GRANT_TABLE_OP, GNTTABOP_map_grant_ref, address, 3) == 0
    found = [
        mapper.domain.memory.read_struct(gnttab_map_grant_ref, address + number * MAP_SIZE)
        for number in range(3)
    ]
    assert [(operation.status, operation.handle) for operation in found] == [(0, 1), (0, 2), (0, 3)]
    assert audit(mapper.machine) == []


def test_an_array_can_unmap_the_page_that_it_lies_in(guests: tuple[GrantGuest, GrantGuest]) -> None:
    """The unmap is done and cannot be reported; the ones after it are not executed. As in Xen."""
    mapper, granter = guests
    here = mapper.map(granter.domid, REF, 8).handle
    there = mapper.map(granter.domid, REF, 9).handle
    slots = [gnttab_unmap_grant_ref(8 * PAGE, 0, here, 1), gnttab_unmap_grant_ref(9 * PAGE, 0, there, 1)]
    granter.domain.memory.write(3 * PAGE, b"".join(slot.pack() for slot in slots))
    assert mapper.hypercall(GRANT_TABLE_OP, GNTTABOP_unmap_grant_ref, 8 * PAGE, 2) == -XEN_EFAULT
    assert mapper.domain.memory.mapped(8) is None
    assert mapped(mapper) == 1
    # Nothing was written to the page after it had been unmapped.
    assert granter.domain.memory.read_struct(gnttab_unmap_grant_ref, 3 * PAGE) == slots[0]
    assert audit(mapper.machine) == []


def test_a_copy_onto_its_own_array_does_not_change_what_is_asked(
    guests: tuple[GrantGuest, GrantGuest],
) -> None:
    mapper, granter = guests
    mapper.domain.memory.write(5 * PAGE, b"\xff" * PAGE)
    operations = [
        gnttab_copy(own(5), own(0, ARRAY), 2 * COPY_SIZE, 0, UNTOUCHED),
        gnttab_copy(own(5), granted(granter.domid, REF), 4, GNTCOPY_dest_gref, UNTOUCHED),
    ]
    done = mapper.array(GNTTABOP_copy, operations)
    assert [operation.status for operation in done] == [0, 0]
    assert granter.domain.memory.read(3 * PAGE, 5) == b"\xff\xff\xff\xff\0"


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8])
def test_every_status_is_written_exactly_once(
    guests: tuple[GrantGuest, GrantGuest], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XSA-318: the slice ends before each index in turn; the fields hold garbage at first."""
    monkeypatch.setattr(grant_batch, "SLICE_STEPS", steps)
    mapper, granter = guests
    operations = maps(granter, 7)
    operations[4].dom = 99
    put(mapper, ARRAY, operations)
    writes: Counter[int] = Counter()
    write = mapper.domain.memory.write

    def counting(address: int, data: bytes) -> None:
        writes[address] += 1
        write(address, data)

    monkeypatch.setattr(mapper.domain.memory, "write", counting)
    calls = 0
    number = GRANT_TABLE_OP
    args: tuple[int, ...] = (GNTTABOP_map_grant_ref, ARRAY, 7)
    while True:
        before = sum(writes.values())
        result = mapper.machine.hypercall(mapper.vcpu, number, args)
        assert 0 < sum(writes.values()) - before <= steps
        calls += 1
        if not isinstance(result, Continuation):
            break
        number, args = result
    assert result == 0
    assert calls == -(-7 // steps)
    status = gnttab_map_grant_ref.offsets["status"]
    assert writes == Counter({ARRAY + index * MAP_SIZE + status: 1 for index in range(7)})
    found = [
        mapper.domain.memory.read_struct(gnttab_map_grant_ref, ARRAY + index * MAP_SIZE).status
        for index in range(7)
    ]
    assert found == [0, 0, 0, 0, GNTST_bad_domain, 0, 0]
    assert audit(mapper.machine) == []


def test_a_slice_that_is_not_there_leaves_the_ones_before_done(
    guests: tuple[GrantGuest, GrantGuest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grant_batch, "SLICE_STEPS", 2)
    mapper, granter = guests
    address = 8 * PAGE - 3 * MAP_SIZE
    put(mapper, address, maps(granter, 3))
    assert mapper.hypercall(GRANT_TABLE_OP, GNTTABOP_map_grant_ref, address, 5) == -XEN_EFAULT
    found = [
        mapper.domain.memory.read_struct(gnttab_map_grant_ref, address + number * MAP_SIZE).status
        for number in range(3)
    ]
    assert found == [0, 0, UNTOUCHED]
    assert mapped(mapper) == 2
