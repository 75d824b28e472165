"""Pages of this domain that the backend may read and write for as long as the disk lives (persistent grants).

A page is granted once and used for many requests; so a backend that keeps grants mapped never maps it
again, and one that does not may map and unmap it each time. Pages are handed out last in, first out, so
that few of them are hot.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from kernel.errors import OutOfGrants, OutOfPages
from kernel.kernel import Kernel
from kernel.ledger import owned_by
from kernel.pages import Pages
from kernel.parking import NewWaiter, Waiter
from kernel.xenbus.drivers import DeviceClosed
from ringbuffers.protocols.blkif_columns import page_word

PAGE_BYTES: Final = 4096
_GROW_BY: Final = 32
_ZEROES: Final = bytes(PAGE_BYTES)


class PageBuffer:
    """One page to read into or write from without a copy. view: its 4096 bytes. gref: the backend's name
    for it. word: the page as a whole, in a request. ended: it is granted no more, and no longer the pool's.
    """

    __slots__ = ("ended", "gref", "view", "word")

    def __init__(self, gref: int, view: memoryview) -> None:
        self.gref = gref
        self.view = view
        self.word = page_word(gref)
        self.ended = False


class _Turn:
    """A task that waits to stage `count` pages. came: it may, and its pages are counted."""

    __slots__ = ("came", "count", "waiter")

    def __init__(self, count: int, waiter: Waiter[None]) -> None:
        self.count = count
        self.waiter = waiter
        self.came = False


class BufferPool:
    """The granted pages of one disk. owner: in whose name they are in the ledger of grants.

    limit: how many pages may be staged for callers that brought their own memory; who wants more waits.
    trusted: if False, a page is zeroed after each use, so that a backend which is not to be trusted sees
    nothing but what it is given (XSA-403).
    """

    def __init__(self, kernel: Kernel, owner: str, new_waiter: NewWaiter[None], *, limit: int) -> None:
        self.trusted = True
        self._pages = kernel.pages
        self._grants = kernel.grants
        self._owner = owner
        self._new_waiter = new_waiter
        self._limit = limit
        self._domid = -1
        self._free: list[PageBuffer] = []
        self._owned: list[tuple[Pages, list[PageBuffer]]] = []
        self._staged = 0
        self._waiting: deque[_Turn] = deque()
        self._refusal: DeviceClosed | None = None

    @property
    def size(self) -> int:
        """How many pages are granted."""
        return sum(len(buffers) for _, buffers in self._owned)

    def grant_to(self, domid: int) -> None:
        """Says who the backend is. Pages that another one had are granted anew, with new references."""
        if self._domid not in (-1, domid):
            self.close()
        self._domid = domid

    def take(self, count: int) -> list[PageBuffer]:
        """`count` pages, zeroed if they are new. Raises OutOfPages, OutOfGrants; DeviceClosed once the disk is
        lost: there is nobody to grant pages to.
        """
        if self._refusal is not None:
            raise self._refusal.again()
        while len(self._free) < count:
            self._grow(count - len(self._free))
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def give(self, buffers: Iterable[PageBuffer]) -> None:
        """Takes pages back that nothing uses any more. Those that were freed meanwhile, by `close`, may be
        anybody's by now.
        """
        buffers = [buffer for buffer in buffers if not buffer.ended]
        if not self.trusted:
            for buffer in buffers:
                buffer.view[:] = _ZEROES
        self._free += buffers

    def stage_one(self) -> PageBuffer | None:
        """One page for memory that is not granted, or None if the caller has to wait: then with `stage`."""
        if self._waiting or self._staged >= self._limit or not self._free:
            return None
        self._staged += 1
        return self._free.pop()

    async def stage(self, count: int) -> list[PageBuffer]:
        """`count` pages for memory that is not granted; waits, in order, while too many are out already."""
        if self._waiting or (self._staged and self._staged + count > self._limit):
            await self._wait_turn(count)
        else:
            self._staged += count
        try:
            return self.take(count)
        except BaseException:
            self._unstaged(count)
            raise

    def unstage(self, buffers: Sequence[PageBuffer]) -> None:
        """Takes back pages of `stage`."""
        if buffers:
            self.give(buffers)
            self._unstaged(len(buffers))

    def unstage_one(self, buffer: PageBuffer) -> None:
        """Takes back the page of `stage_one`."""
        if self._waiting or not self.trusted or buffer.ended:
            self.unstage((buffer,))
        else:
            self._staged -= 1
            self._free.append(buffer)

    async def _wait_turn(self, count: int) -> None:
        """Waits for room, which is counted as staged before this task runs again."""
        turn = _Turn(count, self._new_waiter())
        self._waiting.append(turn)
        try:
            await turn.waiter.wait()
        except BaseException:
            if turn.came:
                self._unstaged(count)
            else:
                self._waiting.remove(turn)
            raise

    def _unstaged(self, count: int) -> None:
        self._staged -= count
        while self._waiting and (not self._staged or self._staged + self._waiting[0].count <= self._limit):
            turn = self._waiting.popleft()
            turn.came = True
            self._staged += turn.count
            turn.waiter.wake(None)

    def open(self) -> None:
        """Hands out pages again after `close`."""
        self._refusal = None

    def close(self, why: DeviceClosed | None = None) -> None:
        """Ends all grants and frees their pages; those that the backend still maps wait until it does not
        (XSA-396). why: what is raised for whoever wants pages from now on; None: they are granted anew.
        """
        self._refusal = why
        self._free.clear()
        for pages, buffers in self._owned:
            for buffer in buffers:
                buffer.ended = True
            self._grants.retire([buffer.gref for buffer in buffers], pages)
        self._owned.clear()

    def _grow(self, wanted: int) -> None:
        try:
            pages = self._pages.allocate(max(wanted, _GROW_BY))
        except OutOfPages:
            pages = self._pages.allocate(1)
        try:
            with owned_by(self._owner):
                grefs = self._grants.grant_many(self._domid, range(pages.pfn, pages.pfn + pages.count))
        except OutOfGrants:
            self._pages.free(pages)
            raise
        buffers = [
            PageBuffer(gref, pages.view[index * PAGE_BYTES : (index + 1) * PAGE_BYTES])
            for index, gref in enumerate(grefs)
        ]
        self._owned.append((pages, buffers))
        self._free += reversed(buffers)
