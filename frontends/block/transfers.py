"""From bytes on the disk to requests: how a transfer of many pages is cut into as few requests as the
backend takes.

Up to 11 segments fit into a request; with indirect segments (feature-max-indirect-segments) a request lists
up to 512 in one further page, as many as the backend allows.
"""

from collections.abc import Callable, Sequence
from typing import Final

from frontends.block.buffers import PageBuffer
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import pack_page_list, page_word

_PER_PAGE: Final = blkif.SECTORS_PER_PAGE
_DIRECT: Final = blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST
_INDIRECT_OPERATIONS: Final = (blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE)

Packer = Callable[[int], bytes]
"""Makes the slot of a request whose id is given."""


class Transfer:
    """One transfer, and how it is cut.

    operation: READ, WRITE or WRITE_BARRIER (which is never indirect). buffers: whole pages but for the last,
    which ends with the transfer. max_indirect: segments that the backend takes in an indirect request, 0 if it
    takes none. lists: how many pages are needed for lists of segments.
    """

    def __init__(
        self, operation: int, sector: int, sectors: int, buffers: Sequence[PageBuffer], *, max_indirect: int
    ) -> None:
        indirect = (
            min(max_indirect, blkif.SEGMENTS_PER_INDIRECT_PAGE) if operation in _INDIRECT_OPERATIONS else 0
        )
        step = max(indirect, _DIRECT)
        self._operation = operation
        self._sector = sector
        self._parts = [
            _pages(buffers[start : start + step], sectors - start * _PER_PAGE)
            for start in range(0, len(buffers), step)
        ]
        self._step = step
        self.lists = sum(len(part) > _DIRECT for part in self._parts)

    def packers(self, lists: Sequence[PageBuffer]) -> list[Packer]:
        """The requests; segments that do not fit into a slot are written to the pages `lists`."""
        free = list(lists)
        packers = []
        for index, pages in enumerate(self._parts):
            sector = self._sector + index * self._step * _PER_PAGE
            segments = pack_page_list(pages)
            if len(pages) <= _DIRECT:
                packers.append(_direct(self._operation, sector, segments))
            else:
                page = free.pop()
                page.view[: len(segments)] = segments
                packers.append(_indirect(self._operation, sector, len(pages), page.gref))
        return packers


def packed_flush(operation: int) -> Packer:
    """A flush or a barrier without data."""
    return lambda request_id: blkif.Request(operation, 0, request_id, 0, ()).pack()


def packed_discard(sector: int, sectors: int, *, secure: bool) -> Packer:
    """A discard of a range."""
    flag = blkif.BLKIF_DISCARD_SECURE if secure else 0
    return lambda request_id: blkif.DiscardRequest(flag, 0, request_id, sector, sectors).pack()


def _pages(buffers: Sequence[PageBuffer], sectors: int) -> list[int]:
    """Whole pages, but for the last, which ends with the transfer, as words of a request."""
    words = [buffer.word for buffer in buffers]
    rest = sectors - (len(buffers) - 1) * _PER_PAGE
    if rest < _PER_PAGE:
        words[-1] = page_word(buffers[-1].gref, rest)
    return words


def _direct(operation: int, sector: int, segments: bytes) -> Packer:
    listed = blkif.unpack_segments(segments, len(segments) // blkif.SEGMENT.size)
    return lambda request_id: blkif.Request(operation, 0, request_id, sector, listed).pack()


def _indirect(operation: int, sector: int, count: int, gref: int) -> Packer:
    return lambda request_id: blkif.IndirectRequest(operation, count, request_id, sector, 0, (gref,)).pack()
