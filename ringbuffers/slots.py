"""The memory of a shared ring: the header words and the slots behind them (struct __name##_sring of
public/io/ring.h).

    0 req_prod   4 req_event   8 rsp_prod   12 rsp_event   16..63 padding   64.. slots

The ring spans its pages end to end, and the pages need not be neighbours in our address space, so that a slot
may lie across two of them. All access to slots is a copy in or a copy out; nobody holds a view of a slot.
"""

from bisect import bisect_right
from collections.abc import Sequence
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


class SlotMemory:
    """The shared memory of one ring, seen as u32 header words and `size` slots of `slot_size` bytes.

    pages: writable, contiguous views, each a whole number of 4096-byte pages, 1..16 pages in all. Give one
    view of all
    pages if they are neighbours: that is the quickest.
    """

    __slots__ = ("_extents", "_mask", "_slot_size", "_starts", "_view", "size", "words")

    def __init__(self, pages: Sequence[memoryview], slot_size: int) -> None:
        views = [_checked(page) for page in pages]
        total = sum(view.nbytes for view in views)
        if not 1 <= total // PAGE_SIZE <= MAX_RING_PAGES:
            raise RingMisuse("number of ring pages", total // PAGE_SIZE, f"1 to {MAX_RING_PAGES}")
        if slot_size < 1 or not ring_size(total // PAGE_SIZE, slot_size):
            raise RingMisuse("slot_size", slot_size, f"1 to {total - HEADER_SIZE} bytes")
        self.size = ring_size(total // PAGE_SIZE, slot_size)
        self.words = views[0][:HEADER_SIZE].cast("I")
        self._mask = self.size - 1
        self._slot_size = slot_size
        self._view = views[0]
        self._extents = views
        self._starts = [sum(view.nbytes for view in views[:i]) for i in range(len(views))]

    def copy_out(self, index: int, count: int) -> bytes:
        """A private copy of `count` slots from `index` on, each byte read once. count <= size."""
        first = index & self._mask
        slot_size = self._slot_size
        start = HEADER_SIZE + first * slot_size
        to_end = self.size - first
        if count > to_end:
            tail = self._read(start, start + to_end * slot_size)
            return tail + self._read(HEADER_SIZE, HEADER_SIZE + (count - to_end) * slot_size)
        if len(self._extents) == 1:
            return bytes(self._view[start : start + count * slot_size])
        return self._read(start, start + count * slot_size)

    def copy_in(self, index: int, data: BytesLike) -> None:
        """Store `data`, a whole number of slots (at most size), from the slot of `index` on."""
        first = index & self._mask
        start = HEADER_SIZE + first * self._slot_size
        room = (self.size - first) * self._slot_size
        if len(data) > room:
            self._write(start, data[:room])
            self._write(HEADER_SIZE, data[room:])
        elif len(self._extents) == 1:
            self._view[start : start + len(data)] = data
        else:
            self._write(start, data)

    def clear_header(self) -> None:
        """Zero the whole header: nothing of what the page held before reaches the peer."""
        self._view[:HEADER_SIZE] = bytes(HEADER_SIZE)

    def release(self) -> None:
        """Release every view of the shared pages that this object made."""
        self.words.release()
        for view in self._extents:
            view.release()

    def _read(self, start: int, end: int) -> bytes:
        pieces = []
        extent = bisect_right(self._starts, start) - 1
        while start < end:
            base, view = self._starts[extent], self._extents[extent]
            stop = min(end, base + view.nbytes)
            pieces.append(bytes(view[start - base : stop - base]))
            start = stop
            extent += 1
        return b"".join(pieces)

    def _write(self, start: int, data: BytesLike) -> None:
        done = 0
        extent = bisect_right(self._starts, start) - 1
        while done < len(data):
            base, view = self._starts[extent], self._extents[extent]
            stop = min(start + len(data) - done, base + view.nbytes)
            view[start - base : stop - base] = data[done : done + stop - start]
            done += stop - start
            start = stop
            extent += 1


def _checked(page: memoryview) -> memoryview:
    if page.readonly or not page.c_contiguous:
        raise RingMisuse("ring page", page, "a writable, contiguous view")
    if not page.nbytes or page.nbytes % PAGE_SIZE:
        raise RingMisuse("bytes of a ring page", page.nbytes, f"a multiple of {PAGE_SIZE}")
    return page.cast("B")


class Detached:
    """Stands in for the memory of a ring that let go of it: every access is our error, and harmless."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RingMisuse("ring", "detached", "a ring that is attached")

    def __getitem__(self, index: int) -> NoReturn:
        raise RingMisuse("ring", "detached", "a ring that is attached")

    def __setitem__(self, index: int, value: int) -> NoReturn:
        raise RingMisuse("ring", "detached", "a ring that is attached")
