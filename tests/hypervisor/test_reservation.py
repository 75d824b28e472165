"""A domain's reservation: its account, and its thrift with extents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.errors import OutOfMemory
from hypervisor.extent import EXTENT_FRAMES
from hypervisor.frames import FrameTable
from hypervisor.reservation import FrameRun, Reservation


class Drained:
    """Counts how often a reservation says that it is empty."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def reservation(total: int = 8192, max_pages: int = 4096) -> tuple[FrameTable, Reservation, Drained]:
    frames, drained = FrameTable(total), Drained()
    return frames, Reservation(frames, 5, max_pages, drained), drained


def pages(runs: list[FrameRun]) -> list[int]:
    return [mfn for run in runs for mfn in range(run.mfn, run.mfn + run.count)]


def test_no_more_than_the_allowance() -> None:
    frames, mine, _ = reservation(max_pages=100)
    mine.allocate(100)
    with pytest.raises(OutOfMemory) as caught:
        mine.allocate(1)
    assert (caught.value.wanted, caught.value.left) == (1, 0)
    assert (mine.tot_pages, frames.used) == (100, 100)


def test_no_more_than_the_machine_has() -> None:
    frames, mine, _ = reservation(total=64)
    with pytest.raises(OutOfMemory):
        mine.allocate(65)
    assert (mine.tot_pages, frames.used, mine.extents) == (0, 0, [])


def test_an_allowance_may_be_below_what_there_is() -> None:
    _, mine, _ = reservation()
    mine.allocate(10)
    mine.max_pages = 5
    with pytest.raises(OutOfMemory) as caught:
        mine.allocate(1)
    assert caught.value.left == 0


def test_special_frames_count_apart() -> None:
    _, mine, _ = reservation(max_pages=0)
    mine.allocate(3, special=True)
    assert (mine.tot_pages, mine.special_pages) == (0, 3)
    mine.give_up_special()
    assert (mine.special_pages, mine.extents) == (0, [])


def test_a_large_request_is_one_run() -> None:
    _, mine, _ = reservation()
    assert len(mine.allocate(4096)) == 1


def test_pages_taken_one_by_one_share_extents() -> None:
    _, mine, _ = reservation()
    for _ in range(2000):
        mine.allocate(1)
    assert len(mine.extents) <= 8


def test_a_guest_that_balloons_gathers_no_extents() -> None:
    """Giving up scattered pages and asking for pieces of another size must not cost descriptors for ever."""
    _, mine, _ = reservation()
    held = pages(mine.allocate(4096))
    for turn in range(60):
        given = held[turn % 7 :: 61]
        for mfn in given:
            mine.give_up(mfn)
        held = [mfn for mfn in held if mfn not in set(given)] + pages(mine.allocate(len(given)))
    assert len(set(held)) == 4096
    assert len(mine.extents) <= 4


def test_relinquishing_is_sliced_and_says_when_it_is_done() -> None:
    frames, mine, drained = reservation()
    for _ in range(6):
        mine.allocate(600)
    slices = 1
    while not mine.relinquish(16):
        slices += 1
    assert slices > 3
    assert (mine.tot_pages, frames.used, mine.extents, drained.times) == (0, 0, [], 1)


def test_relinquishing_leaves_what_a_peer_refers_to() -> None:
    frames, mine, drained = reservation()
    (run,) = mine.allocate(1500)
    frames.acquire(run.mfn + 700, 5, writable=True)
    frames.view(run.mfn + 700)[0] = 3
    while not mine.relinquish(16):
        pass
    assert (mine.tot_pages, drained.times) == (1, 0)
    assert frames.view(run.mfn + 700)[0] == 3
    frames.release(run.mfn + 700, writable=True)
    assert (mine.tot_pages, frames.used, mine.extents, drained.times) == (0, 0, [], 1)


def test_an_extent_closed_between_slices_is_not_looked_at_again() -> None:
    """Its MFNs may be another domain's by then."""
    frames, mine, _ = reservation()
    runs = [mine.allocate(EXTENT_FRAMES)[0] for _ in range(4)]
    assert not mine.relinquish(16)
    for run in runs[:3]:
        for mfn in range(run.mfn, run.mfn + run.count):
            if frames.exists(mfn):
                mine.give_up(mfn)
    other = Reservation(frames, 6, 4096, Drained())
    theirs = [other.allocate(EXTENT_FRAMES)[0] for _ in range(4)]
    while not mine.relinquish(16):
        pass
    assert other.tot_pages == 4 * EXTENT_FRAMES
    assert all(frames.owner(run.mfn) == 6 for run in theirs)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 700)), max_size=40))
def test_account_and_frame_table_always_agree(steps: list[tuple[bool, int]]) -> None:
    frames, mine, _ = reservation(max_pages=1500)
    held: list[int] = []
    for take, count in steps:
        if take:
            try:
                got = pages(mine.allocate(count))
            except OutOfMemory:
                assert len(held) + count > 1500
            else:
                assert len(got) == count
                assert not set(got) & set(held)
                held += got
        else:
            for mfn in held[:count]:
                mine.give_up(mfn)
            del held[:count]
        assert mine.tot_pages == frames.used == len(held)
        assert sum(extent.used for extent in mine.extents) == len(held)
        assert sum(map(bool, frames.refs)) == len(held)
