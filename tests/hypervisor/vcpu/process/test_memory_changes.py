"""What a process is told of its memory, however it changes meanwhile and whenever the process asks: it maps what its
physmap says, and nothing of anybody else's that was not given to it.
"""

import gc
import os
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.errors import XenError
from hypervisor.extent import EXTENT_FRAMES, Extent
from hypervisor.machine import Machine
from hypervisor.physmap_changes import Unmap
from hypervisor.vcpu.process.address_space import PageNotPresent
from hypervisor.vcpu.process.bells import Bells
from hypervisor.vcpu.process.changes import MANY
from hypervisor.vcpu.process.wire import MAX_DESCRIPTORS, ChangeKind
from tests.hypervisor.fakes import FakeHost, Guest, new_machine
from tests.hypervisor.vcpu.process.wired import Wired, open_files

PROCESSES = 2
RAM = 8
SIGHT = 48
"""guest frames that are looked at"""

processes = st.integers(0, PROCESSES - 1)
frames = st.integers(0, SIGHT - 1)


class PagesMachine(RuleBasedStateMachine):
    """Two processes and a domain that is none, whose memory comes and goes, and which map each other's pages."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(FakeHost(), 64 << 20)
        self.keeper = Guest(self.machine, pages=RAM)
        self.guests = [Guest(self.machine, pages=RAM) for _ in range(PROCESSES)]
        for guest in self.guests:
            guest.domain.reservation.max_pages = 4 * EXTENT_FRAMES
        bells = Bells()
        self.wired = [Wired(guest, bells) for guest in self.guests]
        self.others: list[Guest] = []

    def teardown(self) -> None:
        for wired in self.wired:
            wired.close()
        for guest in (*self.guests, *self.others, self.keeper):
            guest.destroy()

    @rule(process=processes, gpfn=frames, count=st.integers(1, 8))
    def populate(self, process: int, gpfn: int, count: int) -> None:
        try:
            self.guests[process].domain.populate(gpfn, count)
        except XenError:
            return

    @rule(process=processes, gpfn=st.integers(1, SIGHT - 1), limit=st.integers(1, 8))
    def take_away(self, process: int, gpfn: int, limit: int) -> None:
        domain = self.guests[process].domain
        if domain.memory.mapped(gpfn) is None and domain.memory.mfn(gpfn) is not None:
            mfn, count = domain.memory.remove_ram(gpfn, limit)
            domain.reservation.give_up(mfn, count)

    @rule(process=processes)
    @precondition(lambda self: len(self.others) < 4)
    def take_away_an_extent(self, process: int) -> None:
        """And give its machine frames to somebody else."""
        domain = self.guests[process].domain
        far = 0x1000
        domain.populate(far, EXTENT_FRAMES)
        mfn = domain.memory.mfn(far)
        while domain.memory.mfn(far) is not None:
            first, count = domain.memory.remove_ram(far, EXTENT_FRAMES)
            domain.reservation.give_up(first, count)
            far += count
        other = Guest(self.machine, pages=RAM)
        self.others.append(other)
        assert mfn is not None

    @rule(process=processes, gpfn=frames, source=frames, readonly=st.booleans(), of_keeper=st.booleans())
    def map(self, process: int, gpfn: int, source: int, *, readonly: bool, of_keeper: bool) -> None:
        owner = self.keeper if of_keeper else self.guests[1 - process]
        mfn = owner.domain.memory.mfn(source)
        if mfn is None or owner.domain.memory.mapped(source) is not None:
            return
        try:
            if not of_keeper:
                self.wired[1 - process].platform.memory.share(
                    self.guests[process].domid, [source], readonly=readonly
                )
            self.guests[process].domain.memory.map_foreign(gpfn, mfn, writable=not readonly)
        except (XenError, OSError):
            return

    @rule(process=processes, gpfn=frames)
    def unmap(self, process: int, gpfn: int) -> None:
        memory = self.guests[process].domain.memory
        if memory.mapped(gpfn) is not None:
            memory.unmap_foreign(gpfn)

    @rule(process=processes, pfn=frames)
    def reclaim(self, process: int, pfn: int) -> None:
        try:
            self.wired[process].platform.memory.reclaim(pfn, 1)
        except OSError:  # somebody has it mapped
            return

    @rule(process=processes)
    def look(self, process: int) -> None:
        """It asks, and sees what there is."""
        self.wired[process].take()
        assert self.wired[process].is_settled
        domain, seen = self.guests[process].domain, self.wired[process].platform.memory
        for gpfn in range(SIGHT):
            if domain.memory.mfn(gpfn) is None:
                with pytest.raises(PageNotPresent):
                    seen.page(gpfn)
                continue
            theirs, ours = seen.page(gpfn), domain.memory.page(gpfn)
            assert theirs.readonly == ours.readonly
            mfn = domain.memory.mfn(gpfn)
            assert mfn is not None
            word = self.machine.frames.view(mfn)[8:16].cast("Q")
            word[0] += 1 + gpfn
            assert theirs[8:16] == word.cast("B")

    @invariant()
    def nobody_has_memory_of_others(self) -> None:
        for process, wired in enumerate(self.wired):
            told = {os.fstat(fd).st_ino for fd in wired.platform._connection.space._extents.values()}
            for guest in (self.keeper, *self.guests[:process], *self.guests[process + 1 :], *self.others):
                assert not told & {os.fstat(extent.fd).st_ino for extent in guest.domain.reservation.extents}

    @invariant()
    def nothing_piles_up(self) -> None:
        for guest, wired in zip(self.guests, self.wired):
            if wired.is_settled:
                wired.take()
                assert (
                    len(wired.platform._connection.space._extents)
                    <= len(guest.domain.reservation.extents) + 1
                )


TestPages = PagesMachine.TestCase
TestPages.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def lone() -> Iterator[Wired]:
    machine, _ = new_machine()
    Guest(machine)
    guest = Guest(machine)
    guest.domain.reservation.max_pages = 1 << 14
    wired = Wired(guest, Bells())
    yield wired
    wired.close()


def test_an_extent_that_is_gone_before_it_is_told_is_not(lone: Wired) -> None:
    """Its machine frames may be another domain's by then."""
    domain = lone.domain
    domain.populate(0x100, EXTENT_FRAMES)
    mfn, count = domain.memory.remove_ram(0x100, EXTENT_FRAMES)
    victim_frame = domain.memory.mfn(0)
    domain.reservation.give_up(mfn, count)
    victim = Guest(domain.machine, pages=EXTENT_FRAMES - 2)
    assert mfn in range(*_bounds(victim.domain.reservation.extents[0]))
    before = set(lone.platform._connection.space._extents)
    lone.take()
    assert lone.is_settled
    assert set(lone.platform._connection.space._extents) == before
    with pytest.raises(PageNotPresent):
        lone.platform.memory.page(0x100)
    assert victim_frame == domain.memory.mfn(0)


def _bounds(extent: Extent) -> tuple[int, int]:
    return extent.mfn, extent.mfn + extent.count


def test_extents_that_come_and_go_leave_nothing(lone: Wired) -> None:
    domain = lone.domain
    lone.take()
    gc.collect()  # what earlier tests have left goes now, not meanwhile
    files, known = len(os.listdir("/proc/self/fd")), len(lone.changes.memory._extents)
    for _ in range(20):
        domain.populate(0x100, EXTENT_FRAMES)
        lone.take()
        assert len(lone.changes.memory._extents) == known + 1
        mfn, count = domain.memory.remove_ram(0x100, EXTENT_FRAMES)
        domain.reservation.give_up(mfn, count)
        lone.take()
    assert len(lone.changes.memory._extents) == len(lone.platform._connection.space._extents) == known
    assert len(os.listdir("/proc/self/fd")) == files


def test_thousands_of_mappings_at_one_place_are_one_note(lone: Wired) -> None:
    keeper = lone.domain.machine.domains[0]
    mfn = keeper.memory.mfn(1)
    assert mfn is not None
    for _ in range(5000):
        lone.domain.memory.map_foreign(0x40, mfn, writable=True)
        lone.domain.memory.unmap_foreign(0x40)
    assert len(lone.changes.memory.noted) == 1
    assert not lone.changes.are_many


def test_what_comes_while_an_answer_is_sent_waits_for_the_next(lone: Wired) -> None:
    """Or whoever goes on changing things keeps this process from ever getting its answer."""
    changes = lone.changes
    lone.take()
    lone.domain.populate(0x100, 1)
    changes.begin()
    assert [change.kind for change in changes.take()] == [ChangeKind.MAP_RAM]
    lone.domain.populate(0x200, 1)
    assert not changes.left
    assert changes
    bell = lone.platform._connection.listening.hypervisor
    bell.synced()
    changes.asked = True
    lone.domain.populate(0x300, 1)
    assert not bell.wants_sync
    changes.answered()
    assert bell.wants_sync
    changes.begin()
    assert [(change.kind, change.gpfn) for change in changes.take()] == [
        (ChangeKind.MAP_RAM, 0x200),
        (ChangeKind.MAP_RAM, 0x300),
    ]


def test_a_packet_that_was_not_sent_is_made_anew(lone: Wired) -> None:
    changes = lone.changes
    lone.domain.populate(0x100, 2 * EXTENT_FRAMES)
    changes.begin()
    first = changes.take()
    assert {change.kind for change in first} == {ChangeKind.EXTENT, ChangeKind.MAP_RAM}
    changes.put_back()
    assert changes.left
    again = changes.take()
    assert [change.kind for change in again] == [change.kind for change in first]
    changes.put_back()
    lone.domain.memory.remove_ram(0x100, 2 * EXTENT_FRAMES)
    assert [change.kind for change in changes.take()] == [ChangeKind.UNMAP]


def test_what_was_mapped_before_there_was_a_process_is_not_there_for_it() -> None:
    machine, _ = new_machine()
    keeper, guest = Guest(machine), Guest(machine)
    mfn = keeper.domain.memory.mfn(1)
    assert mfn is not None
    guest.domain.memory.map_foreign(0x40, mfn, writable=True)
    wired = Wired(guest, Bells())
    with pytest.raises(PageNotPresent):
        wired.platform.memory.page(0x40)
    guest.domain.memory.unmap_foreign(0x40)
    guest.domain.memory.map_foreign(0x40, mfn, writable=True)
    wired.take()
    assert not wired.platform.memory.page(0x40).readonly
    guest.domain.memory.unmap_foreign(0x40)
    wired.close()
    assert machine.audit() == []


def test_many_pages_take_several_packets(lone: Wired) -> None:
    keeper = Guest(lone.domain.machine, pages=2 * MANY)
    for index in range(2 * MANY):
        mfn = keeper.domain.memory.mfn(index)
        assert mfn is not None
        lone.domain.memory.map_foreign(0x1000 + index, mfn, writable=bool(index % 3))
    assert lone.changes.are_many
    lone.changes.begin()
    sizes = []
    while lone.changes.left:
        told = lone.changes.take()
        sizes.append(sum(len(change.fds) for change in told))
        lone.changes.put_back()
        assert len(lone.changes.take()) == len(told)
    assert sum(sizes) == 2 * MANY
    assert max(sizes) <= MAX_DESCRIPTORS
    lone.changes.memory.append(Unmap(0x1000, 2 * MANY))
    lone.take()
    for index in range(2 * MANY):
        assert lone.platform.memory.page(0x1000 + index).readonly == (not index % 3)
    lone.changes.memory.append(Unmap(0x1000, 2 * MANY))
    lone.changes.begin()
    assert sum(len(lone.changes.take()) for _ in range(2 * MANY)) == 2 * MANY


def test_a_process_leaves_no_descriptors_behind() -> None:
    before = open_files()
    machine, _ = new_machine()
    Guest(machine)
    wired = Wired(Guest(machine), Bells())
    assert open_files() != before
    wired.close()
    assert open_files() == before
