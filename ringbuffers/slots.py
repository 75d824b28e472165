"""The memory of a shared ring: header words and slots (struct __name##_sring of public/io/ring.h).

    0 req_prod   4 req_event   8 rsp_prod   12 rsp_event   16..63 padding   64.. slots

The ring spans its pages end to end, and the pages need not be neighbours in our address space, so that a slot
may lie across two of them. All access to slots is a copy in or a copy out: no view of a slot leaves this
package.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

from ringbuffers.errors import RingMisuse

BytesLike = bytes | bytearray | memoryview

PAGE_SIZE: Final = 4096
MAX_RING_PAGES: Final = 16
HEADER_SIZE: Final = 64

# Positions in `SlotMemory.words`.
REQ_PROD: Final = 0
REQ_EVENT: Final = 1
RSP_PROD: Final = 2
RSP_EVENT: Final = 3


def ring_size(page_count: int, slot_size: int) -> int:
    """How many slots of `slot_size` bytes fit into a ring of `page_count` pages (__RING_SIZE).

    Rounded down to a power of two; 0 if not even one fits.
    """
    fitting = (page_count * PAGE_SIZE - HEADER_SIZE) // slot_size
    return 1 << (fitting.bit_length() - 1) if fitting else 0


class SplitSlot:
    """A slot that lies across two pages; it copies as a memoryview of the whole would."""

    __slots__ = ("_head", "_tail")

    def __init__(self, head: memoryview, tail: memoryview) -> None:
        self._head = head
        self._tail = tail

    def tobytes(self) -> bytes:
        """A copy of the slot."""
        return self._head.tobytes() + self._tail.tobytes()

    def __setitem__(self, whole: slice, data: BytesLike) -> None:
        """Store the whole slot; `whole` is `[:]`."""
        border = len(self._head)
        self._head[:] = data[:border]
        self._tail[:] = data[border:]

    def release(self) -> None:
        """Release the views of both pages."""
        self._head.release()
        self._tail.release()


class SlotMemory:
    """The shared memory of one ring, seen as u32 header words and `size` slots of `slot_size` bytes.

    pages: writable, contiguous views, each a whole number of 4096-byte pages, 1..16 pages in all. Give one
    view
    of all pages if they are neighbours: that is the quickest.
    """

    __slots__ = ("_extents", "_simple_end", "_starts", "mask", "size", "slot_size", "words")

    def __init__(self, pages: Sequence[memoryview], slot_size: int) -> None:
        views = [_checked(page) for page in pages]
        page_count = sum(view.nbytes for view in views) // PAGE_SIZE
        if not 1 <= page_count <= MAX_RING_PAGES:
            raise RingMisuse("number of ring pages", page_count, f"1 to {MAX_RING_PAGES}")
        # A slot of at most a page lies across two pages at the most.
        if not 1 <= slot_size <= PAGE_SIZE or not ring_size(page_count, slot_size):
            raise RingMisuse("slot_size", slot_size, f"1 byte to what {page_count} pages hold")
        self.size = ring_size(page_count, slot_size)
        self.mask = self.size - 1
        self.slot_size = slot_size
        self.words = views[0][:HEADER_SIZE].cast("I")
        self._extents = views
        self._starts = [sum(view.nbytes for view in views[:i]) for i in range(len(views))]
        # Up to here a copy neither wraps nor leaves the first extent.
        self._simple_end = min(HEADER_SIZE + self.size * slot_size, views[0].nbytes)

    def copy_out(self, index: int, count: int) -> bytes:
        """A private copy of `count` slots from `index` on, each byte read once. count <= size."""
        start = HEADER_SIZE + (index & self.mask) * self.slot_size
        end = start + count * self.slot_size
        if end <= self._simple_end:
            return self._extents[0][start:end].tobytes()
        return b"".join(view.tobytes() for view in self._pieces(start, end))

    def copy_in(self, index: int, data: BytesLike) -> None:
        """Store `data`, a whole number of slots (at most size), from the slot of `index` on."""
        start = HEADER_SIZE + (index & self.mask) * self.slot_size
        end = start + len(data)
        if end <= self._simple_end:
            self._extents[0][start:end] = data
            return
        done = 0
        for view in self._pieces(start, end):
            view[:] = data[done : done + len(view)]
            done += len(view)

    def slots(self) -> list[memoryview | SplitSlot]:
        """Every slot by its position, for access to single slots."""
        steps = range(HEADER_SIZE, HEADER_SIZE + self.size * self.slot_size, self.slot_size)
        pieces = [list(self._pieces(start, start + self.slot_size)) for start in steps]
        return [views[0] if len(views) == 1 else SplitSlot(*views) for views in pieces]

    def clear_header(self) -> None:
        """Zero the whole header: nothing of what the page held before reaches the peer."""
        self._extents[0][:HEADER_SIZE] = bytes(HEADER_SIZE)

    def release(self) -> None:
        """Release the views of the shared pages."""
        self.words.release()
        for view in self._extents:
            view.release()

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Views of the bytes from start to end, in order; what passes the last slot goes on at the first."""
        last = HEADER_SIZE + self.size * self.slot_size
        if end > last:
            yield from self._pieces(start, last)
            start, end = HEADER_SIZE, HEADER_SIZE + end - last
        extent = bisect_right(self._starts, start) - 1
        while start < end:
            base, view = self._starts[extent], self._extents[extent]
            stop = min(end, base + view.nbytes)
            yield view[start - base : stop - base]
            start = stop
            extent += 1


class Detached:
    """Stands in for the memory of a ring that let go of it: every access is our error, and harmless."""

    def release(self) -> None:
        """Nothing is left to release."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RingMisuse("ring", "detached", "one that is attached")

    def __getitem__(self, index: int) -> NoReturn:
        raise RingMisuse("ring", "detached", "one that is attached")

    def __setitem__(self, index: int, value: object) -> NoReturn:
        raise RingMisuse("ring", "detached", "one that is attached")


def _checked(page: memoryview) -> memoryview:
    if page.readonly or not page.c_contiguous:
        raise RingMisuse("ring page", page, "a writable, contiguous view")
    if not page.nbytes or page.nbytes % PAGE_SIZE:
        raise RingMisuse("bytes of a ring page", page.nbytes, f"a multiple of {PAGE_SIZE}")
    return page.cast("B")
