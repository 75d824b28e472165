"""Our own stores pass the suite that we give to others, and a store that is wrong does not."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ByteSize

from backends.block.file import FileStore, FileStoreConfig
from backends.block.memory import MemoryStore, MemoryStoreConfig
from backends.contract import BlockStore
from backends.testing import (
    CHECKS,
    SMALLEST_BYTES,
    Check,
    Subject,
    discards,
    reads_what_was_written,
    transfers_pages,
)

SIZE = ByteSize(2 * SMALLEST_BYTES)

every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
every_sector_size = pytest.mark.parametrize("sector_size", [512, 4096])


@pytest.mark.anyio
@every_check
@every_sector_size
async def test_file_store(check: Check, sector_size: int, tmp_path: Path) -> None:
    config = FileStoreConfig(path=tmp_path / "disk.img", size=SIZE, sector_size=sector_size)
    await check(Subject(lambda read_only: FileStore(config, read_only=read_only)))


@pytest.mark.anyio
@every_check
@every_sector_size
async def test_memory_store(check: Check, sector_size: int) -> None:
    config = MemoryStoreConfig(size=SIZE, sector_size=sector_size)
    await check(Subject(lambda read_only: MemoryStore(config, read_only=read_only), lasting=False))


class OffByOne(MemoryStore):
    """Forgets the last buffer."""

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        super().write(offset, buffers[:-1] if len(buffers) > 1 else buffers)


class HalfDiscard(MemoryStore):
    """Leaves half of what is discarded."""

    def discard(self, offset: int, length: int) -> None:
        super().discard(offset, length // 2)


class LiveViews(MemoryStore):
    """Keeps views of its caller's memory instead of copies."""

    def open(self) -> None:
        super().open()
        self._kept: list[tuple[int, memoryview]] = []

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for buffer in buffers:
            self._kept.append((offset, buffer))
            offset += len(buffer)

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        for start, kept in self._kept:
            super().write(start, [kept])
        super().read(offset, buffers)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("broken", "check"),
    [(OffByOne, reads_what_was_written), (HalfDiscard, discards), (LiveViews, reads_what_was_written)],
)
async def test_a_wrong_store_is_found_out(broken: type[BlockStore], check: Check) -> None:
    with pytest.raises(AssertionError):
        await check(Subject(lambda read_only: broken(MemoryStoreConfig(size=SIZE), read_only=read_only)))


class TurnsPages(MemoryStore):
    """Serves many at once in the wrong order."""

    def transfer_pages(self, transfers):  # type: ignore[no-untyped-def]
        return super().transfer_pages(reversed(list(transfers)))


@pytest.mark.anyio
async def test_wrong_order_is_found_out() -> None:
    with pytest.raises(AssertionError):
        await transfers_pages(Subject(lambda read_only: TurnsPages(MemoryStoreConfig(size=SIZE))))
