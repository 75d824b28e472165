"""Moving data to and from a disk: from calls to requests, and back from answers to results or errors."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from frontends.block.buffers import PageBuffer
from frontends.block.calls import PAGE_SECTORS, SECTOR_BYTES, DiskCalls
from frontends.block.errors import NotSupported
from frontends.block.submissions import Caller, Pages, Slots
from frontends.block.transfers import Packer, Transfer, packed_discard, packed_flush
from ringbuffers.protocols import blkif
from ringbuffers.protocols.blkif_columns import page_word

PAGE_BYTES: Final = SECTOR_BYTES * PAGE_SECTORS
_PIECE_SECTORS: Final = 256 * PAGE_SECTORS  # of a long transfer that are staged at once

Memory = memoryview | bytearray | bytes


class _Part(NamedTuple):
    """At most a page of somebody's memory, and where on the disk it belongs."""

    sector: int
    view: memoryview


class DiskData(DiskCalls):
    """Moves data between callers and the backend."""

    # Bytes in, bytes out

    async def read(self, sector: int, count: int) -> bytes:
        """The content of `count` sectors from `sector` on. Raises DiskMisuse, RequestFailed, DeviceClosed."""
        if count > PAGE_SECTORS:
            self._check(sector, count)
            return b"".join([await self._read_piece(*piece) for piece in _pieces(sector, count)])
        buffer = await self._page(blkif.BLKIF_OP_READ, sector, count, None)
        data = bytes(buffer.view if count == PAGE_SECTORS else buffer.view[: count * SECTOR_BYTES])
        self._pool.unstage_one(buffer)
        return data

    async def write(self, sector: int, data: Memory, *, barrier: bool = False) -> None:
        """Stores whole sectors from `sector` on. barrier: writes that have returned are durable before this
        one, and this one is when the call returns. Raises DiskMisuse, RequestFailed, DeviceClosed.
        """
        view = memoryview(data).cast("B")
        count = self._whole_sectors(view)
        operation = blkif.BLKIF_OP_WRITE_BARRIER if barrier else blkif.BLKIF_OP_WRITE
        if count <= PAGE_SECTORS:
            self._pool.unstage_one(await self._page(operation, sector, count, view))
            return
        self._check(sector, count)
        for at, sectors in _pieces(sector, count):
            start = (at - sector) * SECTOR_BYTES
            await self._write_piece(operation, at, view[start : start + sectors * SECTOR_BYTES])

    # Pages of the disk

    def buffers(self, count: int) -> list[PageBuffer]:
        """Pages that the backend can reach, for the methods below; they are valid until the disk is closed.

        Raises OutOfPages, OutOfGrants.
        """
        return self._pool.take(count)

    def release(self, buffers: Iterable[PageBuffer]) -> None:
        """Takes pages back that no request uses any more."""
        self._pool.give(buffers)

    async def read_into(self, sector: int, buffers: Sequence[PageBuffer]) -> None:
        """Fills whole pages, one after the other, from `sector` on, without a copy."""
        self._check(sector, len(buffers) * PAGE_SECTORS)
        await self._move(blkif.BLKIF_OP_READ, sector, len(buffers) * PAGE_SECTORS, buffers)

    async def write_from(self, sector: int, buffers: Sequence[PageBuffer]) -> None:
        """Stores whole pages, one after the other, from `sector` on, without a copy."""
        self._check(sector, len(buffers) * PAGE_SECTORS)
        await self._move(blkif.BLKIF_OP_WRITE, sector, len(buffers) * PAGE_SECTORS, buffers)

    # Many at once

    async def read_many(self, items: Sequence[tuple[int, PageBuffer | memoryview | bytearray]]) -> None:
        """Reads into each buffer from its sector on: into pages of the disk without a copy, into other
        memory with one.

        Returns when all are filled. Raises DiskMisuse before anything is sent; RequestFailed for the first
        that was refused; DeviceClosed.
        """
        await self._many(blkif.BLKIF_OP_READ, items)

    async def write_many(self, items: Sequence[tuple[int, PageBuffer | Memory]]) -> None:
        """Stores each buffer from its sector on; otherwise as `read_many`."""
        await self._many(blkif.BLKIF_OP_WRITE, items)

    # Commands

    async def flush(self) -> None:
        """Makes every write that has returned durable. Raises NotSupported if the disk cannot;
        RequestFailed.
        """
        if self.keys.flush:
            await self._command(blkif.BLKIF_OP_FLUSH_DISKCACHE, packed_flush(blkif.BLKIF_OP_FLUSH_DISKCACHE))
        elif self.keys.barrier:
            await self._command(blkif.BLKIF_OP_WRITE_BARRIER, packed_flush(blkif.BLKIF_OP_WRITE_BARRIER))
        else:
            raise NotSupported(self.name, blkif.BLKIF_OP_FLUSH_DISKCACHE)

    async def discard(self, sector: int, count: int, *, secure: bool = False) -> None:
        """Says that `count` sectors are not needed any more. Raises NotSupported if the disk cannot;
        RequestFailed.
        """
        self._check(sector, count)
        if not self.keys.discard:
            raise NotSupported(self.name, blkif.BLKIF_OP_DISCARD, sector)
        await self._command(blkif.BLKIF_OP_DISCARD, packed_discard(sector, count, secure=secure))

    @property
    def is_settled(self) -> bool:
        """Whether no request is without its answer."""
        return self._queues.is_settled

    async def settled(self) -> None:
        """Waits until every request has its answer, those of cancelled calls included."""
        await self._queues.settled()

    # How it is done

    async def _read_piece(self, sector: int, count: int) -> bytes:
        staged = await self._pool.stage(-(-count // PAGE_SECTORS))
        await self._move(blkif.BLKIF_OP_READ, sector, count, staged, staged)
        data = b"".join([buffer.view for buffer in staged])
        self._pool.unstage(staged)
        return data[: count * SECTOR_BYTES]

    async def _write_piece(self, operation: int, sector: int, view: memoryview) -> None:
        count = len(view) // SECTOR_BYTES
        staged = await self._pool.stage(-(-count // PAGE_SECTORS))
        for index, buffer in enumerate(staged):
            part = view[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
            buffer.view[: len(part)] = part
        await self._move(operation, sector, count, staged, staged)
        self._pool.unstage(staged)

    async def _move(
        self,
        operation: int,
        sector: int,
        count: int,
        buffers: Sequence[PageBuffer],
        staged: Sequence[PageBuffer] = (),
    ) -> None:
        """One transfer, in as few requests as may be. `staged`: as in `_carry_out`."""
        indirect = min(self._max_indirect, self.keys.max_indirect_segments)
        transfer = Transfer(operation, sector, count, buffers, max_indirect=indirect)
        try:
            lists = self._pool.take(transfer.lists)
        except BaseException:
            self._pool.unstage(staged)
            raise
        packers = transfer.packers(lists)
        caller = Caller(operation, len(packers), self._new_waiter())
        await self._carry_out(caller, Slots(caller, packers), staged, lists)
        self._pool.give(lists)

    async def _command(self, operation: int, packer: Packer) -> None:
        caller = Caller(operation, 1, self._new_waiter())
        await self._carry_out(caller, Slots(caller, [packer]))

    async def _many(self, operation: int, items: Sequence[tuple[int, PageBuffer | Memory]]) -> None:
        if not items:
            return
        sectors = [sector for sector, _ in items]
        try:
            pages = [buffer.word for _, buffer in items]  # type: ignore[union-attr]
        except AttributeError:
            await self._many_staged(operation, items)
            return
        self._check_pages(sectors)
        await self._send_pages(operation, sectors, pages)

    async def _send_pages(
        self, operation: int, sectors: Sequence[int], pages: Sequence[int], staged: Sequence[PageBuffer] = ()
    ) -> None:
        caller = Caller(operation, len(sectors), self._new_waiter())
        await self._carry_out(caller, Pages(caller, operation | 1 << 8, sectors, pages), staged)

    async def _many_staged(self, operation: int, items: Sequence[tuple[int, PageBuffer | Memory]]) -> None:
        """The same with memory that the backend cannot reach."""
        parts = [part for sector, buffer in items for part in self._parts(sector, buffer)]
        for start in range(0, len(parts), _PIECE_SECTORS // PAGE_SECTORS):
            some = parts[start : start + _PIECE_SECTORS // PAGE_SECTORS]
            staged = await self._pool.stage(len(some))
            if operation == blkif.BLKIF_OP_WRITE:
                for part, buffer in zip(some, staged):
                    buffer.view[: len(part.view)] = part.view
            pages = [
                page_word(buffer.gref, len(part.view) // SECTOR_BYTES) for buffer, part in zip(staged, some)
            ]
            await self._send_pages(operation, [part.sector for part in some], pages, staged)
            if operation == blkif.BLKIF_OP_READ:
                for part, buffer in zip(some, staged):
                    part.view[:] = buffer.view[: len(part.view)]
            self._pool.unstage(staged)

    def _parts(self, sector: int, buffer: PageBuffer | Memory) -> Iterator[_Part]:
        view = buffer.view if isinstance(buffer, PageBuffer) else memoryview(buffer).cast("B")
        self._check(sector, self._whole_sectors(view))
        for start in range(0, len(view), PAGE_BYTES):
            yield _Part(sector + start // SECTOR_BYTES, view[start : start + PAGE_BYTES])


def _pieces(sector: int, count: int) -> Iterator[tuple[int, int]]:
    """A long transfer in parts: first sector and number of sectors of each."""
    for start in range(0, count, _PIECE_SECTORS):
        yield sector + start, min(_PIECE_SECTORS, count - start)
