"""Carries out judged operations on the store, and turns whatever happens there into a blkif status.

Nothing but cancellation leaves here as an exception: a store that fails, or is broken, costs its guest one
request.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from backends.block.opened import OpenedStore, settled
from backends.block.requests import Discard, Flush, Listed, Refusal, Transfer
from backends.block.stats import BlockStats
from backends.errors import StoreError, told
from ringbuffers.protocols import blkif

Operation = Transfer | Flush | Discard


class Memory(Protocol):
    """Where the pages of operations are: a lease, or what was looked up already."""

    def buffers(self, segments: Sequence[blkif.Segment], *, writes: bool) -> list[memoryview] | None:
        """As `Lease.buffers`."""


class Service:
    """One disk's store and the counts of what was asked of it."""

    __slots__ = ("_store", "_waits", "disk", "stats")

    def __init__(self, disk: OpenedStore, stats: BlockStats) -> None:
        self.disk = disk
        self.stats = stats
        self._store = disk.store
        self._waits = disk.waits

    def waits(self, operation: Operation) -> bool:
        """Whether the store may have to wait for something to carry this out."""
        match operation:
            case Transfer(writes=writes, durable=durable):
                return ("write" if writes else "read") in self._waits or (durable and "flush" in self._waits)
            case Flush():
                return "flush" in self._waits
            case Discard():
                return "discard" in self._waits

    def refuse(self, refusal: Refusal) -> int:
        """Counts a refused request and returns its status."""
        self.stats.error(refusal.reason)
        return refusal.status

    def at_once(self, operation: Operation, memory: Memory) -> int:
        """Carries out what does not wait; returns the status."""
        run = self.carry_out(operation, memory)
        try:
            run.send(None)
        except StopIteration as finished:
            status: int = finished.value
            return status
        run.close()
        self.stats.error(
            "store broken", f"{type(self._store).__qualname__}: a plain method returned an awaitable"
        )
        return blkif.BLKIF_RSP_ERROR

    async def carry_out(self, operation: Operation, memory: Memory) -> int:
        """Carries out `operation` on its pages in `memory`; returns the status."""
        try:
            match operation:
                case Transfer():
                    return await self._transfer(operation, memory)
                case Flush():
                    await settled(self._store.flush())
                case Discard():
                    await settled(self._store.discard(operation.offset, operation.length))
                    self.stats.bytes_discarded += operation.length
        except Exception as error:
            return self.failed(error)
        return blkif.BLKIF_RSP_OKAY

    def failed(self, error: Exception) -> int:
        """Counts what a store raised and returns the status of the request that it failed."""
        failed = isinstance(error, OSError | StoreError)
        self.stats.error("store failed" if failed else "store broken", told(error, traced=not failed))
        return blkif.BLKIF_RSP_ERROR

    async def _transfer(self, operation: Transfer, memory: Memory) -> int:
        buffers = memory.buffers(operation.segments, writes=operation.writes)
        if buffers is None:
            self.stats.error("page not granted")
            return blkif.BLKIF_RSP_ERROR
        if not operation.writes:
            await settled(self._store.read(operation.offset, buffers))
            self.stats.bytes_read += operation.length
            return blkif.BLKIF_RSP_OKAY
        if operation.durable:
            await settled(self._store.flush())
        await settled(self._store.write(operation.offset, buffers))
        if operation.durable:
            await settled(self._store.flush())
        self.stats.bytes_written += operation.length
        return blkif.BLKIF_RSP_OKAY


def pages_of(operations: Iterable[object]) -> Iterable[tuple[int, bool]]:
    """The grants that the transfers among `operations` need, and whether their content goes to the store."""
    for operation in operations:
        if isinstance(operation, Transfer):
            for gref, _, _ in operation.segments:
                yield gref, operation.writes
        elif isinstance(operation, Listed):
            for gref in operation.grefs:
                yield gref, True
