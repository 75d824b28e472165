"""add_to_physmap, its batch, remove_from_physmap: what a domain sees where, and what it never sees."""

import pytest

from hypervisor.abi import memory as abi
from hypervisor.abi.errno import (
    XEN_EDOM,
    XEN_EFAULT,
    XEN_EILSEQ,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSYS,
    XEN_ENXIO,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from hypervisor.abi.xen import DOMID_IO, DOMID_SELF, DOMID_XEN
from hypervisor.abi.xen import __HYPERVISOR_memory_op as memory_op
from hypervisor.continuation import Continuation
from hypervisor.extent import PAGE_SIZE
from hypervisor.guest_memory import PageKind
from hypervisor.memory_command import MEMOP_EXTENT_SHIFT
from tests.hypervisor.fakes import Guest, new_machine

IDXS, GPFNS, ERRS = 0x1000, 0x3000, 0x5000
SHARED_INFO, GRANT_TABLE, FOREIGN = (
    abi.XENMAPSPACE_shared_info,
    abi.XENMAPSPACE_grant_table,
    abi.XENMAPSPACE_gmfn_foreign,
)
FREE = 1000
"""a gpfn at which nothing is"""


@pytest.fixture
def dom0() -> Guest:
    machine, _ = new_machine()
    return Guest(machine, pages=16)


@pytest.fixture
def guest(dom0: Guest) -> Guest:
    return Guest(dom0.machine, pages=16)


def add(caller: Guest, space: int, idx: int, gpfn: int, *, domid: int = DOMID_SELF) -> int:
    request = abi.xen_add_to_physmap(domid=domid, space=space, idx=idx, gpfn=gpfn)
    result, _ = caller.operate(memory_op, abi.XENMEM_add_to_physmap, request)
    assert caller.machine.audit() == []
    return result


def add_batch(
    caller: Guest,
    pairs: list[tuple[int, int]],
    *,
    space: int = FOREIGN,
    foreign: int = 1,
    domid: int = DOMID_SELF,
    progress: int = 0,
    errs: int = ERRS,
) -> tuple[int, list[int]]:
    memory = caller.domain.memory
    for index, (idx, gpfn) in enumerate(pairs):
        memory.write_u64(IDXS + 8 * index, idx)
        memory.write_u64(GPFNS + 8 * index, gpfn)
        memory.write_u32(ERRS + 4 * index, 77)
    request = abi.xen_add_to_physmap_batch(
        domid=domid, space=space, size=len(pairs), idxs=IDXS, gpfns=GPFNS, errs=errs
    )
    request.u.foreign_domid = foreign
    command = abi.XENMEM_add_to_physmap_batch | progress << MEMOP_EXTENT_SHIFT
    result, _ = caller.operate(memory_op, command, request)
    assert caller.machine.audit() == []
    words = [memory.read_u32(ERRS + 4 * index) for index in range(len(pairs))]
    return result, [word - (1 << 32) if word >> 31 else word for word in words]


def remove(caller: Guest, gpfn: int, *, domid: int = DOMID_SELF) -> int:
    request = abi.xen_remove_from_physmap(domid=domid, gpfn=gpfn)
    result, _ = caller.operate(memory_op, abi.XENMEM_remove_from_physmap, request)
    assert caller.machine.audit() == []
    return result


def test_shared_info_is_in_one_place_at_a_time(guest: Guest) -> None:
    memory = guest.domain.memory
    assert add(guest, SHARED_INFO, 0, FREE) == 0
    guest.domain.shared_info[0] = 1
    assert memory.read(FREE * PAGE_SIZE, 1) == b"\1"
    assert add(guest, SHARED_INFO, 0, FREE + 1) == 0
    assert memory.mfn(FREE) is None
    assert memory.mfn(FREE + 1) == guest.domain.shared_info_mfn
    assert add(guest, SHARED_INFO, 0, FREE + 1) == 0, "where it is already"
    assert remove(guest, FREE + 1) == 0
    assert memory.special_gpfn(guest.domain.shared_info_mfn) is None
    assert guest.domain.shared_info[0] == 1


def test_ram_in_the_place_is_given_up_for_it(guest: Guest) -> None:
    assert add(guest, SHARED_INFO, 0, 9) == 0
    assert guest.domain.tot_pages == 15
    assert remove(guest, 9) == 0
    assert guest.domain.memory.mfn(9) is None


def test_special_pages_take_each_others_place(guest: Guest) -> None:
    assert add(guest, SHARED_INFO, 0, FREE) == 0
    assert add(guest, GRANT_TABLE, 0, FREE) == 0
    assert guest.domain.memory.mfn(FREE) == guest.domain.grants.shared_frame(0)
    assert guest.domain.memory.special_gpfn(guest.domain.shared_info_mfn) is None


def test_grant_frames_grow_as_they_are_mapped(guest: Guest) -> None:
    assert add(guest, GRANT_TABLE, 3, FREE) == 0
    assert guest.domain.memory.mfn(FREE) == guest.domain.grants.shared_frame(3)
    assert guest.domain.reservation.special_pages == 1 + 4
    assert guest.domain.tot_pages == 16
    for idx in (64, 1 << 31, 1 << 63):
        assert add(guest, GRANT_TABLE, idx, FREE + 1) == -XEN_EINVAL


@pytest.mark.parametrize(
    ("space", "idx"),
    [
        (SHARED_INFO, 1),
        (abi.XENMAPSPACE_gmfn, 0),
        (abi.XENMAPSPACE_gmfn_range, 0),
        (abi.XENMAPSPACE_dev_mmio, 0),
        (77, 0),
    ],
)
def test_what_cannot_be_mapped(guest: Guest, space: int, idx: int) -> None:
    assert add(guest, space, idx, 9) == -XEN_EINVAL
    assert guest.domain.memory.mfn(9) is not None, "and nothing was given up for it"


@pytest.mark.parametrize("gpfn", [1 << 32, (1 << 64) - 1])
def test_places_that_cannot_be(guest: Guest, gpfn: int) -> None:
    assert add(guest, SHARED_INFO, 0, 50) == 0
    assert add(guest, SHARED_INFO, 0, gpfn) == -XEN_EINVAL
    assert guest.domain.memory.special_gpfn(guest.domain.shared_info_mfn) == 50


def test_foreign_pages_are_for_the_batch(dom0: Guest) -> None:
    assert add(dom0, FOREIGN, 0, FREE) == -XEN_ENOSYS


def test_the_toolstack_changes_the_physmap_of_others_and_nobody_else(dom0: Guest, guest: Guest) -> None:
    assert add(dom0, GRANT_TABLE, 0, FREE, domid=guest.domid) == 0
    assert guest.domain.memory.mfn(FREE) == guest.domain.grants.shared_frame(0)
    assert add(guest, SHARED_INFO, 0, 3, domid=0) == -XEN_EPERM
    assert remove(guest, 3, domid=0) == -XEN_EPERM
    assert add(dom0, SHARED_INFO, 0, 3, domid=55) == -XEN_ESRCH
    assert remove(dom0, FREE, domid=guest.domid) == 0


def test_the_toolstack_reaches_into_the_domain_that_it_builds(dom0: Guest, guest: Guest) -> None:
    result, errors = add_batch(dom0, [(3, FREE), (4, FREE + 1), (99, FREE + 2), (5, 0xFFFF_FFFF_FFFF)])
    assert result == 0
    assert errors == [0, 0, -XEN_EINVAL, -XEN_EINVAL]
    dom0.domain.memory.write(FREE * PAGE_SIZE + 7, b"kernel")
    assert guest.domain.memory.read(3 * PAGE_SIZE + 7, 6) == b"kernel"
    assert remove(dom0, FREE) == 0
    assert guest.domain.memory.mfn(3) is not None
    assert dom0.domain.memory.mfn(FREE) is None


def test_a_grant_table_is_seeded_through_a_place_lent_by_the_guest(dom0: Guest, guest: Guest) -> None:
    """What a toolstack does before the guest runs, so that its console and store are granted."""
    assert add(dom0, GRANT_TABLE, 0, FREE, domid=guest.domid) == 0
    assert add_batch(dom0, [(FREE, 500)], foreign=guest.domid) == (0, [0])
    dom0.domain.memory.write(500 * PAGE_SIZE, b"\1\0")
    assert guest.machine.frames.view(guest.domain.grants.shared_frame(0))[0] == 1
    assert remove(dom0, 500) == 0
    assert remove(dom0, FREE, domid=guest.domid) == 0


def test_foreign_mappings_are_for_control_domains(dom0: Guest, guest: Guest) -> None:
    assert add_batch(guest, [(3, FREE)], foreign=0) == (0, [-XEN_EPERM])
    assert add_batch(guest, [(3, FREE)], foreign=guest.domid) == (0, [-XEN_EPERM])
    assert guest.domain.memory.mfn(FREE) is None


@pytest.mark.parametrize(("foreign", "error"), [(0, XEN_EINVAL), (99, XEN_ESRCH), (DOMID_SELF, XEN_ESRCH)])
def test_who_is_no_foreigner(dom0: Guest, guest: Guest, foreign: int, error: int) -> None:
    """XSA-232: special ids name nobody."""
    assert add_batch(dom0, [(3, FREE)], foreign=foreign) == (0, [-error])
    for special in (DOMID_IO, DOMID_XEN):
        assert add_batch(dom0, [(3, FREE)], foreign=special) == (0, [-XEN_ESRCH])


def test_what_a_domain_has_mapped_of_others_is_not_passed_on(dom0: Guest, guest: Guest) -> None:
    third = Guest(dom0.machine)
    frame = third.domain.memory.mfn(0)
    assert frame is not None
    guest.domain.memory.map_foreign(70, frame, True, PageKind.FOREIGN)
    assert add_batch(dom0, [(70, FREE)], foreign=guest.domid) == (0, [-XEN_EINVAL])


def test_a_foreign_page_is_not_replaced(dom0: Guest, guest: Guest) -> None:
    assert add_batch(dom0, [(3, FREE), (4, FREE)]) == (0, [0, -XEN_ENXIO])
    assert add(dom0, SHARED_INFO, 0, FREE) == -XEN_ENXIO
    assert dom0.domain.memory.mfn(FREE) == guest.domain.memory.mfn(3)


def test_a_mapping_outlives_what_it_shows(dom0: Guest, guest: Guest) -> None:
    guest.domain.memory.write(3 * PAGE_SIZE, b"last words")
    assert add_batch(dom0, [(3, FREE)])[1] == [0]
    guest.destroy()
    assert dom0.domain.memory.read(FREE * PAGE_SIZE, 10) == b"last words"
    assert guest.domid in dom0.machine.domains
    assert remove(dom0, FREE) == 0
    assert guest.domid not in dom0.machine.domains


def test_nothing_is_done_that_cannot_be_reported(dom0: Guest, guest: Guest) -> None:
    result, _ = add_batch(dom0, [(3, FREE), (4, FREE + 1)], errs=16 * PAGE_SIZE - 4)
    assert result == -XEN_EFAULT
    assert dom0.domain.memory.mfn(FREE) is not None, "reported"
    assert dom0.domain.memory.mfn(FREE + 1) is None


def test_an_empty_batch_of_foreign_pages(dom0: Guest, guest: Guest) -> None:
    assert add_batch(dom0, [], errs=1 << 40)[0] == 0


def test_arrays_that_are_not_there(dom0: Guest, guest: Guest) -> None:
    for broken in ("idxs", "gpfns", "errs"):
        for address in (16 * PAGE_SIZE, (1 << 64) - 4, 1 << 63):
            places = {"idxs": IDXS, "gpfns": GPFNS, "errs": ERRS} | {broken: address}
            request = abi.xen_add_to_physmap_batch(domid=DOMID_SELF, space=SHARED_INFO, size=1, **places)
            assert dom0.operate(memory_op, abi.XENMEM_add_to_physmap_batch, request)[0] == -XEN_EFAULT
    assert dom0.machine.audit() == []


def test_a_batch_knows_all_spaces_but_ranges(guest: Guest) -> None:
    assert add_batch(guest, [(0, FREE)], space=SHARED_INFO) == (0, [0])
    assert add_batch(guest, [(1, FREE + 1), (0, FREE + 2)], space=GRANT_TABLE) == (0, [0, 0])
    assert add_batch(guest, [(0, FREE)], space=abi.XENMAPSPACE_gmfn_range)[0] == -XEN_EOPNOTSUPP
    assert add_batch(guest, [], space=SHARED_INFO) == (0, [])


def test_progress_that_a_guest_makes_up(guest: Guest) -> None:
    assert add_batch(guest, [(0, FREE)], space=SHARED_INFO, progress=1)[0] == -XEN_EILSEQ
    assert add_batch(guest, [(0, FREE)], space=SHARED_INFO, progress=2)[0] == -XEN_EILSEQ
    assert add_batch(guest, [(0, FREE)], space=SHARED_INFO, progress=1 << 16)[0] == -XEN_EDOM
    assert add_batch(guest, [(0, FREE)], space=SHARED_INFO, progress=1 << 50)[0] == -XEN_EDOM


def test_long_batches_are_sliced(dom0: Guest) -> None:
    big = Guest(dom0.machine, pages=1000)
    memory = dom0.domain.memory
    memory.write(IDXS, b"".join(n.to_bytes(8, "little") for n in range(1000)))
    memory.write(GPFNS, b"".join((FREE + n).to_bytes(8, "little") for n in range(1000)))
    request = abi.xen_add_to_physmap_batch(
        domid=DOMID_SELF, space=FOREIGN, size=1000, idxs=IDXS, gpfns=GPFNS, errs=ERRS
    )
    request.u.foreign_domid = big.domid
    memory.write_struct(0x100, request)
    rest = dom0.machine.hypercall(dom0.vcpu, memory_op, (abi.XENMEM_add_to_physmap_batch, 0x100))
    assert rest == Continuation(
        memory_op, (abi.XENMEM_add_to_physmap_batch | 512 << MEMOP_EXTENT_SHIFT, 0x100)
    )
    assert isinstance(rest, Continuation)
    assert dom0.machine.hypercall(dom0.vcpu, *rest) == 0
    assert memory.mfn(FREE + 999) == big.domain.memory.mfn(999)
    assert dom0.machine.audit() == []


def test_removing_ram_leaves_it_the_domains(guest: Guest) -> None:
    assert remove(guest, 5) == 0
    assert (guest.domain.memory.mfn(5), guest.domain.tot_pages) == (None, 16)
    assert remove(guest, 5) == -XEN_ENOENT
    assert remove(guest, 1 << 60) == -XEN_ENOENT


def test_a_grant_is_removed_by_unmapping_it_only(dom0: Guest, guest: Guest) -> None:
    frame = dom0.domain.memory.mfn(0)
    assert frame is not None
    guest.domain.memory.map_foreign(70, frame, True)
    request = abi.xen_remove_from_physmap(domid=DOMID_SELF, gpfn=70)
    assert guest.operate(memory_op, abi.XENMEM_remove_from_physmap, request)[0] == -XEN_EINVAL
    assert guest.domain.memory.mfn(70) == frame


def test_the_dying_change_no_more(dom0: Guest) -> None:
    big = Guest(dom0.machine, pages=5000)
    assert not big.domain.kill(1)
    assert add(dom0, SHARED_INFO, 0, FREE, domid=big.domid) == -XEN_EINVAL
    assert remove(dom0, 4000, domid=big.domid) == -XEN_EINVAL
