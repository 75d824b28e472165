"""Machine frame numbers that name nothing yet."""

import pytest

from hypervisor.pv.frames import Kind, LocalFrames
from hypervisor.pv.layout import FOREIGN_END, FOREIGN_FIRST, MFN_END, RAM_FIRST
from hypervisor.pv.vacancy import vacant_foreign, vacant_ram


@pytest.fixture
def frames() -> LocalFrames:
    ledger = [memoryview(bytearray(size * MFN_END)) for size in (1, 2, 1)]
    return LocalFrames(ledger[0], ledger[1].cast("H"), ledger[2])


def test_the_lowest_come_first(frames: LocalFrames) -> None:
    frames.appear(RAM_FIRST, 3, Kind.OWN)
    frames.appear(RAM_FIRST + 4, 1, Kind.OWN)
    assert vacant_ram(frames, 3, 0) == [RAM_FIRST + 3, RAM_FIRST + 5, RAM_FIRST + 6]
    assert vacant_ram(frames, 2, 2) == [RAM_FIRST + 8, RAM_FIRST + 12]


def test_ram_is_where_the_engine_has_memory(frames: LocalFrames) -> None:
    frames.ram_end = RAM_FIRST + 12
    frames.appear(RAM_FIRST + 1, 1, Kind.OWN)
    assert vacant_ram(frames, 5, 2) == [RAM_FIRST + 4, RAM_FIRST + 8]
    assert vacant_ram(frames, 5, 3) == []
    frames.appear(RAM_FIRST + 4, 8, Kind.OWN)
    assert vacant_ram(frames, 5, 1) == [RAM_FIRST + 2]
    assert vacant_ram(frames, 5, 9) == []


def test_the_window_for_others_frames_may_be_full(frames: LocalFrames) -> None:
    assert vacant_foreign(frames) == FOREIGN_FIRST
    frames.appear(FOREIGN_FIRST, FOREIGN_END - FOREIGN_FIRST, Kind.FOREIGN)
    assert vacant_foreign(frames) is None
