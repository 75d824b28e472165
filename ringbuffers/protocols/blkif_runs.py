"""The block protocol in batches: whole runs of slots as plain tuples, for `ring.take_run` and `ring.put_run`.

Nearly all requests are reads and writes of one segment, and all responses are alike. Here they cost a tenth
of what the tuples of `blkif` cost, since one C loop walks the run. A tuple has the fields in the order of the
slot.

    backend:   for op, nr_segments, handle, id, sector, gref, first, last in unpack_rw1_run(ring.take_run()):
    ...
               ring.put_run(pack_response_run([(id, op, BLKIF_RSP_OKAY), ...]))
    frontend:  ring.put_run(pack_rw1_run([(op, 1, handle, id, sector, gref, first, last), ...]))
               for id, op, status in unpack_response_run(ring.take_run()): ...
"""

import struct
from collections.abc import Iterable, Iterator
from itertools import starmap
from typing import Final, cast

from ringbuffers.errors import RingMisuse
from ringbuffers.protocols.blkif import REQUEST, REQUEST_SLOT_SIZE, RESPONSE, SEGMENT

RW1 = tuple[int, int, int, int, int, int, int, int]
"""operation, nr_segments (1), handle, id, sector_number, gref, first_sect, last_sect."""

ResponseFields = tuple[int, int, int]
"""id, operation, status."""

# The head of blkif_request and its first segment, in a whole slot.
_RW1: Final = struct.Struct(f"<BBH4xQQIBB2x{REQUEST.size - REQUEST.offsets['seg'] - SEGMENT.size}x")
# A response in a whole slot. What is not the response goes out as zeroes (XSA-216).
_RESPONSE_SLOT: Final = struct.Struct(f"{RESPONSE.struct.format}{REQUEST_SLOT_SIZE - RESPONSE.size}x")


def pack_rw1(  # noqa: PLR0917
    operation: int,
    handle: int,
    request_id: int,
    sector_number: int,
    gref: int,
    first_sect: int,
    last_sect: int,
) -> bytes:
    """The slot of a request with one segment. Raises RingMisuse for a field out of range."""
    return pack_rw1_run(((operation, 1, handle, request_id, sector_number, gref, first_sect, last_sect),))


def pack_rw1_run(requests: Iterable[RW1]) -> bytes:
    """The slots of requests with one segment each. Raises RingMisuse for a field out of range."""
    try:
        return b"".join(starmap(_RW1.pack, requests))
    except struct.error as error:
        raise RingMisuse("request", str(error), "fields within their widths") from error


def unpack_rw1_run(run: bytes) -> Iterator[RW1]:
    """Every slot of a run read as if it were a request with one segment.

    A slot is one if operation is READ or WRITE and nr_segments is 1. Any other slot is for
    `blkif.unpack_request`: of its tuple only the operation and, in all kinds of requests, the id are what
    they say.

    Raises RingMisuse if `run` is not whole slots.
    """
    try:
        return cast(Iterator[RW1], _RW1.iter_unpack(run))
    except struct.error as error:
        raise RingMisuse("bytes of a run", len(run), f"a multiple of {REQUEST_SLOT_SIZE}") from error


def pack_response_run(responses: Iterable[ResponseFields]) -> bytes:
    """The slots of responses, back to back. Raises RingMisuse for a field out of range."""
    try:
        return b"".join(starmap(_RESPONSE_SLOT.pack, responses))
    except struct.error as error:
        raise RingMisuse("response", str(error), "fields within their widths") from error


def unpack_response_run(run: bytes) -> Iterator[ResponseFields]:
    """Every slot of a run as a response. Raises RingMisuse if `run` is not whole slots."""
    try:
        return cast(Iterator[ResponseFields], _RESPONSE_SLOT.iter_unpack(run))
    except struct.error as error:
        raise RingMisuse("bytes of a run", len(run), f"a multiple of {REQUEST_SLOT_SIZE}") from error
