"""The page allocator against a set of numbers, and its memory against what a peer may see."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from kernel.errors import KernelMisuse, OutOfPages
from kernel.pages import FIRST_PFN, FOREIGN_GAP_PAGES, FrameNumbers, PageAllocator
from kernel.platform import PAGE_SIZE


class ArrayMemory:
    """RAM in one array; runs across `borders` are not contiguous."""

    def __init__(self, pages: int, borders: tuple[int, ...] = ()) -> None:
        self.bytes = memoryview(bytearray(pages * PAGE_SIZE))
        self.borders = borders
        self.reclaimed: list[tuple[int, int]] = []

    def share(self, domid: int, pfns: Sequence[int], *, readonly: bool) -> None:
        """Nobody else is there."""

    def reclaim(self, pfn: int, count: int) -> None:
        self.reclaimed.append((pfn, count))

    def page(self, pfn: int) -> memoryview:
        return self.span(pfn, 1)

    def span(self, pfn: int, count: int) -> memoryview:
        if any(pfn < border < pfn + count for border in self.borders):
            raise LookupError(pfn)
        return self.bytes[pfn * PAGE_SIZE : (pfn + count) * PAGE_SIZE]


class FrameNumbersMachine(RuleBasedStateMachine):
    """Taking and giving runs of numbers, against the set of those that are free."""

    FIRST, LIMIT = 1, 40
    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.numbers = FrameNumbers(self.FIRST, self.LIMIT)
        self.model = set(range(self.FIRST, self.LIMIT))
        self.fresh = set(self.model)

    def has_run(self, count: int) -> bool:
        return any(set(range(first, first + count)) <= self.model for first in self.model)

    @rule(target=taken, count=st.integers(1, 12))
    def take(self, count: int) -> object:
        found = self.numbers.take(count)
        if found is None:
            assert not self.has_run(count), (self.model, count)
            return multiple()
        first, fresh = found
        run = set(range(first, first + count))
        assert run <= self.model
        assert not fresh or run <= self.fresh
        self.model -= run
        self.fresh -= run
        return (first, count)

    @rule(run=consumes(taken), split=st.integers(0, 12))
    def give(self, run: tuple[int, int], split: int) -> None:
        first, count = run
        part = min(split, count)
        for start, length in ((first, part), (first + part, count - part)):
            if length:
                self.numbers.give(start, length)
        self.model |= set(range(first, first + count))

    @rule(data=st.data())
    def exclude(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(self.FIRST - 1, self.LIMIT))
        self.numbers.exclude(number)
        self.model.discard(number)
        self.fresh.discard(number)

    @invariant()
    def counts_agree(self) -> None:
        assert self.numbers.free == len(self.model)


TestFrameNumbers = FrameNumbersMachine.TestCase


@given(counts=st.lists(st.integers(1, 9), max_size=20))
def test_what_was_given_back_in_any_order_is_one_run_again(counts: list[int]) -> None:
    total = sum(counts)
    numbers = FrameNumbers(0, total)
    runs = []
    for count in counts:
        taken = numbers.take(count)
        assert taken is not None
        runs.append((taken[0], count))
    for first, count in sorted(runs, key=lambda run: run[0] * 7919 % 101):
        numbers.give(first, count)
    if total:
        assert numbers.take(total) == (0, False)


def test_pages_are_apart_and_page_0_is_never_given_out() -> None:
    allocator = PageAllocator(ArrayMemory(8), 8)
    pages = [allocator.allocate(), allocator.allocate(3), allocator.allocate()]
    numbers = [pfn for run in pages for pfn in range(run.pfn, run.pfn + run.count)]
    assert len(set(numbers)) == 5
    assert min(numbers) >= FIRST_PFN
    assert allocator.free_pages == 2
    pages[1].page(2)[:] = b"\x22" * PAGE_SIZE
    assert bytes(pages[1].view[2 * PAGE_SIZE :]) == b"\x22" * PAGE_SIZE
    assert not any(pages[0].view)


def test_pages_are_reclaimed_before_they_can_be_used_again() -> None:
    memory = ArrayMemory(8)
    allocator = PageAllocator(memory, 8)
    pages = allocator.allocate(2)
    assert not memory.reclaimed
    allocator.free(pages)
    assert memory.reclaimed == [(pages.pfn, 2)]


def test_used_pages_come_back_zeroed() -> None:
    """XSA-403: a page that is granted shows nothing of its past."""
    allocator = PageAllocator(ArrayMemory(4), 4)
    for _ in range(3):
        pages = allocator.allocate(3)
        assert not any(pages.view)
        pages.view[:] = b"secret" * 2048
        allocator.free(pages)


def test_running_out_is_an_error_with_figures() -> None:
    allocator = PageAllocator(ArrayMemory(6), 6)
    kept = allocator.allocate(3)
    with pytest.raises(OutOfPages) as caught:
        allocator.allocate(3)
    assert (caught.value.wanted, caught.value.free) == (3, 2)
    allocator.free(kept)
    assert allocator.allocate(5).count == 5


@pytest.mark.parametrize("count", [0, -1])
def test_a_run_has_at_least_one_page(count: int) -> None:
    with pytest.raises(KernelMisuse):
        PageAllocator(ArrayMemory(4), 4).allocate(count)


def test_freeing_twice_is_misuse() -> None:
    allocator = PageAllocator(ArrayMemory(6), 6)
    pages = allocator.allocate(2)
    allocator.free(pages)
    with pytest.raises(KernelMisuse):
        allocator.free(pages)
    again = allocator.allocate(2)
    assert again.pfn == pages.pfn
    with pytest.raises(KernelMisuse):
        allocator.free(pages)
    assert allocator.free_pages == 3


def test_excluded_pages_are_never_given_out() -> None:
    allocator = PageAllocator(ArrayMemory(8), 8)
    for pfn in (7, 0, 200, 3):
        allocator.exclude(pfn)
    pages = [allocator.allocate() for _ in range(5)]
    assert sorted(run.pfn for run in pages) == [1, 2, 4, 5, 6]
    with pytest.raises(OutOfPages):
        allocator.allocate()


@given(borders=st.lists(st.integers(2, 15), max_size=4), counts=st.lists(st.integers(1, 4), max_size=8))
def test_runs_never_cross_a_border_of_machine_memory(borders: list[int], counts: list[int]) -> None:
    allocator = PageAllocator(ArrayMemory(16, tuple(borders)), 16)
    runs = []
    for count in counts:
        try:
            run = allocator.allocate(count)
        except OutOfPages:
            continue
        assert not any(run.pfn < border < run.pfn + count for border in borders)
        runs.append(run)
    for run in runs:
        allocator.free(run)
    assert allocator.free_pages == 15


def test_empty_frame_numbers_lie_far_above_ram() -> None:
    allocator = PageAllocator(ArrayMemory(4), 4)
    first = allocator.reserve_gpfns(3)
    assert first >= 4 + FOREIGN_GAP_PAGES
    second = allocator.reserve_gpfns(1)
    assert second not in range(first, first + 3)
    allocator.release_gpfns(first + 1, 1)
    allocator.release_gpfns(first, 1)
    allocator.release_gpfns(first + 2, 1)
    assert allocator.reserve_gpfns(3) == first
    with pytest.raises(OutOfPages):
        allocator.reserve_gpfns(FOREIGN_GAP_PAGES + 1)
