"""A run of machine frames on a memfd of its own.

Sparse: RAM is only what was touched. The MFNs of an extent are consecutive, its size is a multiple of
EXTENT_FRAMES, and all of it belongs to one domain, so that the process of this domain can be handed the
memfd, and nobody else. A page that the process of another domain is to map moves to a memfd of its own
(shared_page.py), and back when that is over; its address here, and every view of it, stays.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Final
from weakref import finalize

from hypervisor.errors import BadFrame, OutOfMemory
from hypervisor.fixed_mapping import address_of, map_shared
from hypervisor.sealed_memfd import sealed_memfd
from hypervisor.shared_page import SharedPage

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
EXTENT_SHIFT: Final = 8
EXTENT_FRAMES: Final = 1 << EXTENT_SHIFT


class Extent:
    """`count` frames from `mfn`. `used` counts the frames that are allocated or still referred to; `shared`
    are the pages that have moved out, by offset.

    The memfds go with `close`, or with the machine when nobody refers to it any more.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_close",
        "count",
        "fd",
        "fresh",
        "map",
        "mfn",
        "recycled",
        "shared",
        "used",
        "view",
    )

    def __init__(self, mfn: int, count: int) -> None:
        """OSError, ValueError when the host has no more."""
        self.mfn = mfn
        self.count = count
        self.shared: dict[int, SharedPage] = {}
        self.fd = sealed_memfd(count * PAGE_SIZE)
        self._close = finalize(self, _close, self.fd, self.shared)
        self.map = _map(self.fd, count * PAGE_SIZE)
        self._address = address_of(self.map)
        self.view = memoryview(self.map)
        self.used = 0
        self.fresh = 0  # frames from this offset on were never handed out
        self.recycled: list[int] = []  # offsets of frames that came back; they read as zeros

    @property
    def never_used(self) -> int:
        """How many frames, all consecutive, were never handed out."""
        return self.count - self.fresh

    def share(self, offset: int, *, readonly: bool) -> SharedPage:
        """Let the page at `offset` be shared, as it is or on a memfd of its own from now on: one that nobody
        has seen in another mode. BadFrame if it is mapped in the other mode; OutOfMemory, and nothing has
        changed, when the host has no more descriptors or mappings.
        """
        page = self.shared.get(offset)
        if page is None:
            return self.renew(offset, readonly=readonly)
        if page.readonly != readonly:
            if page.mappers:
                raise BadFrame(self.mfn + offset, f"mapped by others, {_mode(page.readonly)}")
            if not page.untouched:
                return self.renew(offset, readonly=readonly)
            page.readonly = readonly
        return page

    def renew(self, offset: int, *, readonly: bool) -> SharedPage:
        """Move the page at `offset`, shared or not, to a new memfd that nobody has seen. OutOfMemory."""
        start = offset << PAGE_SHIFT
        try:
            page = SharedPage(self.view[start : start + PAGE_SIZE], readonly=readonly)
        except OSError as error:
            raise OutOfMemory(f"a memfd for a shared page ({error})", 1, 0) from error
        try:
            map_shared(page.fd, 0, self._address + start, PAGE_SIZE)
        except OSError as error:
            os.close(page.fd)
            raise OutOfMemory(f"a mapping for a shared page ({error})", 1, 0) from error
        before = self.shared.get(offset)
        if before is not None:
            os.close(before.fd)
        self.shared[offset] = page
        return page

    def unshare(self, offset: int) -> None:
        """Move the page at `offset` back if it is shared. Whoever still has its memfd mapped sees no later
        writes. MappingFailed, and nothing has changed, if the kernel refuses that.
        """
        page = self.shared.get(offset)
        if page is not None:
            start = offset << PAGE_SHIFT
            os.pwrite(self.fd, self.view[start : start + PAGE_SIZE], start)
            self._take_back(offset, page)

    def _take_back(self, offset: int, page: SharedPage) -> None:
        """Show the extent's own page again, whatever is in it."""
        start = offset << PAGE_SHIFT
        map_shared(self.fd, start, self._address + start, PAGE_SIZE)
        del self.shared[offset]
        os.close(page.fd)

    def scrub(self, offset: int, count: int) -> None:
        """Give the RAM of `count` frames back to the host: they are no longer shared, and read as zeros from
        now on.
        """
        if self.shared:
            for at in [at for at in self.shared if offset <= at < offset + count]:
                self._take_back(at, self.shared[at])
        self.map.madvise(mmap.MADV_REMOVE, offset * PAGE_SIZE, count * PAGE_SIZE)

    def close(self) -> None:
        """Give up the memfds. A view that somebody kept stays valid, of memory that nobody will be given any
        more.
        """
        self._close()


def _close(fd: int, shared: dict[int, SharedPage]) -> None:
    os.close(fd)
    while shared:
        os.close(shared.popitem()[1].fd)


def _mode(readonly: bool) -> str:
    return "read-only" if readonly else "writable"


def _map(fd: int, length: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, length, trackfd=False)  # elsewhere it keeps a duplicate of the descriptor
    return mmap.mmap(fd, length)
