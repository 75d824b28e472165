"""Writing into the pages of a domain under construction, many at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Final

from dom0.toolstack.errors import ForeignMapRefused
from hypervisor.abi.xen import DOMID_SELF
from kernel.kernel import Kernel
from kernel.platform import PAGE_SHIFT, PAGE_SIZE

PAGES_AT_ONCE: Final = 512

_ZEROS: Final = bytes(PAGE_SIZE)

Piece = tuple[int, bytes | memoryview]


def write_pages(kernel: Kernel, domid: int, p2m: Sequence[int], pieces: Iterable[Piece]) -> None:
    """Write each of `pieces` at its address among the domain's pages, of which `p2m` has the frames.

    Raises:
        ForeignMapRefused, HypercallError: some of it is written then.
    """
    for first, last, some in _windows(pieces):
        with _mapped(kernel, domid, p2m[first : last + 1]) as view:
            for address, data in some:
                view.write(address - (first << PAGE_SHIFT), data)


def _windows(pieces: Iterable[Piece]) -> Iterator[tuple[int, int, list[Piece]]]:
    """Runs of pages that are written without a gap: the first, the last, and what goes there."""
    first = last = -1
    some: list[Piece] = []
    for address, data in _cut(pieces):
        page, end = address >> PAGE_SHIFT, address + len(data) - 1 >> PAGE_SHIFT
        if some and (page not in (last, last + 1) or end - first >= PAGES_AT_ONCE):
            yield first, last, some
            some = []
        if not some:
            first = page
        some.append((address, data))
        last = end
    if some:
        yield first, last, some


def _cut(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same in the order of their addresses and without pages of zeros, which new pages are anyway; none reaches
    across a border of PAGES_AT_ONCE pages.
    """
    most = PAGES_AT_ONCE << PAGE_SHIFT
    for address, data in sorted(pieces, key=lambda piece: piece[0]):
        for start, end in _filled(address % PAGE_SIZE, memoryview(data)):
            at = start
            while at < end:
                count = min(most - (address + at) % most, end - at)
                yield address + at, data[at : at + count]
                at += count


def _filled(phase: int, data: memoryview) -> Iterator[tuple[int, int]]:
    """The parts of `data` that lie in pages which are not all zero; its first byte is `phase` bytes into one."""

    def holds_something(page: tuple[int, int]) -> bool:
        start, end = page
        return bytes(data[start:end]) != _ZEROS[: end - start]

    borders = [0, *range(PAGE_SIZE - phase, len(data), PAGE_SIZE), len(data)]
    for filled, group in groupby(pairwise(borders), key=holds_something):
        if filled:
            pages = list(group)
            yield pages[0][0], pages[-1][1]


class _View:
    """Foreign pages that are mapped one after the other; in the machine they may lie apart."""

    def __init__(self, kernel: Kernel, first: int, count: int) -> None:
        self._kernel = kernel
        self._first = first
        try:
            self._whole: memoryview | None = kernel.memory.span(first, count)
        except LookupError:
            self._whole = None

    def write(self, offset: int, data: memoryview | bytes) -> None:
        """Writes at so many bytes from the first page's beginning."""
        if self._whole is not None:
            self._whole[offset : offset + len(data)] = data
            return
        rest = memoryview(data)
        while rest:
            page, at = divmod(offset, PAGE_SIZE)
            count = min(PAGE_SIZE - at, len(rest))
            self._kernel.memory.page(self._first + page)[at : at + count] = rest[:count]
            offset, rest = offset + count, rest[count:]


@contextmanager
def _mapped(kernel: Kernel, domid: int, frames: Sequence[int]) -> Iterator[_View]:
    count = len(frames)
    first = kernel.pages.reserve_gpfns(count)
    ours = range(first, first + count)
    mapped: list[int] = []
    try:
        errors = kernel.hypercalls.map_foreign(domid, frames, ours)
        mapped = [gpfn for gpfn, error in zip(ours, errors) if not error]
        for frame, error in zip(frames, errors):
            if error:
                raise ForeignMapRefused(domid, frame, -error)
        yield _View(kernel, first, count)
    finally:
        with kernel.hypercalls.batch() as batch:
            for gpfn in mapped:
                batch.remove_from_physmap(gpfn, DOMID_SELF)
        kernel.pages.release_gpfns(first, count)
