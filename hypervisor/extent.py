"""A run of machine frames on a memfd of its own.

Sparse: RAM is only what was touched. The MFNs of an extent are consecutive, its size is a multiple of
EXTENT_FRAMES, and all of it belongs to one domain, so that a process can be handed the memfd.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Final
from weakref import finalize

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
EXTENT_SHIFT: Final = 8
EXTENT_FRAMES: Final = 1 << EXTENT_SHIFT


class Extent:
    """`count` frames from `mfn`. `used` counts the frames that are allocated or still referred to.

    The memfd goes with `close`, or with the machine when nobody refers to it any more.
    """

    __slots__ = ("__weakref__", "_close", "count", "fd", "fresh", "map", "mfn", "recycled", "used", "view")

    def __init__(self, mfn: int, count: int) -> None:
        self.mfn = mfn
        self.count = count
        self.fd = os.memfd_create("domzero", os.MFD_CLOEXEC)
        self._close = finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, count * PAGE_SIZE)
        self.map = _map(self.fd, count * PAGE_SIZE)
        self.view = memoryview(self.map)
        self.used = 0
        self.fresh = 0  # frames from this offset on were never handed out
        self.recycled: list[int] = []  # offsets of frames that came back; they read as zeros

    @property
    def never_used(self) -> int:
        """How many frames, all consecutive, were never handed out."""
        return self.count - self.fresh

    def scrub(self, offset: int, count: int) -> None:
        """Give the RAM of `count` frames back to the host: they read as zeros from now on."""
        self.map.madvise(mmap.MADV_REMOVE, offset * PAGE_SIZE, count * PAGE_SIZE)

    def close(self) -> None:
        """Give up the memfd. A view that somebody kept stays valid, of memory that nobody else will see
        again.
        """
        self._close()


def _map(fd: int, length: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, length, trackfd=False)  # elsewhere it keeps a duplicate of the descriptor
    return mmap.mmap(fd, length)
