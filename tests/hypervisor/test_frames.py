"""The frame table and extents: who owns a frame, who refers to it, and when it is free."""

import os

import pytest

from hypervisor.abi.xen import DOMID_INVALID
from hypervisor.errors import BadFrame, OutOfMemory
from hypervisor.extent import EXTENT_FRAMES, PAGE_SIZE, Extent
from hypervisor.frames import FrameTable
from hypervisor.reservation import Reservation


def never() -> None:
    """What a live domain's reservation calls when it is drained: nothing."""


@pytest.fixture
def frames() -> FrameTable:
    return FrameTable(4096)


@pytest.fixture
def mine(frames: FrameTable) -> Reservation:
    return Reservation(frames, 1, 2048, never)


def test_frames_of_a_run_are_consecutive_zeroed_and_owned(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(16)
    assert run.count == 16
    assert [frames.owner(mfn) for mfn in range(run.mfn, run.mfn + 16)] == [1] * 16
    assert bytes(frames.span(run.mfn, 16)) == bytes(16 * PAGE_SIZE)
    assert frames.used == mine.tot_pages == 16


def test_views_of_one_frame_show_the_same_bytes(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(3)
    frames.view(run.mfn + 1)[5] = 7
    assert frames.span(run.mfn, 3)[PAGE_SIZE + 5] == 7


@pytest.mark.parametrize("mfn", [0, 1, -1, 0xFFFFFFFFFF, 1 << 64])
def test_a_number_that_names_no_frame_is_refused_everywhere(frames: FrameTable, mfn: int) -> None:
    """XSA-32: never an index error, never a wrapped index."""
    assert not frames.exists(mfn)
    for use in (
        lambda: frames.owner(mfn),
        lambda: frames.view(mfn),
        lambda: frames.acquire(mfn, 1, writable=True),
        lambda: frames.give_up(mfn),
    ):
        with pytest.raises(BadFrame) as caught:
            use()
        assert caught.value.mfn == mfn


def test_the_frame_just_behind_the_last_one_does_not_exist(frames: FrameTable, mine: Reservation) -> None:
    mine.allocate(1)
    assert not frames.exists(frames.max_mfn + 1)
    with pytest.raises(BadFrame):
        frames.view(frames.max_mfn + 1)


def test_a_span_may_not_leave_its_extent(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(EXTENT_FRAMES)
    with pytest.raises(BadFrame):
        frames.span(run.mfn, EXTENT_FRAMES + 1)


def test_a_reference_is_given_for_the_right_owner_only(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(1)
    with pytest.raises(BadFrame):
        frames.acquire(run.mfn, 2, writable=False)
    assert frames.refs[run.mfn] == 1


def test_a_frame_stays_with_its_content_until_the_last_release(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(2)
    frames.view(run.mfn)[0] = 9
    frames.acquire(run.mfn, 1, writable=True)
    mine.give_up(run.mfn)
    assert frames.owner(run.mfn) == 1
    assert frames.view(run.mfn)[0] == 9
    assert mine.tot_pages == 2
    frames.release(run.mfn, writable=True)
    assert not frames.exists(run.mfn)
    assert frames.owners[run.mfn] == DOMID_INVALID
    assert mine.tot_pages == 1


def test_a_frame_is_given_up_once(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(2)
    frames.acquire(run.mfn, 1, writable=False)
    mine.give_up(run.mfn)
    with pytest.raises(BadFrame):
        mine.give_up(run.mfn)
    assert frames.refs[run.mfn] == 1


def test_a_frame_that_comes_back_is_zero_again(frames: FrameTable, mine: Reservation) -> None:
    """XSA-100: nothing of its past is in a frame that is handed out."""
    (run,) = mine.allocate(EXTENT_FRAMES)
    frames.view(run.mfn + 3)[:] = b"\xa5" * PAGE_SIZE
    mine.give_up(run.mfn + 3)
    (again,) = mine.allocate(1)
    assert again.mfn == run.mfn + 3
    assert bytes(frames.view(again.mfn)) == bytes(PAGE_SIZE)


def test_machine_frame_numbers_are_used_again(frames: FrameTable, mine: Reservation) -> None:
    for _ in range(50):
        (run,) = mine.allocate(1024)
        mine.give_up(run.mfn, 1024)
    assert frames.max_mfn < 4096
    assert list(frames.extents()) == []


def test_a_view_that_somebody_kept_shows_nobody_elses_memory(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(EXTENT_FRAMES)
    kept = frames.view(run.mfn)
    mine.give_up(run.mfn, EXTENT_FRAMES)
    other = Reservation(frames, 2, 2048, never)
    (theirs,) = other.allocate(EXTENT_FRAMES)
    assert theirs.mfn == run.mfn
    frames.view(theirs.mfn)[0] = 1
    assert kept[0] == 0


def test_file_descriptors_and_memory_go_with_their_extent(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(EXTENT_FRAMES)
    fd = frames.extent_at(run.mfn).fd
    assert os.fstat(fd).st_size == EXTENT_FRAMES * PAGE_SIZE
    assert os.fstat(fd).st_blocks == 0, "RAM is only what is touched"
    mine.give_up(run.mfn, EXTENT_FRAMES)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_ram_is_given_back_when_a_frame_is_freed(frames: FrameTable, mine: Reservation) -> None:
    (run,) = mine.allocate(EXTENT_FRAMES)
    extent = frames.extent_at(run.mfn)
    for mfn in range(run.mfn, run.mfn + 8):
        frames.view(mfn)[0] = 1
    touched = os.fstat(extent.fd).st_blocks
    mine.give_up(run.mfn, 4)
    assert os.fstat(extent.fd).st_blocks == touched // 2


@pytest.mark.parametrize("fails", ["memfd_create", "ftruncate"])
def test_when_the_host_has_no_memory_nothing_has_changed(
    frames: FrameTable, mine: Reservation, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, fails, refuse)
    before = frames.max_mfn
    with pytest.raises(OutOfMemory):
        mine.allocate(1)
    assert (frames.max_mfn, frames.used, mine.tot_pages, mine.extents) == (before, 0, 0, [])


def test_an_extent_that_cannot_be_mapped_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    create = os.memfd_create

    def remember(name: str, flags: int) -> int:
        opened.append(create(name, flags))
        return opened[-1]

    monkeypatch.setattr(os, "memfd_create", remember)
    with pytest.raises((OSError, ValueError, OverflowError)):
        Extent(256, 1 << 60)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
