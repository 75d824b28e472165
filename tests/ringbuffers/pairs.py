"""Rings to test with: on neighbouring and on scattered pages, from any start index."""

from collections.abc import Sequence
from typing import NamedTuple

from ringbuffers.ring import BackRing, FrontRing
from ringbuffers.shared_ring import PrivateIndices

SLOT = 112

# Every test of a ring runs from the beginning and from where the indices wrap.
STARTS = (0, 2**32 - 1, 2**32 - 5, 2**32 - 40)

# How the pages lie: sizes of the neighbouring ones.
SHAPES = ((1,), (2,), (1, 1), (2, 1, 1), (1,) * 16)


class Pair(NamedTuple):
    """A frontend's and a backend's end on the same pages. words: the shared header."""

    front: FrontRing
    back: BackRing
    words: memoryview


def shared_pages(shape: Sequence[int] = (1,), filler: int = 0) -> list[memoryview]:
    """Pages that are neighbours in groups of the given sizes, each byte `filler`."""
    return [memoryview(bytearray([filler]) * (4096 * count)) for count in shape]


def new_pair(start: int = 0, shape: Sequence[int] = (1,), slot_size: int = SLOT) -> Pair:
    """An empty ring whose indices all stand at `start`."""
    pages = shared_pages(shape)
    words = pages[0].cast("I")
    words[0] = words[2] = start
    words[1] = words[3] = (start + 1) % 2**32
    front = FrontRing.attach(pages, slot_size, PrivateIndices(start, start))
    return Pair(front, BackRing.attach(pages, slot_size, resume=True), words)


def slot(number: int, size: int = SLOT) -> bytes:
    """A slot that tells itself from others in every byte."""
    return bytes((number * 7 + i) % 251 for i in range(size))


def run(first: int, count: int, size: int = SLOT) -> bytes:
    """Slots `first`, `first` + 1… back to back."""
    return b"".join(slot(number, size) for number in range(first, first + count))
