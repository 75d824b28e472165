"""From bytes on the disk to requests: how a transfer of many pages is cut into as few requests as the backend takes.

Up to 11 segments fit into a request; with indirect segments (feature-max-indirect-segments) a request lists up to 512 in
one further page, as many as the backend allows.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from frontends.block.buffers import BufferPool, PageBuffer
from ringbuffers.protocols import blkif

_PER_PAGE: Final = blkif.SECTORS_PER_PAGE

Packer = Callable[[int], bytes]
"""Makes the slot of a request whose id is given."""


class Plan(NamedTuple):
    """Requests that carry out one transfer. lists: the pages with their indirect segments, to be given back."""

    packers: list[Packer]
    lists: list[PageBuffer]


def plan_transfer(
    operation: int,
    sector: int,
    sectors: int,
    buffers: Sequence[PageBuffer],
    max_indirect: int,
    pool: BufferPool,
) -> Plan:
    """Requests to move `sectors` from `sector` on to or from `buffers`, page after page.

    operation: READ, WRITE or WRITE_BARRIER (which is never indirect). max_indirect: segments that the backend takes in an
    indirect request, 0 if it takes none.
    """
    indirect = min(max_indirect, blkif.SEGMENTS_PER_INDIRECT_PAGE) if operation in _INDIRECT_OPERATIONS else 0
    step = max(indirect, blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST)
    plan = Plan([], [])
    for start in range(0, len(buffers), step):
        rest = sectors - start * _PER_PAGE
        segments = _segments(buffers[start : start + step], rest)
        at = sector + start * _PER_PAGE
        if len(segments) <= blkif.BLKIF_MAX_SEGMENTS_PER_REQUEST:
            plan.packers.append(_direct(operation, at, segments))
        else:
            (page,) = pool.take(1)
            plan.lists.append(page)
            blkif.pack_indirect_segments(page.view, segments)
            plan.packers.append(_indirect(operation, at, len(segments), page.gref))
    return plan


def packed_flush(operation: int) -> Packer:
    """A flush or a barrier without data."""
    return lambda request_id: blkif.Request(operation, 0, request_id, 0, ()).pack()


def packed_discard(sector: int, sectors: int, *, secure: bool) -> Packer:
    """A discard of a range."""
    flag = blkif.BLKIF_DISCARD_SECURE if secure else 0
    return lambda request_id: blkif.DiscardRequest(flag, 0, request_id, sector, sectors).pack()


_INDIRECT_OPERATIONS: Final = (blkif.BLKIF_OP_READ, blkif.BLKIF_OP_WRITE)


def _segments(buffers: Sequence[PageBuffer], sectors: int) -> tuple[blkif.Segment, ...]:
    """Whole pages, but for the last, which ends with the transfer."""
    lasts = [min(sectors - index * _PER_PAGE, _PER_PAGE) - 1 for index in range(len(buffers))]
    return tuple(blkif.Segment(buffer.gref, 0, last) for buffer, last in zip(buffers, lasts))


def _direct(operation: int, sector: int, segments: tuple[blkif.Segment, ...]) -> Packer:
    return lambda request_id: blkif.Request(operation, 0, request_id, sector, segments).pack()


def _indirect(operation: int, sector: int, count: int, gref: int) -> Packer:
    return lambda request_id: blkif.IndirectRequest(operation, count, request_id, sector, 0, (gref,)).pack()
