"""The page allocator: this domain's RAM by page frame number, and empty frame numbers above it for foreign
pages.

At boot all RAM is one untouched run, of which pages are cut from the front, so that an allocator costs
nothing until it is used. Freed runs are kept by length and merged with free neighbours. Fresh pages come
zeroed from the hypervisor; pages used before are zeroed when they are handed out again, so that a page which
is granted never carries old data (XSA-403).
"""

from typing import Final

from kernel.errors import KernelMisuse, OutOfPages
from kernel.platform import PAGE_SIZE, Memory

FIRST_PFN: Final = 1
"""Page 0 is never handed out: a guest handle of 0 means none."""

FOREIGN_GAP_PAGES: Final = 1 << 20
"""Foreign pages are mapped this far above RAM, beyond what a toolstack puts right above it."""

_ZEROS: Final = bytes(PAGE_SIZE)


class Pages:
    """A run of pages: frame numbers `pfn` up to `pfn + count`, and all their bytes as one view."""

    __slots__ = ("count", "pfn", "view")

    def __init__(self, pfn: int, count: int, view: memoryview) -> None:
        self.pfn = pfn
        self.count = count
        self.view = view

    def page(self, index: int) -> memoryview:
        """The 4096 bytes of one page of the run."""
        return self.view[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]

    def __repr__(self) -> str:
        return f"Pages(pfn={self.pfn:#x}, count={self.count})"


class FrameNumbers:
    """Runs of free numbers. Taking a length that was given back before, and giving back, are O(1)."""

    __slots__ = ("_by_length", "_ends", "_limit", "_next", "_starts", "free")

    def __init__(self, first: int, limit: int) -> None:
        self._next = first
        self._limit = limit
        self._starts: dict[int, int] = {}
        """the length of each free run below `_next`, by its first number"""
        self._ends: dict[int, int] = {}
        """the first number of each such run, by the number after its last"""
        self._by_length: dict[int, dict[int, None]] = {}
        self.free = limit - first

    def take(self, count: int) -> tuple[int, bool] | None:
        """The first of `count` free numbers in a row, and whether none of them was taken before. None if
        there are no such.
        """
        same = self._by_length.get(count)
        first = self._next
        fresh = False
        if same:
            first = next(reversed(same))
            self._remove(first, count)
        elif self._limit - first >= count:
            self._next = first + count
            fresh = True
        elif longer := min((n for n, runs in self._by_length.items() if runs and n > count), default=0):
            first = next(reversed(self._by_length[longer]))
            self._remove(first, longer)
            self._add(first + count, longer - count)
        elif self._limit - self._ends.get(first, first) >= count:
            first = self._ends[self._next]
            self._remove(first, self._next - first)
            self._next = first + count
        else:
            return None
        self.free -= count
        return first, fresh

    def exclude(self, number: int) -> None:
        """Never hand out `number`, unless it has been handed out already. Looks at all free runs."""
        if self._next <= number < self._limit:
            below, above = (self._next, number), (number + 1, self._limit)
            (self._next, self._limit), rest = sorted((below, above), key=_length, reverse=True)
            self.free -= 1 + _length(rest)
            self._give_some(*rest)
            return
        for first, count in self._starts.items():
            if first <= number < first + count:
                self._remove(first, count)
                self.free -= count
                self._give_some(first, number)
                self._give_some(number + 1, first + count)
                return

    def _give_some(self, first: int, end: int) -> None:
        if first < end:
            self.give(first, end - first)

    def give(self, first: int, count: int) -> None:
        """Give back numbers that were taken; they need not be one run as it was taken."""
        self.free += count
        before = self._ends.get(first)
        if before is not None:
            length = first - before
            self._remove(before, length)
            first, count = before, count + length
        after = self._starts.get(first + count)
        if after is not None:
            self._remove(first + count, after)
            count += after
        self._add(first, count)

    def _add(self, first: int, count: int) -> None:
        self._starts[first] = count
        self._ends[first + count] = first
        self._by_length.setdefault(count, {})[first] = None

    def _remove(self, first: int, count: int) -> None:
        del self._starts[first], self._ends[first + count], self._by_length[count][first]


def _length(span: tuple[int, int]) -> int:
    return span[1] - span[0]


class PageAllocator:
    """Hands out RAM, and empty frame numbers above it."""

    def __init__(self, memory: Memory, nr_pages: int) -> None:
        self._memory = memory
        self._ram = FrameNumbers(FIRST_PFN, nr_pages)
        self._foreign = FrameNumbers(nr_pages + FOREIGN_GAP_PAGES, nr_pages + 2 * FOREIGN_GAP_PAGES)
        self._allocated: dict[int, Pages] = {}

    @property
    def free_pages(self) -> int:
        """Pages of RAM that are free."""
        return self._ram.free

    def exclude(self, pfn: int) -> None:
        """Never hand out `pfn`: the toolstack put something there before this kernel began."""
        self._ram.exclude(pfn)

    def allocate(self, count: int = 1) -> Pages:
        """A run of `count` zeroed pages, one after the other in this domain and in the machine. Raises
        OutOfPages.
        """
        if count < 1:
            raise KernelMisuse("page count", count, "at least 1")
        first, fresh, view = self._take(count)
        if not fresh:
            for start in range(0, len(view), PAGE_SIZE):
                view[start : start + PAGE_SIZE] = _ZEROS
        pages = self._allocated[first] = Pages(first, count, view)
        return pages

    def _take(self, count: int) -> tuple[int, bool, memoryview]:
        """A free run that is one piece of the machine's memory, too. RAM given to this domain in several
        pieces has borders: a run across one is passed over, by taking its first page away until another one
        is found.
        """
        apart: list[int] = []
        try:
            while taken := self._ram.take(count):
                try:
                    return *taken, self._memory.span(taken[0], count)
                except LookupError:
                    if count == 1:
                        raise
                apart.append(taken[0])
                self._ram.give(taken[0] + 1, count - 1)
            raise OutOfPages(count, self._ram.free + len(apart))
        finally:
            for pfn in apart:
                self._ram.give(pfn, 1)

    def free(self, pages: Pages) -> None:
        """Give a run back. Raises KernelMisuse unless it is one that `allocate` returned and is not free
        already.
        """
        if self._allocated.get(pages.pfn) is not pages:
            raise KernelMisuse("freed pages", pages, "a run that is allocated")
        del self._allocated[pages.pfn]
        self._memory.reclaim(pages.pfn, pages.count)
        self._ram.give(pages.pfn, pages.count)

    def reserve_gpfns(self, count: int) -> int:
        """The first of `count` empty frame numbers in a row, to map foreign pages at. Raises OutOfPages."""
        taken = self._foreign.take(count)
        if taken is None:
            raise OutOfPages(count, self._foreign.free)
        return taken[0]

    def release_gpfns(self, first: int, count: int) -> None:
        """Give back empty frame numbers, after unmapping what was there."""
        self._foreign.give(first, count)
