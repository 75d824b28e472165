"""The quick path: reads and writes of whole pages that are mapped already.

Nearly all requests are of this kind. A run of requests of one page each is held against the disk and the mapped
pages as columns, handed to the store as one loop, and answered as one run of slots. The list of a large request
is held against them as a column, too, and handed to the store as one call.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from backends.block.pages import FullPage, GrantedPages
from backends.block.requests import Listed, Transfer
from backends.block.service import Service
from backends.contract import SECTOR_BYTES
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import (
    PageRequests,
    pack_successes,
    set_status,
    whole_page_list,
    whole_page_requests,
)

_SECTOR_SHIFT: Final = SECTOR_BYTES.bit_length() - 1
_LISTS_KEPT: Final = 64


class Found(NamedTuple):
    """The requests of a run, judged, and the memory of each."""

    requests: PageRequests
    pages: list[FullPage]


class FoundBuffers(NamedTuple):
    """The memory of a request whose pages were looked up already, in the place of a lease."""

    memory: list[memoryview]

    def buffers(self, segments: Sequence[blkif.Segment], *, writes: bool) -> list[memoryview]:  # noqa: ARG002
        """The memory: there is no other."""
        return self.memory


class WholePages:
    """The quick path of one disk. Of no use to a store whose reads or writes wait: then nothing is found."""

    __slots__ = ("_pages", "_service", "_unaligned", "_usable")

    def __init__(self, service: Service, pages: GrantedPages) -> None:
        disk = service.disk
        self._service = service
        self._pages = pages
        self._usable = not {"read", "write"} & disk.waits
        self._unaligned = disk.sector_size // SECTOR_BYTES - 1  # bits of a sector number that have to be 0

    def find(self, run: bytes) -> Found | None:
        """What is to be done for a run, if all of it is of this kind and allowed; else None."""
        requests = whole_page_requests(run)
        disk = self._service.disk
        if requests is None or not self._usable:
            return None
        operations, sectors, grefs = requests
        if disk.read_only and blkif.BLKIF_OP_WRITE in operations:
            return None
        pages = [page for page in map(self._pages.recent.get, grefs) if page is not None]
        if len(pages) < len(grefs) or max(sectors) > disk.sectors - blkif.SECTORS_PER_PAGE:
            return None
        if self._unaligned and any(sector & self._unaligned for sector in sectors):
            return None
        return Found(requests, pages)

    def serve(self, run: bytes) -> bytearray | None:
        """Serves a run; returns the slots of its answers, or None if `find` finds nothing and nothing was done."""
        found = self.find(run)
        if found is None:
            return None
        (operations, sectors, _), pages = found
        service = self._service
        answers = pack_successes(run)
        offsets = [sector << _SECTOR_SHIFT for sector in sectors]
        failed = service.disk.store.transfer_pages(zip(operations, offsets, pages))
        for index, error in failed.items():
            set_status(answers, index, service.failed(error))
        writes = operations.count(blkif.BLKIF_OP_WRITE)
        service.stats.count_pages(len(operations) - writes, writes)
        return answers

    def serve_list(self, request: Listed) -> int | None:
        """Serves one large request; returns its status, or None if its pages or those that list them are not
        all whole and mapped, or it leaves the disk: nothing was done then.

        Its list is copied once. If that is of no use it is thrown away, and whoever serves the request judges
        what he fetches himself.
        """
        disk = self._service.disk
        sectors = request.nr_segments * blkif.SECTORS_PER_PAGE
        sector = request.sector_number
        if not self._usable or sector & self._unaligned or sector + sectors > disk.sectors:
            return None
        listed = self._listed(request)
        buffers = self._pages.lists.get(listed) or self._buffers(listed)
        if buffers is None:
            return None
        transfer = Transfer(
            request.id,
            request.operation,
            request.writes,
            sector << _SECTOR_SHIFT,
            sectors << _SECTOR_SHIFT,
            segments=(),
        )
        return self._service.at_once(transfer, FoundBuffers(buffers))

    def _listed(self, request: Listed) -> bytes:
        """A copy of what lists the pages of `request`; empty if it is not mapped."""
        listed = b""
        left = request.nr_segments * blkif.SEGMENT.size
        for gref in request.grefs:
            page = self._pages.recent.get(gref)
            if page is None:
                return b""
            listed += page[0][: left - len(listed)]
        return listed

    def _buffers(self, listed: bytes) -> list[memoryview] | None:
        """The listed pages, if all of them are whole and mapped. A frontend uses few lists, again and again:
        they are kept.
        """
        grefs = whole_page_list(listed)
        if not grefs:
            return None
        if not all(map(self._pages.recent.__contains__, grefs)):
            return None
        lists = self._pages.lists
        if len(lists) >= _LISTS_KEPT:
            lists.clear()
        buffers = lists[listed] = self._pages.joined(grefs)
        return buffers
