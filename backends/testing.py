"""What every block store must hold, for whoever writes one: the checks that our own stores pass.

    from backends.testing import CHECKS, Subject

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check, tmp_path):
        await check(Subject(lambda read_only: MyStore(MyConfig(...), read_only=read_only)))

Each check opens stores of its own, through the same door as the driver does, and asserts.
"""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from backends.block.opened import OpenedStore, settled
from backends.contract import MAX_BUFFERS, PAGE_BYTES, SECTOR_BYTES, BlockStore

SMALLEST_BYTES: Final = 1 << 20
"""Disks under test have at least that size."""


@dataclass(frozen=True)
class Subject:
    """A store under test.

    make: makes a store that is not open yet; the argument is read_only. Each call within one check stands for
    the same medium. blank: whether the medium reads as zeroes at first. lasting: whether what was written and
    flushed is still there when the store is opened again.
    """

    make: Callable[[bool], BlockStore]
    blank: bool = True
    lasting: bool = True

    @asynccontextmanager
    async def opened(self, *, read_only: bool = False) -> AsyncIterator[OpenedStore]:
        """An open store, closed at the end."""
        disk = await OpenedStore.open(self.make(read_only))
        try:
            yield disk
        finally:
            await disk.close()


Check = Callable[[Subject], Awaitable[None]]


async def read(disk: OpenedStore, offset: int, *sizes: int) -> bytes:
    """The bytes from `offset` on, read into buffers of `sizes`; what lies around the buffers must stay as it is."""
    memory = bytearray(b"\xa5" * (sum(sizes) + 2 * SECTOR_BYTES))
    views, start = [], SECTOR_BYTES
    for size in sizes:
        views.append(memoryview(memory)[start : start + size])
        start += size
    await settled(disk.store.read(offset, views))
    assert memory[:SECTOR_BYTES] == memory[start:] == b"\xa5" * SECTOR_BYTES, "read wrote outside its buffers"
    return bytes(memory[SECTOR_BYTES:start])


async def write(disk: OpenedStore, offset: int, *parts: bytes) -> None:
    """Stores `parts` from `offset` on, from memory that is overwritten as soon as the store has returned."""
    views = [memoryview(bytearray(part)) for part in parts]
    await settled(disk.store.write(offset, views))
    for view in views:
        view[:] = b"\x5a" * len(view)


async def says_what_it_is(subject: Subject) -> None:
    """Its size and its sectors are a disk's, and stay the same when nothing has happened."""
    async with subject.opened() as disk:
        assert disk.sectors * SECTOR_BYTES >= SMALLEST_BYTES
        assert not disk.read_only
        assert not await disk.refresh()


async def is_blank(subject: Subject) -> None:
    """A blank medium reads as zeroes from end to end."""
    if subject.blank:
        async with subject.opened() as disk:
            for offset in range(0, disk.sectors * SECTOR_BYTES, SMALLEST_BYTES):
                size = min(SMALLEST_BYTES, disk.sectors * SECTOR_BYTES - offset)
                assert not any(await read(disk, offset, size))


async def reads_what_was_written(subject: Subject) -> None:
    """At both ends and in the middle, in one buffer and in several of unequal sizes."""
    async with subject.opened() as disk:
        unit, end = disk.sector_size, disk.sectors * SECTOR_BYTES
        for offset in (0, unit, end // 2 // unit * unit, end - 7 * unit):
            before = await read(disk, offset, 7 * unit)
            data = random.Random(offset).randbytes(5 * unit)
            await write(disk, offset + unit, data[:unit], data[unit : 4 * unit], data[4 * unit :])
            expected = before[:unit] + data + before[6 * unit :]
            assert await read(disk, offset, 7 * unit) == expected
            assert await read(disk, offset, 3 * unit, unit, 3 * unit) == expected


async def takes_many_buffers(subject: Subject) -> None:
    """As many buffers as the contract allows."""
    async with subject.opened() as disk:
        sizes = [disk.sector_size] * min(MAX_BUFFERS, disk.sectors * SECTOR_BYTES // disk.sector_size)
        data = [random.Random(index).randbytes(size) for index, size in enumerate(sizes)]
        await write(disk, 0, *data)
        assert await read(disk, 0, *sizes) == b"".join(data)


async def transfers_pages(subject: Subject) -> None:
    """`transfer_pages` does what `read` and `write` do, in order, if the store has them as plain methods."""
    async with subject.opened() as disk:
        if {"read", "write"} & disk.waits:
            return
        first, second = (random.Random(seed).randbytes(PAGE_BYTES) for seed in (1, 2))
        target = bytearray(PAGE_BYTES)
        steps = (
            (1, 0, first),
            (1, PAGE_BYTES, second),
            (1, 0, second),
            (0, 0, target),
            (1, PAGE_BYTES, first),
        )
        transfers = [(writes, offset, (memoryview(memory),)) for writes, offset, memory in steps]
        assert disk.store.transfer_pages(iter(transfers)) == {}
        assert target == second
        assert await read(disk, 0, 2 * PAGE_BYTES) == second + first


async def flushes(subject: Subject) -> None:
    """A flush returns, with and without something to flush; what was flushed is there after opening again."""
    async with subject.opened() as disk:
        data = random.Random(3).randbytes(8 * disk.sector_size)
        await write(disk, 0, data)
        if disk.capabilities.flush:
            await settled(disk.store.flush())
            await settled(disk.store.flush())
    if subject.lasting:
        async with subject.opened() as disk:
            assert await read(disk, 0, len(data)) == data


async def discards(subject: Subject) -> None:
    """What was discarded reads as zeroes, whatever the granularity; what lies around it stays."""
    async with subject.opened() as disk:
        unit, end = disk.sector_size, disk.sectors * SECTOR_BYTES
        piece = disk.capabilities.discard_granularity
        if not disk.capabilities.discard:
            return
        for offset, length in (
            (unit, unit),
            (piece, 2 * piece),
            (piece - unit, piece + 2 * unit),
            (end - unit, unit),
        ):
            start = max(offset - unit, 0)
            stop = min(offset + length + unit, end)
            data = random.Random(offset).randbytes(stop - start)
            await write(disk, start, data)
            await settled(disk.store.discard(offset, length))
            expected = data[: offset - start] + bytes(length) + data[offset + length - start :]
            assert await read(disk, start, stop - start) == expected


async def opens_for_reading_only(subject: Subject) -> None:
    """Read-only is what it says, offers nothing that writes, and reads what is there."""
    async with subject.opened() as disk:
        data = random.Random(4).randbytes(disk.sector_size)
        await write(disk, 0, data)
        if disk.capabilities.flush:
            await settled(disk.store.flush())
    async with subject.opened(read_only=True) as disk:
        assert disk.read_only
        assert not disk.capabilities.flush
        assert not disk.capabilities.discard
        found = await read(disk, 0, len(data))
        assert found == data or not subject.lasting


async def opens_again_and_again(subject: Subject) -> None:
    """Closing gives everything back that opening took."""
    for _ in range(3):
        async with subject.opened():
            pass


CHECKS: Final[Sequence[Check]] = (
    says_what_it_is,
    is_blank,
    reads_what_was_written,
    takes_many_buffers,
    transfers_pages,
    flushes,
    discards,
    opens_for_reading_only,
    opens_again_and_again,
)
"""All of them; each is run with a `Subject` of its own."""
