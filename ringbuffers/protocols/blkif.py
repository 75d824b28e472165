"""The block device protocol: requests and responses of public/io/blkif.h, in the native x86-64 layout.

A slot is a union of all requests and the response: 112 bytes. The frontend owns a request until it is
published; a response overwrites the slot of some request. Sectors are 512 bytes unless
feature-large-sector-size was agreed.

`unpack_request` turns one slot into the tuple of its kind and never fails on what a frontend wrote: what
makes no sense comes back as an UnknownRequest or a MalformedRequest, to be answered. Batches of reads and
writes of one segment have a shorter way: `blkif_runs`.
"""

import struct
from collections.abc import Iterable
from itertools import starmap
from typing import Final, NamedTuple, Self

from ringbuffers.errors import RingMisuse
from ringbuffers.layout import Layout

BLKIF_OP_READ: Final = 0
BLKIF_OP_WRITE: Final = 1
BLKIF_OP_WRITE_BARRIER: Final = 2
BLKIF_OP_FLUSH_DISKCACHE: Final = 3
BLKIF_OP_RESERVED_1: Final = 4
BLKIF_OP_DISCARD: Final = 5
BLKIF_OP_INDIRECT: Final = 6

BLKIF_DISCARD_SECURE: Final = 1

BLKIF_RSP_EOPNOTSUPP: Final = -2
BLKIF_RSP_ERROR: Final = -1
BLKIF_RSP_OKAY: Final = 0

BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8

VDISK_CDROM: Final = 0x1
VDISK_REMOVABLE: Final = 0x2
VDISK_READONLY: Final = 0x4

SECTOR_SIZE: Final = 512
SECTORS_PER_PAGE: Final = 8

SEGMENT: Final = Layout("blkif_request_segment", 8, gref="I", first_sect="B", last_sect="B")
REQUEST: Final = Layout(
    "blkif_request",
    112,
    operation="B",
    nr_segments="B",
    handle="H",
    id="Q",
    sector_number="Q",
    seg=(SEGMENT, BLKIF_MAX_SEGMENTS_PER_REQUEST),
)
DISCARD: Final = Layout(
    "blkif_request_discard",
    32,
    operation="B",
    flag="B",
    handle="H",
    id="Q",
    sector_number="Q",
    nr_sectors="Q",
)
INDIRECT: Final = Layout(
    "blkif_request_indirect",
    64,
    operation="B",
    indirect_op="B",
    nr_segments="H",
    id="Q",
    sector_number="Q",
    handle="H",
    indirect_grefs=f"{BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST}I",
)
RESPONSE: Final = Layout("blkif_response", 16, id="Q", operation="B", status="h")
LAYOUTS: Final = (SEGMENT, REQUEST, DISCARD, INDIRECT, RESPONSE)

REQUEST_SLOT_SIZE: Final = REQUEST.size
SEGMENTS_PER_INDIRECT_PAGE: Final = 4096 // SEGMENT.size
_ID: Final = REQUEST.offsets["id"]
MAX_INDIRECT_SEGMENTS: Final = BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * SEGMENTS_PER_INDIRECT_PAGE


class Segment(NamedTuple):
    """One piece of a transfer, within one granted page.

    Sectors are counted from the start of the page, both ends inclusive: 0..7 while a sector has 512 bytes.
    """

    gref: int
    first_sect: int
    last_sect: int

    def fits(self, sectors_per_page: int = SECTORS_PER_PAGE) -> bool:
        """Whether the segment is a non-empty run of sectors inside its page."""
        return self.first_sect <= self.last_sect < sectors_per_page


class Request(NamedTuple):
    """blkif_request: READ, WRITE, WRITE_BARRIER or FLUSH_DISKCACHE. The last two may have no segments."""

    operation: int
    handle: int
    id: int
    sector_number: int
    segments: tuple[Segment, ...]

    def pack(self) -> bytes:
        """The whole slot. Raises RingMisuse for more than 11 segments or a field out of range."""
        if len(self.segments) > BLKIF_MAX_SEGMENTS_PER_REQUEST:
            raise RingMisuse("nr_segments", len(self.segments), f"at most {BLKIF_MAX_SEGMENTS_PER_REQUEST}")
        head = (self.operation, len(self.segments), self.handle, self.id, self.sector_number)
        return _pack_slot(REQUEST, *head, pack_segments(self.segments))


class DiscardRequest(NamedTuple):
    """blkif_request_discard. flag: BLKIF_DISCARD_SECURE or 0."""

    flag: int
    handle: int
    id: int
    sector_number: int
    nr_sectors: int

    def pack(self) -> bytes:
        """The whole slot. Raises RingMisuse for a field out of range."""
        return _pack_slot(DISCARD, BLKIF_OP_DISCARD, *self)

    @property
    def operation(self) -> int:
        """BLKIF_OP_DISCARD, to be echoed in the response."""
        return BLKIF_OP_DISCARD


class IndirectRequest(NamedTuple):
    """blkif_request_indirect: a READ or WRITE whose segments are listed in granted pages, 512 a page.

    indirect_grefs: those pages, as many as nr_segments needs.
    """

    indirect_op: int
    nr_segments: int
    id: int
    sector_number: int
    handle: int
    indirect_grefs: tuple[int, ...]

    def pack(self) -> bytes:
        """The whole slot. Raises RingMisuse for a field out of range or more than 8 pages."""
        spare = BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST - len(self.indirect_grefs)
        grefs = (*self.indirect_grefs, *(0,) * spare)
        return _pack_slot(INDIRECT, BLKIF_OP_INDIRECT, *self[:-1], *grefs)

    @property
    def operation(self) -> int:
        """BLKIF_OP_INDIRECT, to be echoed in the response."""
        return BLKIF_OP_INDIRECT


class UnknownRequest(NamedTuple):
    """An operation that the protocol does not have; to be answered with BLKIF_RSP_EOPNOTSUPP."""

    operation: int
    id: int


class MalformedRequest(NamedTuple):
    """A known operation whose counts are out of bounds; to be answered with BLKIF_RSP_ERROR.

    what: the field at fault, found: its value.
    """

    operation: int
    id: int
    what: str
    found: int


AnyRequest = Request | DiscardRequest | IndirectRequest | UnknownRequest | MalformedRequest


class Response(NamedTuple):
    """blkif_response. id and operation are the request's; status is a BLKIF_RSP_*."""

    id: int
    operation: int
    status: int

    def pack(self) -> bytes:
        """The whole slot, zero behind the response. Raises RingMisuse for a field out of range."""
        return _pack_slot(RESPONSE, *self)

    @classmethod
    def unpack(cls, slot: bytes) -> Self:
        """The response in a slot. Raises RingMisuse if `slot` is not a whole slot."""
        _require_slot(slot)
        return cls(*RESPONSE.struct.unpack_from(slot))


def with_id(slot: bytes, request_id: int) -> bytes:
    """The request in a slot under another id, which has the same place in all kinds of requests."""
    return slot[:_ID] + request_id.to_bytes(8, "little") + slot[_ID + 8 :]


def unpack_request(slot: bytes) -> AnyRequest:
    """The request in a private copy of a slot.

    Counts are checked here; segments and sectors are the device's to check.

    Raises RingMisuse if `slot` is not a whole slot; nothing that a frontend wrote raises.
    """
    _require_slot(slot)
    operation = slot[0]
    if operation == BLKIF_OP_DISCARD:
        return DiscardRequest(*DISCARD.struct.unpack_from(slot)[1:])
    if operation == BLKIF_OP_INDIRECT:
        return _unpack_indirect(slot)
    _, count, handle, request_id, sector, segments = REQUEST.struct.unpack(slot)
    if operation not in _DIRECT_OPERATIONS:
        return UnknownRequest(operation, request_id)
    if count > BLKIF_MAX_SEGMENTS_PER_REQUEST or (count == 0 and operation in _TRANSFERS):
        return MalformedRequest(operation, request_id, "nr_segments", count)
    return Request(operation, handle, request_id, sector, unpack_segments(segments, count))


def _unpack_indirect(slot: bytes) -> AnyRequest:
    _, operation, count, request_id, sector, handle, *grefs = INDIRECT.struct.unpack_from(slot)
    if operation not in _TRANSFERS:
        return MalformedRequest(BLKIF_OP_INDIRECT, request_id, "indirect_op", operation)
    if not 1 <= count <= MAX_INDIRECT_SEGMENTS:
        return MalformedRequest(BLKIF_OP_INDIRECT, request_id, "nr_segments", count)
    used = tuple(grefs[: indirect_pages(count)])
    return IndirectRequest(operation, count, request_id, sector, handle, used)


_TRANSFERS: Final = (BLKIF_OP_READ, BLKIF_OP_WRITE)
_DIRECT_OPERATIONS: Final = (*_TRANSFERS, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE)


def indirect_pages(segments: int) -> int:
    """How many pages list that many segments."""
    return -(-segments // SEGMENTS_PER_INDIRECT_PAGE)


def pack_segments(segments: Iterable[tuple[int, int, int]]) -> bytes:
    """Segments back to back, as in a request or in an indirect page.

    Raises RingMisuse for a field out of range.
    """
    try:
        return b"".join(starmap(SEGMENT.struct.pack, segments))
    except struct.error as error:
        raise RingMisuse("segment", str(error), "fields within their widths") from error


def unpack_segments(data: bytes | memoryview, count: int) -> tuple[Segment, ...]:
    """The first `count` segments in `data`, which is copied once before it is read.

    Raises RingMisuse if `data` does not hold so many.
    """
    copy = bytes(data[: count * SEGMENT.size])
    if len(copy) != count * SEGMENT.size:
        raise RingMisuse("number of segments", count, f"at most {len(copy) // SEGMENT.size}")
    return tuple(starmap(Segment, SEGMENT.struct.iter_unpack(copy)))


def pack_indirect_segments(page: memoryview, segments: Iterable[tuple[int, int, int]]) -> None:
    """Write segments from the start of an indirect page that the backend does not read yet.

    Raises RingMisuse if they are more than the page holds: 512.
    """
    data = pack_segments(segments)
    if len(data) > len(page):
        raise RingMisuse(
            "number of segments", len(data) // SEGMENT.size, f"at most {len(page) // SEGMENT.size}"
        )
    page[: len(data)] = data


def unpack_indirect_segments(page: bytes | memoryview, count: int) -> tuple[Segment, ...]:
    """The first `count` segments of an indirect page, which is copied once before it is read."""
    return unpack_segments(page, count)


def _pack_slot(layout: Layout, *fields: int | bytes) -> bytes:
    try:
        return layout.struct.pack(*fields).ljust(REQUEST_SLOT_SIZE, b"\0")
    except struct.error as error:
        raise RingMisuse(f"struct {layout.name}", str(error), "fields within their widths") from error


def _require_slot(slot: bytes) -> None:
    if len(slot) != REQUEST_SLOT_SIZE:
        raise RingMisuse("bytes of a slot", len(slot), f"{REQUEST_SLOT_SIZE}")
