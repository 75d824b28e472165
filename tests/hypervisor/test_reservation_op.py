"""populate_physmap, decrease_ and increase_reservation: progress is told exactly, whatever stops them."""

import pytest

from hypervisor.abi import memory as abi
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.abi.xen import __HYPERVISOR_memory_op as memory_op
from hypervisor.continuation import Continuation
from hypervisor.extent import PAGE_SIZE
from hypervisor.guest_memory import PageKind
from hypervisor.memory_command import MEMOP_EXTENT_SHIFT
from tests.hypervisor.fakes import Guest, new_machine

LIST = 0x1000
"""where the tests put gpfns; up to 7 pages of them"""
POPULATE, DECREASE, INCREASE = (
    abi.XENMEM_populate_physmap,
    abi.XENMEM_decrease_reservation,
    abi.XENMEM_increase_reservation,
)


@pytest.fixture
def dom0() -> Guest:
    machine, _ = new_machine(256 << 20)
    return Guest(machine, pages=16)


@pytest.fixture
def guest(dom0: Guest) -> Guest:
    guest = Guest(dom0.machine, pages=16)
    guest.domain.reservation.max_pages = 40_000
    return guest


def request(
    caller: Guest,
    op: int,
    gpfns: list[int],
    *,
    order: int = 0,
    domid: int = DOMID_SELF,
    flags: int = 0,
    count: int | None = None,
    progress: int = 0,
) -> int:
    for index, gpfn in enumerate(gpfns):
        caller.domain.memory.write_u64(LIST + 8 * index, gpfn)
    reservation = abi.xen_memory_reservation(
        extent_start=LIST,
        nr_extents=len(gpfns) if count is None else count,
        extent_order=order,
        mem_flags=flags,
        domid=domid,
    )
    result, _ = caller.operate(memory_op, op | progress << MEMOP_EXTENT_SHIFT, reservation)
    assert caller.machine.audit() == []
    return result


def test_pages_come_zeroed_and_go(guest: Guest) -> None:
    assert request(guest, POPULATE, [100, 101, 500]) == 3
    memory = guest.domain.memory
    assert memory.read(100 * PAGE_SIZE, 2 * PAGE_SIZE) == bytes(2 * PAGE_SIZE)
    memory.write(500 * PAGE_SIZE, b"x")
    assert guest.domain.tot_pages == 19
    assert request(guest, DECREASE, [100, 500]) == 2
    assert (memory.mfn(100), memory.mfn(500), guest.domain.tot_pages) == (None, None, 17)
    assert request(guest, POPULATE, [500]) == 1
    assert memory.read(500 * PAGE_SIZE, 1) == b"\0"


def test_extents_of_an_order_are_one_piece(guest: Guest) -> None:
    assert request(guest, POPULATE, [1024, 4096], order=9) == 2
    assert len(guest.domain.memory.span(1024, 512)) == 512 * PAGE_SIZE
    assert request(guest, DECREASE, [1024], order=9) == 1
    assert guest.domain.memory.mfn(1024 + 511) is None
    assert guest.domain.tot_pages == 16 + 512


def test_a_toolstack_fills_the_domain_that_it_builds(dom0: Guest, guest: Guest) -> None:
    assert request(dom0, POPULATE, [64, 65], domid=guest.domid) == 2
    assert guest.domain.memory.mfn(64) is not None
    assert dom0.domain.memory.mfn(64) is None
    assert request(dom0, DECREASE, [64], domid=guest.domid) == 1


@pytest.mark.parametrize("op", [POPULATE, DECREASE, INCREASE])
def test_nobody_else_does(dom0: Guest, guest: Guest, op: int) -> None:
    assert request(guest, op, [3], domid=dom0.domid) == 0
    assert request(guest, op, [3], domid=77) == 0
    assert dom0.domain.tot_pages == 16


@pytest.mark.parametrize("order", [10, 12, 18, 31, 63, 0xFFFF_FFFF])
def test_orders_above_the_cap_of_a_guest_do_nothing(guest: Guest, order: int) -> None:
    """XSA-31, -158."""
    for op in (POPULATE, DECREASE, INCREASE):
        assert request(guest, op, [0], order=order) == 0
    assert guest.domain.tot_pages == 16


def test_a_control_domain_has_a_higher_cap(dom0: Guest, guest: Guest) -> None:
    assert request(dom0, POPULATE, [4096], order=12, domid=guest.domid) == 1
    assert request(dom0, POPULATE, [8192], order=13, domid=guest.domid) == 0
    assert guest.domain.tot_pages == 16 + 4096


def test_the_extent_that_cannot_be_done_ends_it(guest: Guest) -> None:
    assert request(guest, POPULATE, [20, 21, 5, 22]) == 2, "5 is in use"
    assert guest.domain.memory.mfn(22) is None
    assert request(guest, DECREASE, [20, 30, 21]) == 1, "30 is empty"
    assert guest.domain.memory.mfn(21) is not None
    assert request(guest, DECREASE, [21, 21]) == 1, "the second time nothing is there"


def test_the_allowance_ends_it_exactly(guest: Guest) -> None:
    guest.domain.reservation.max_pages = 16 + 5
    assert request(guest, POPULATE, list(range(100, 110))) == 5
    assert request(guest, INCREASE, [0] * 10) == 0
    assert request(guest, DECREASE, [100]) == 1
    assert request(guest, INCREASE, [0] * 10) == 1


def test_the_machines_memory_ends_it_exactly(guest: Guest) -> None:
    frames = guest.machine.frames
    frames.total = frames.used + 3 * 512 + 7
    assert request(guest, POPULATE, [512 * n for n in range(1, 6)], order=9) == 3
    assert request(guest, INCREASE, [0] * 20) == 7


def test_frames_of_increase_reservation_have_no_place_and_go_with_the_domain(guest: Guest) -> None:
    assert request(guest, INCREASE, [0, 0, 0], order=2) == 3
    assert guest.domain.tot_pages == 16 + 12
    assert guest.domain.memory.max_gpfn == 15
    guest.destroy()
    assert guest.machine.audit() == []


def test_an_extent_with_a_hole_keeps_what_was_released_before_it(guest: Guest) -> None:
    assert request(guest, POPULATE, [64], order=3) == 1
    assert request(guest, DECREASE, [68]) == 1
    assert request(guest, DECREASE, [64], order=3) == 0
    left = [gpfn for gpfn in range(64, 72) if guest.domain.memory.mfn(gpfn) is not None]
    assert left == [69, 70, 71]


def test_only_ram_is_given_back(dom0: Guest, guest: Guest) -> None:
    theirs = dom0.domain.memory.mfn(0)
    assert theirs is not None
    guest.domain.memory.map_foreign(80, theirs, True, PageKind.FOREIGN)
    guest.domain.memory.map_foreign(81, guest.domain.shared_info_mfn, True, PageKind.SPECIAL)
    assert request(guest, DECREASE, [80]) == 0
    assert request(guest, DECREASE, [81]) == 0
    assert request(guest, POPULATE, [80]) == 0


@pytest.mark.parametrize("gpfn", [1 << 32, (1 << 52) - 1, (1 << 64) - 1, (1 << 64) - 512])
def test_guest_frames_that_cannot_be(guest: Guest, gpfn: int) -> None:
    assert request(guest, POPULATE, [gpfn]) == 0
    assert request(guest, POPULATE, [gpfn], order=9) == 0
    assert request(guest, DECREASE, [gpfn]) == 0
    assert guest.domain.tot_pages == 16


def test_a_list_that_runs_out_of_memory_is_done_as_far_as_it_goes(guest: Guest) -> None:
    address = 16 * PAGE_SIZE - 16
    guest.domain.memory.write_u64(address, 50)
    guest.domain.memory.write_u64(address + 8, 51)
    reservation = abi.xen_memory_reservation(extent_start=address, nr_extents=4, domid=DOMID_SELF)
    assert guest.operate(memory_op, POPULATE, reservation)[0] == 2
    assert guest.domain.memory.mfn(51) is not None


@pytest.mark.parametrize("start", [(1 << 64) - 8, (1 << 64) - 1, 1 << 63, 0xFFFF_8000_0000_0000])
def test_a_list_that_cannot_be(guest: Guest, start: int) -> None:
    """XSA-29, -212: nothing wraps."""
    for op in (POPULATE, DECREASE):
        for progress in (0, 1, 3):
            reservation = abi.xen_memory_reservation(extent_start=start, nr_extents=4, domid=DOMID_SELF)
            command = op | progress << MEMOP_EXTENT_SHIFT
            assert guest.operate(memory_op, command, reservation)[0] == progress


@pytest.mark.parametrize("count", [(1 << 26), 1 << 32, (1 << 64) - 1])
def test_more_extents_than_a_continuation_can_say(guest: Guest, count: int) -> None:
    assert request(guest, POPULATE, [50], count=count) == 0
    assert guest.domain.tot_pages == 16


def test_progress_that_a_guest_makes_up(guest: Guest) -> None:
    assert request(guest, POPULATE, [50, 51, 52], progress=2) == 3
    assert (guest.domain.memory.mfn(51), guest.domain.tot_pages) == (None, 17)
    assert request(guest, POPULATE, [53], progress=1) == 1
    assert request(guest, POPULATE, [53], progress=1 << 40) == 1 << 40
    assert guest.domain.tot_pages == 17


def test_a_struct_that_is_not_there(guest: Guest) -> None:
    assert guest.hypercall(memory_op, POPULATE, 1 << 40) == 0
    assert guest.hypercall(memory_op, POPULATE | 5 << MEMOP_EXTENT_SHIFT, 1 << 40) == 5


def test_nodes_are_never_looked_up(dom0: Guest, guest: Guest) -> None:
    """XSA-231: a guest's wish is ignored, its insistence refused; a control domain's node has to exist."""
    dom0.domain.reservation.max_pages = guest.domain.reservation.max_pages = 400
    for node in range(256):
        wish = node << 8
        insist = wish | abi.XENMEMF_exact_node_request
        assert request(guest, POPULATE, [100 + node], flags=wish) == 1
        assert request(guest, DECREASE, [100 + node], flags=insist) == (1 if node == 0 else 0)
        assert request(dom0, POPULATE, [100 + node], flags=insist) == (1 if node <= 64 else 0)


def test_flags_that_are_refused(guest: Guest) -> None:
    assert request(guest, POPULATE, [60], flags=abi.XENMEMF_populate_on_demand) == 0
    assert request(guest, POPULATE, [60], flags=12) == 0, "12 address bits are less than a page"
    assert request(guest, POPULATE, [60], flags=32) == 1


def test_long_requests_are_sliced(guest: Guest) -> None:
    wanted = list(range(1000, 3000, 2))
    assert request(guest, POPULATE, wanted) == 1000
    assert request(guest, DECREASE, wanted) == 1000
    assert guest.domain.tot_pages == 16

    reservation = abi.xen_memory_reservation(extent_start=LIST, nr_extents=1000, domid=DOMID_SELF)
    guest.domain.memory.write_struct(0x100, reservation)
    done = []
    rest: int | Continuation = Continuation(memory_op, (POPULATE, 0x100))
    while isinstance(rest, Continuation):
        done.append(rest.args[0] >> MEMOP_EXTENT_SHIFT)
        rest = guest.machine.hypercall(guest.vcpu, *rest)
        assert guest.machine.audit() == []
    assert rest == 1000
    assert done == list(range(0, 1000, 128))


def test_large_extents_are_sliced_by_their_pages(guest: Guest) -> None:
    guest.domain.memory.write(LIST, b"".join((512 * n).to_bytes(8, "little") for n in range(1, 41)))
    reservation = abi.xen_memory_reservation(
        extent_start=LIST, nr_extents=40, extent_order=9, domid=DOMID_SELF
    )
    guest.domain.memory.write_struct(0x100, reservation)
    rest = guest.machine.hypercall(guest.vcpu, memory_op, (POPULATE, 0x100))
    assert isinstance(rest, Continuation)
    assert rest.args[0] >> MEMOP_EXTENT_SHIFT == 16


def test_the_dying_get_nothing(dom0: Guest, guest: Guest) -> None:
    big = Guest(dom0.machine, pages=5000)
    assert not big.domain.kill(1)
    assert request(dom0, POPULATE, [6000], domid=big.domid) == 0
    assert request(dom0, INCREASE, [0], domid=big.domid) == 0


def test_a_page_that_a_peer_uses_is_given_back_later(dom0: Guest, guest: Guest) -> None:
    frame = guest.domain.memory.mfn(7)
    assert frame is not None
    dom0.domain.memory.map_foreign(80, frame, True, PageKind.FOREIGN)
    assert request(guest, DECREASE, [6, 7, 8]) == 3
    assert guest.domain.tot_pages == 16 - 2
    dom0.domain.memory.unmap_foreign(80)
    assert guest.domain.tot_pages == 16 - 3
