"""The journal of a physmap: who follows it from the beginning knows the physmap."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hypervisor.errors import BadFrame, OutOfMemory, XenError
from hypervisor.frames import FrameTable
from hypervisor.guest_memory import GuestMemory, PageKind
from hypervisor.physmap_changes import Change, MapPage, MapRam, Unmap
from hypervisor.reservation import Reservation

Place = tuple[int, bool | None]
"""frame, and whether it is writable if it is not RAM"""


def never() -> None:
    """Nothing is ever drained here."""


class Followed:
    """A physmap with a journal, and frames of another domain."""

    def __init__(self) -> None:
        self.frames = FrameTable(4096)
        self.own = Reservation(self.frames, 1, 1024, never)
        self.theirs = Reservation(self.frames, 2, 1024, never).allocate(2)[0].mfn
        self.memory = GuestMemory(self.frames, 1)
        self.journal: list[Change] = []
        self.memory.journal = self.journal

    def populate(self, gpfn: int, count: int) -> None:
        self.memory.check_vacant(gpfn, count)
        for run in self.own.allocate(count):
            self.memory.add_ram(gpfn, run.mfn, run.count)
            gpfn += run.count


def replay(journal: list[Change]) -> dict[int, Place]:
    """The physmap as the journal tells it."""
    found: dict[int, Place] = {}
    for change in journal:
        match change:
            case MapRam(gpfn, mfn, count):
                for n in range(count):
                    assert gpfn + n not in found
                    found[gpfn + n] = mfn + n, None
            case MapPage(gpfn, mfn, writable, _):
                assert gpfn not in found
                found[gpfn] = mfn, writable
            case Unmap(gpfn, count):
                for n in range(count):
                    del found[gpfn + n]
    return found


def physmap(memory: GuestMemory) -> dict[int, Place]:
    found: dict[int, Place] = {
        run.gpfn + n: (run.mfn + n, None) for run in memory.runs() for n in range(run.count)
    }
    return found | {gpfn: (page.mfn, page.writable) for gpfn, page in memory.mappings()}


STEPS = st.lists(
    st.tuples(st.sampled_from(["ram", "hole", "map", "unmap"]), st.integers(0, 12), st.integers(1, 5))
)


@given(STEPS, st.booleans())
def test_whoever_follows_the_journal_knows_the_physmap(steps: list[tuple[str, int, int]], end: bool) -> None:
    followed = Followed()
    memory = followed.memory
    for step, gpfn, number in steps:
        before = list(followed.journal)
        try:
            if step == "ram":
                followed.populate(gpfn, number)
            elif step == "hole":
                mfn, count = memory.remove_ram(gpfn, number)
                followed.own.give_up(mfn, count)
            elif step == "map":
                memory.map_foreign(gpfn, followed.theirs + number % 2, number > 2)
            else:
                memory.unmap_foreign(gpfn)
        except XenError:
            assert followed.journal == before
        assert replay(followed.journal) == physmap(memory)
    if end:
        while not memory.relinquish(1):
            pass
        assert replay(followed.journal) == {}


def test_changes_say_what_they_are() -> None:
    followed = Followed()
    followed.populate(3, 2)
    followed.populate(5, 1)
    followed.memory.map_foreign(9, followed.theirs, False, PageKind.FOREIGN)
    followed.memory.remove_ram(4, 9)
    followed.memory.unmap_foreign(9)
    (run,) = followed.memory.runs()
    assert followed.journal == [
        MapRam(3, run.mfn, 2),
        MapRam(5, run.mfn + 2, 1),
        MapPage(9, followed.theirs, writable=False, kind=PageKind.FOREIGN),
        Unmap(4, 2),
        Unmap(9, 1),
    ]


class Refusing:
    """An importer that notes what it is asked and, while it has a refusal, refuses."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.refusal: XenError | None = None

    def __call__(self, mfn: int, writable: bool) -> None:
        self.asked.append((mfn, writable))
        if self.refusal is not None:
            raise self.refusal

    def unmapped(self, mfn: int) -> None:
        self.asked.append(mfn)


@pytest.mark.parametrize("refusal", [BadFrame(1, "no"), OutOfMemory("descriptors", 1, 0)])
def test_what_the_importer_refuses_changes_nothing(refusal: XenError) -> None:
    followed = Followed()
    importer = followed.memory.importer = Refusing()
    importer.refusal = refusal
    version = followed.memory.version
    with pytest.raises(type(refusal)):
        followed.memory.map_foreign(9, followed.theirs, True)
    assert followed.journal == []
    assert physmap(followed.memory) == {}
    assert (followed.frames.refs[followed.theirs], followed.frames.writable[followed.theirs]) == (1, 0)
    assert followed.memory.version == version
    importer.refusal = None
    followed.memory.map_foreign(9, followed.theirs, False)
    followed.memory.unmap_foreign(9)
    assert importer.asked == [(followed.theirs, True), (followed.theirs, False), followed.theirs]


def test_the_importer_is_not_asked_about_special_frames_nor_when_all_is_lost_already() -> None:
    followed = Followed()
    importer = followed.memory.importer = Refusing()
    special = followed.own.allocate(1, special=True)[0].mfn
    followed.memory.map_foreign(9, special, True, PageKind.SPECIAL)
    for gpfn, mfn in ((9, followed.theirs), (10, followed.frames.max_mfn)):
        with pytest.raises(XenError):
            followed.memory.map_foreign(gpfn, mfn, True)
    followed.memory.unmap_foreign(9)
    assert importer.asked == []
