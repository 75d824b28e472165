"""What a request asks for, held against the disk: from a private copy of a slot to an operation or a refusal.

Pure. Nothing of a request is used before it was judged here, and nothing here looks at shared memory: the
slot was copied once, and the segments of an indirect request are handed in as a copy (XSA-155).

The refusals are those of Linux's blkback: BLKIF_RSP_ERROR for a request that makes no sense on this disk,
BLKIF_RSP_EOPNOTSUPP for an operation that was not offered. A secure discard is refused too, where Linux
carries out a plain one: it must not be answered with success when copies of the data may remain.

An indirect request is answered under the operation that it stands for, READ or WRITE: blkif.h leaves it
open, Linux's blkback does so, and Linux's blkfront takes anything else for an attack.
"""

from collections.abc import Sequence
from typing import NamedTuple

from backends.block.opened import OpenedStore
from backends.contract import SECTOR_BYTES
from ringbuffers.protocols import blkif


class Transfer(NamedTuple):
    """Bytes to move between the store, from `offset` on, and granted pages.

    durable: make earlier writes durable first and this one before it is answered (barrier, flush with data).
    barrier: nothing later may start before this has ended.
    """

    id: int
    operation: int
    writes: bool
    offset: int
    length: int
    segments: Sequence[blkif.Segment]
    durable: bool = False
    barrier: bool = False


class Flush(NamedTuple):
    """Every write that was answered is to be made durable. barrier: as in Transfer."""

    id: int
    operation: int
    barrier: bool = False


class Discard(NamedTuple):
    """`length` bytes from `offset` on are not needed any more."""

    id: int
    operation: int
    offset: int
    length: int


class Listed(NamedTuple):
    """A transfer whose segments are still to be fetched, from the indirect pages `grefs`, `nr_segments` in
    all.
    """

    id: int
    operation: int
    writes: bool
    sector_number: int
    nr_segments: int
    grefs: Sequence[int]


class Refusal(NamedTuple):
    """A request that is answered with `status` and nothing else; `reason` is for the report."""

    id: int
    operation: int
    status: int
    reason: str


Judged = Transfer | Flush | Discard | Listed | Refusal


def judge(request: blkif.AnyRequest, disk: OpenedStore, max_indirect_segments: int) -> Judged:
    """What `request` asks of `disk`."""
    match request:
        case blkif.Request(operation=blkif.BLKIF_OP_READ | blkif.BLKIF_OP_WRITE):
            return _transfer(request, disk)
        case blkif.Request():
            return _durable(request, disk)
        case blkif.IndirectRequest():
            return _listed(request, disk, max_indirect_segments)
        case blkif.DiscardRequest():
            return _discard(request, disk)
        case blkif.MalformedRequest():
            return _error(request, f"{request.what} out of range")
        case blkif.UnknownRequest():
            return _unsupported(request, "unknown operation")


def judge_segments(
    request: Listed, segments: Sequence[blkif.Segment], disk: OpenedStore
) -> Transfer | Refusal:
    """The transfer of an indirect request, whose `segments` were copied from its pages."""
    return _place(request, request.writes, request.sector_number, segments, disk)


def _transfer(request: blkif.Request, disk: OpenedStore) -> Transfer | Refusal:
    writes = request.operation != blkif.BLKIF_OP_READ
    return _place(request, writes, request.sector_number, request.segments, disk)


def _durable(request: blkif.Request, disk: OpenedStore) -> Transfer | Flush | Refusal:
    """WRITE_BARRIER or FLUSH_DISKCACHE, with data or without."""
    if not disk.capabilities.flush:
        return _unsupported(request, "flush and barrier are not offered")
    barrier = request.operation == blkif.BLKIF_OP_WRITE_BARRIER
    if not request.segments:
        return Flush(request.id, request.operation, barrier)
    placed = _place(request, True, request.sector_number, request.segments, disk)
    return placed if isinstance(placed, Refusal) else placed._replace(durable=True, barrier=barrier)


def _listed(request: blkif.IndirectRequest, disk: OpenedStore, max_segments: int) -> Listed | Refusal:
    writes = request.indirect_op != blkif.BLKIF_OP_READ
    listed = Listed(
        request.id,
        request.indirect_op,
        writes,
        request.sector_number,
        request.nr_segments,
        request.indirect_grefs,
    )
    if request.nr_segments > max_segments:
        return _error(listed, "too many indirect segments")
    if writes and disk.read_only:
        return _error(listed, "write to a read-only disk")
    return listed


def _discard(request: blkif.DiscardRequest, disk: OpenedStore) -> Discard | Refusal:
    if not disk.capabilities.discard:
        return _unsupported(request, "discard is not offered")
    if request.flag & blkif.BLKIF_DISCARD_SECURE:
        return _unsupported(request, "secure discard is not offered")
    if reason := _misplaced(request.sector_number, request.nr_sectors, disk):
        return _error(request, reason)
    return Discard(
        request.id, request.operation, request.sector_number * SECTOR_BYTES, request.nr_sectors * SECTOR_BYTES
    )


def _place(
    request: blkif.Request | Listed,
    writes: bool,
    sector: int,
    segments: Sequence[blkif.Segment],
    disk: OpenedStore,
) -> Transfer | Refusal:
    if writes and disk.read_only:
        return _error(request, "write to a read-only disk")
    sectors = 0
    for _, first, last in segments:
        if not first <= last < blkif.SECTORS_PER_PAGE:
            return _error(request, "segment outside its page")
        sectors += last - first + 1
    if reason := _misplaced(sector, sectors, disk):
        return _error(request, reason)
    return Transfer(
        request.id, request.operation, writes, sector * SECTOR_BYTES, sectors * SECTOR_BYTES, tuple(segments)
    )


def _misplaced(sector: int, sectors: int, disk: OpenedStore) -> str:
    """Why `sectors` from `sector` on are no part of the disk; empty if they are."""
    if sectors == 0:
        return "no sectors"
    if sector + sectors > disk.sectors:
        return "beyond the end"
    if (sector | sectors) * SECTOR_BYTES % disk.sector_size:
        return "not a multiple of the sector size"
    return ""


def _error(request: blkif.AnyRequest | Listed, reason: str) -> Refusal:
    return Refusal(request.id, request.operation, blkif.BLKIF_RSP_ERROR, reason)


def _unsupported(request: blkif.AnyRequest, reason: str) -> Refusal:
    return Refusal(request.id, request.operation, blkif.BLKIF_RSP_EOPNOTSUPP, reason)
