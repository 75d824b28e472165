"""One call of a disk: what can be wrong with it, sending its requests, waiting, and giving its pages back."""

from collections.abc import Sequence
from typing import Final, NoReturn

from frontends.block.buffers import BufferPool, PageBuffer
from frontends.block.errors import DiskMisuse, NotSupported, RequestFailed
from frontends.block.keys import DiskKeys
from frontends.block.queues import RequestQueues
from frontends.block.stats import DiskStats
from frontends.block.submissions import Caller, Submission
from kernel.parking import NewWaiter
from kernel.xenbus.drivers import DeviceClosed
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import page_word

SECTOR_BYTES: Final = blkif.SECTOR_SIZE
PAGE_SECTORS: Final = blkif.SECTORS_PER_PAGE


class DiskCalls:
    """What every call of one disk needs.

    name: for errors. keys: what the backend says of the disk. stats: what was asked of it. lost: why the disk
    cannot be used any more, if so.
    """

    name: str
    keys: DiskKeys
    stats: DiskStats
    lost: DeviceClosed | None
    _queues: RequestQueues
    _pool: BufferPool
    _new_waiter: NewWaiter[None]
    _max_indirect: int
    _quick_end: int  # the size in sectors, if every range of sectors within it is allowed; else 0

    async def _page(self, operation: int, sector: int, count: int, data: memoryview | None) -> PageBuffer:
        """One request of one page, which is staged, filled with `data` for a write, and returned."""
        if not (0 <= sector <= self._quick_end - count and count > 0):
            self._check(sector, count)
        buffer = self._pool.stage_one() or (await self._pool.stage(1))[0]
        if data is not None:
            buffer.view[: len(data)] = data
        caller = Caller(operation, 1, self._new_waiter())
        try:
            if self.lost is not None:
                self._refuse(caller)
            page = buffer.word if count == PAGE_SECTORS else page_word(buffer.gref, count)
            self._queues.submit_page(caller, operation | 1 << 8, sector, page)
            await caller.waiter.wait()
            if caller.failures is not None:
                self._raise_failure(caller.failures)
        except BaseException:
            self._give_back(caller, (buffer,), ())
            raise
        return buffer

    async def _carry_out(
        self,
        caller: Caller,
        submission: Submission,
        staged: Sequence[PageBuffer] = (),
        lent: Sequence[PageBuffer] = (),
    ) -> None:
        """Sends and waits. If that raises, pages that were staged or lent for it go back to the pool."""
        try:
            if self.lost is not None:
                self._refuse(caller)
            self._queues.submit(submission)
            await caller.waiter.wait()
            if caller.failures is not None:
                self._raise_failure(caller.failures)
        except BaseException:
            self._give_back(caller, staged, lent)
            raise

    def _give_back(self, caller: Caller, staged: Sequence[PageBuffer], lent: Sequence[PageBuffer]) -> None:
        """Gives pages of a call that has failed or was cancelled back to the pool, as soon as no request
        uses them.
        """

        def give() -> None:
            self._pool.unstage(staged)
            self._pool.give(lent)

        if caller.ended:
            give()
        else:
            caller.abandoned = give

    def _refuse(self, caller: Caller) -> NoReturn:
        """The disk is gone."""
        caller.ended = True
        assert self.lost is not None
        raise self.lost.again()

    # What can be wrong with a call, or with its answer

    def _whole_sectors(self, view: memoryview) -> int:
        if not len(view) or len(view) % self.keys.sector_size:
            expected = f"a multiple of {self.keys.sector_size}, and not 0"
            raise DiskMisuse(self.name, "number of bytes", len(view), expected)
        return len(view) // SECTOR_BYTES

    def _check(self, sector: int, count: int) -> None:
        keys = self.keys
        if sector < 0 or count <= 0 or sector + count > keys.sectors:
            raise DiskMisuse(self.name, "range of sectors", (sector, count), f"part of 0 to {keys.sectors}")
        if keys.sector_size != SECTOR_BYTES and (sector | count) * SECTOR_BYTES % keys.sector_size:
            raise DiskMisuse(
                self.name, "range of sectors", (sector, count), f"units of {keys.sector_size} bytes"
            )

    def _check_pages(self, sectors: Sequence[int]) -> None:
        """`_check` for a page at each of `sectors`."""
        keys = self.keys
        if min(sectors) < 0 or max(sectors) > keys.sectors - PAGE_SECTORS or keys.sector_size != SECTOR_BYTES:
            for sector in sectors:
                self._check(sector, PAGE_SECTORS)

    def _raise_failure(self, failures: Sequence[tuple[bytes, int]]) -> NoReturn:
        """Raises for the first refused request; sector numbers have the same place in all kinds of slots."""
        slot, status = failures[0]
        sector = int.from_bytes(slot[16:24], "little")
        if status == blkif.BLKIF_RSP_EOPNOTSUPP:
            raise NotSupported(self.name, slot[0], sector)
        raise RequestFailed(self.name, slot[0], sector, status)
