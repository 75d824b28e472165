"""The ledger: no frame is a page table while others may write to it, however the two sides meet."""

import mmap
import os
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hypervisor.errors import Busy, OutOfMemory
from hypervisor.pv import ledger as module
from hypervisor.pv.layout import MFN_END, RAM_FIRST
from hypervisor.pv.ledger import (
    GRANTED_LIMIT,
    LEDGER_BYTES,
    Ledger,
    LedgerViews,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_seg_desc_page,
    PGT_writable_page,
    map_ledger,
)
from ringbuffers.atomics import fence
from tests.two_processes import at_the_same_time, is_other_at_work, shared_page

MFN = RAM_FIRST + 5
TABLES = [PGT_l1_page_table, PGT_l2_page_table, PGT_l3_page_table, PGT_l4_page_table, PGT_seg_desc_page]


class Process:
    """A domain's process, in steps."""

    def __init__(self, ledger: Ledger) -> None:
        self.types, self.granted, self.written = map_ledger(ledger.fd)

    def claim(self) -> None:
        self.types[MFN] = PGT_l1_page_table
        fence()

    def decide(self) -> bool:
        """Whether it is a page table."""
        if self.granted[MFN]:
            self.types[MFN] = PGT_none
            return False
        return True


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(7)


def test_what_others_may_have_written_is_marked(ledger: Ledger) -> None:
    written = map_ledger(ledger.fd).written
    ledger.hold(MFN)
    assert not written[MFN]
    ledger.release(MFN)
    assert written[MFN]
    ledger.check(MFN + 1)
    assert written[MFN + 1]


def test_both_ends_see_the_same(ledger: Ledger) -> None:
    process = Process(ledger)
    assert [len(view) for view in map_ledger(ledger.fd)] == [MFN_END] * 3
    ledger.hold(MFN)
    ledger.hold(MFN)
    ledger.hold(MFN_END - 1)
    assert (process.granted[MFN], process.granted[MFN_END - 1]) == (2, 1)
    assert ledger.holds() == {MFN: 2, MFN_END - 1: 1}
    ledger.release(MFN)
    ledger.release(MFN_END - 1)
    assert (process.granted[MFN], process.granted[MFN_END - 1]) == (1, 0)
    assert ledger.holds() == {MFN: 1}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_is_not_written_by_others(ledger: Ledger, kind: int) -> None:
    process = Process(ledger)
    process.types[MFN] = kind
    with pytest.raises(Busy):
        ledger.hold(MFN)
    with pytest.raises(Busy):
        ledger.check(MFN)
    assert process.granted[MFN] == 0
    ledger.hold(MFN + 1)
    assert ledger.holds() == {MFN + 1: 1}


@pytest.mark.parametrize("kind", [PGT_none, PGT_writable_page])
def test_others_are(ledger: Ledger, kind: int) -> None:
    Process(ledger).types[MFN] = kind
    ledger.check(MFN)
    ledger.hold(MFN)


def test_a_count_does_not_wrap(ledger: Ledger) -> None:
    for _ in range(GRANTED_LIMIT):
        ledger.hold(MFN)
    with pytest.raises(Busy):
        ledger.hold(MFN)
    process = Process(ledger)
    assert process.granted[MFN] == GRANTED_LIMIT
    for _ in range(GRANTED_LIMIT):
        ledger.release(MFN)
    assert process.granted[MFN] == 0


@given(st.lists(st.tuples(st.sampled_from(["hold", "release", "scribble"]), st.integers(0, 0xFFFF))))
def test_what_the_process_scribbles_harms_nobody(steps: list[tuple[str, int]]) -> None:
    """It may write to all of the ledger: the core counts for itself."""
    ledger = Ledger(7)
    process = Process(ledger)
    held = 0
    for step, value in steps:
        if step == "scribble":
            process.granted[MFN] = value
            process.types[MFN] = value & 0xFF
        elif step == "hold":
            try:
                ledger.hold(MFN)
            except Busy:
                assert process.types[MFN] not in (PGT_none, PGT_writable_page)
            else:
                held += 1
        elif held:
            ledger.release(MFN)
            held -= 1
        assert ledger.holds() == ({MFN: held} if held else {})


@pytest.mark.parametrize("when", ["before", "in between", "after"])
def test_they_meet_at_each_step(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """The process begins before the core does and decides `when`; or it does all of it while the core is between
    its two steps.
    """
    process = Process(ledger)
    decided: list[bool] = []
    if when == "in between":

        def meanwhile() -> None:
            process.claim()
            decided.append(process.decide())

        monkeypatch.setattr(module, "fence", meanwhile)
    else:
        process.claim()
        if when == "before":
            decided.append(process.decide())
    try:
        ledger.hold(MFN)
    except Busy:
        is_held = False
    else:
        is_held = True
    if when == "after":
        decided.append(process.decide())
    assert not (is_held and decided[0])
    assert (is_held, decided[0]) == {
        "before": (False, True),
        "in between": (True, False),
        "after": (False, True),
    }[when]


# Two processes at once: the page holds types from 0 on, granted from GRANTED on, and the marks of both.
FRAMES, GRANTED, IS_TABLE, IS_WRITABLE = 16, 1024, 3000, 3001
ROUNDS = 30_000


def page_views(page: memoryview) -> LedgerViews:
    written = memoryview(bytearray(FRAMES))
    return LedgerViews(page[:FRAMES], page[GRANTED : GRANTED + 2 * FRAMES].cast("H"), written)


def promote(page: memoryview) -> None:
    """The process: a frame becomes a table, and again none."""
    types, granted, _ = page_views(page)
    for _ in range(ROUNDS):
        types[1] = PGT_l1_page_table
        fence()
        if not granted[1]:
            page[IS_TABLE] = 1
            assert not page[IS_WRITABLE]
            page[IS_TABLE] = 0
        types[1] = PGT_none


def write(page: memoryview) -> None:
    """The core: others write to it, and do no more."""
    ledger = Ledger(7)
    ledger._views = page_views(page)
    held = 0
    while is_other_at_work(page):
        try:
            ledger.hold(1)
        except Busy:
            continue
        page[IS_WRITABLE] = 1
        fence()
        assert not page[IS_TABLE]
        page[IS_WRITABLE] = 0
        ledger.release(1)
        held += 1
    assert held


def test_two_processes_at_once() -> None:
    with shared_page() as (fd, page):
        at_the_same_time(fd, page, write, promote)


# ---- the host


def test_its_memory_cannot_be_taken_away(ledger: Ledger) -> None:
    """A peer that truncates it would end the core."""
    for size in (0, LEDGER_BYTES - 1, LEDGER_BYTES + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(ledger.fd, size)


@pytest.mark.parametrize("what", ["memfd_create", "mmap"])
def test_a_host_that_has_no_more(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    files = len(os.listdir("/proc/self/fd"))

    def none_left(*_: object, **__: object) -> int:
        raise OSError(24, "too many")

    target: object = os if what == "memfd_create" else mmap
    monkeypatch.setattr(target, what, none_left)
    with pytest.raises(OutOfMemory):
        Ledger(7)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == files


def test_it_is_closed_with_its_memory(ledger: Ledger) -> None:
    process = Process(ledger)
    files, mappings = len(os.listdir("/proc/self/fd")), _mappings()
    ledger.close()
    assert len(os.listdir("/proc/self/fd")) < files
    assert _mappings() == mappings - 1
    process.types[MFN] = PGT_l1_page_table  # the process's own is still there
    with pytest.raises(OSError):
        os.fstat(ledger.fd)


def _mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:domzero")
