"""The block protocol in columns: runs of reads and writes of one page, built and answered by a few C loops.

A slot is 14 words of 64 bits, and all that such a request says is in the first four:

    0  operation, nr_segments (1), handle (0)     the head
    1  id
    2  sector_number
    3  gref, first_sect, last_sect                the page

A response has its id in word 0, operation and status in word 1. So a column is every fourteenth word, and
storing one column for a whole run takes one slice assignment.

The page of word 3 is a segment, and the pages of an indirect request list such words back to back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ringbuffers.protocols.blkif import BLKIF_OP_READ, BLKIF_OP_WRITE, REQUEST, REQUEST_SLOT_SIZE, SEGMENT

_WORDS: Final = REQUEST_SLOT_SIZE // 8
_HALVES: Final = REQUEST_SLOT_SIZE // 4
_NR_SEGMENTS: Final = REQUEST.offsets["nr_segments"]
_FIRST_SECT: Final = REQUEST.offsets["seg"] + SEGMENT.offsets["first_sect"]
_LAST_SECT: Final = REQUEST.offsets["seg"] + SEGMENT.offsets["last_sect"]
READ_HEAD: Final = BLKIF_OP_READ | 1 << 8
WRITE_HEAD: Final = BLKIF_OP_WRITE | 1 << 8
_WHOLE_PAGE: Final = 7 << 8  # first_sect 0, last_sect 7


def page_word(gref: int, sectors: int = 8) -> int:
    """Word 3 of a request that uses the first `sectors` of a page."""
    return gref | (sectors - 1) << 40


def pack_page_requests(
    heads: Sequence[int], ids: Iterable[int], sectors: Iterable[int], pages: Iterable[int]
) -> bytes:
    """The slots of requests of one page each, from columns of the same length. `heads` says how many there
    are.
    """
    words = array("Q", bytes(len(heads) * REQUEST_SLOT_SIZE))
    words[0::_WORDS] = array("Q", heads)
    words[1::_WORDS] = array("Q", ids)
    words[2::_WORDS] = array("Q", sectors)
    words[3::_WORDS] = array("Q", pages)
    return words.tobytes()


class PageRequests(NamedTuple):
    """A run in which every request reads or writes one whole page."""

    operations: bytes
    sectors: list[int]
    grefs: list[int]


def whole_page_requests(run: bytes) -> PageRequests | None:
    """The columns of a run of requests, if every one of them is a READ or a WRITE of one whole page; else
    None.
    """
    count = len(run) // REQUEST_SLOT_SIZE
    operations = run[0::REQUEST_SLOT_SIZE]
    if (
        operations.count(BLKIF_OP_READ) + operations.count(BLKIF_OP_WRITE) != count
        or run[_NR_SEGMENTS::REQUEST_SLOT_SIZE].count(1) != count
        or run[_FIRST_SECT::REQUEST_SLOT_SIZE].count(0) != count
        or run[_LAST_SECT::REQUEST_SLOT_SIZE].count(7) != count
    ):
        return None
    view = memoryview(run)
    return PageRequests(operations, view.cast("Q")[2::_WORDS].tolist(), view.cast("I")[6::_HALVES].tolist())


def is_whole_page(slot: bytes) -> bool:
    """Whether one request is of the kind that `whole_page_requests` looks for."""
    return slot[0] in (BLKIF_OP_READ, BLKIF_OP_WRITE) and slot[1] == 1 and slot[28] == 0 and slot[29] == 7


def pack_page_list(pages: Iterable[int]) -> bytes:
    """The segments that an indirect page lists, from words such as `page_word` makes."""
    return array("Q", pages).tobytes()


def whole_page_list(segments: bytes) -> array[int] | None:
    """The grefs of segments that were copied from an indirect page, if each is a whole page; else None."""
    if array("H", segments)[2::4].count(_WHOLE_PAGE) * SEGMENT.size != len(segments):
        return None
    return array("I", segments)[0::2]


def pack_successes(run: bytes) -> bytearray:
    """The responses to a run of requests, of any kinds, all with BLKIF_RSP_OKAY."""
    slots = bytearray(len(run))
    memoryview(slots).cast("Q")[0::_WORDS] = memoryview(run).cast("Q")[1::_WORDS]
    slots[8::REQUEST_SLOT_SIZE] = run[0::REQUEST_SLOT_SIZE]
    return slots


def set_status(slots: bytearray, index: int, status: int) -> None:
    """Changes the status of one response in a run."""
    start = index * REQUEST_SLOT_SIZE + 10
    slots[start : start + 2] = (status & 0xFFFF).to_bytes(2, "little")


def unpack_responses(run: bytes) -> tuple[array[int], array[int]]:
    """The ids and the words 1 of a run of responses. A word 1 is the operation alone for a success, if
    nothing was left in the bytes that mean nothing; any other is to be looked at with
    `blkif_runs.unpack_response_run`.
    """
    words = array("Q", run)
    return words[0::_WORDS], words[1::_WORDS]
