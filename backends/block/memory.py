"""A block store in anonymous memory: pages that were never written take none."""

import mmap
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from backends.block.geometry import SectorSize, sectors_of
from backends.contract import SECTOR_BYTES, BlockStore, Capabilities


class MemoryStoreConfig(BaseModel):
    """Settings of a disk in memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: ByteSize = Field(description="size of the disk, such as 64MiB")
    sector_size: SectorSize = SECTOR_BYTES


class MemoryStore(BlockStore):
    """Bytes of a private, zeroed mapping. Nothing outlives it, so a flush has nothing to do."""

    Config: ClassVar[type[BaseModel]] = MemoryStoreConfig

    def __init__(self, config: MemoryStoreConfig, *, read_only: bool = False) -> None:
        super().__init__(config, read_only=read_only)
        self.sector_size = self.physical_sector_size = config.sector_size
        self._size_bytes = int(config.size)

    def open(self) -> None:
        """Makes the mapping. Raises BadStoreSize."""
        self.sectors = sectors_of("a disk in memory", self._size_bytes, self.sector_size)
        self.capabilities = Capabilities(
            flush=not self.read_only, discard=not self.read_only, discard_granularity=mmap.PAGESIZE
        )
        self._memory = mmap.mmap(-1, self._size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._memory)

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Copies out of the mapping."""
        view = self._view
        for buffer in buffers:
            end = offset + len(buffer)
            buffer[:] = view[offset:end]
            offset = end

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Copies into the mapping."""
        view = self._view
        for buffer in buffers:
            end = offset + len(buffer)
            view[offset:end] = buffer
            offset = end

    def flush(self) -> None:
        """Does nothing: memory is as durable as it gets."""

    def discard(self, offset: int, length: int) -> None:
        """Gives whole pages back to the system and zeroes what is left of the range at both ends."""
        end = offset + length
        first = min(-(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, end)
        last = max(end // mmap.PAGESIZE * mmap.PAGESIZE, first)
        if last > first:
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._view[offset:first] = bytes(first - offset)
        self._view[last:end] = bytes(end - last)

    def close(self) -> None:
        """Drops the mapping and what is in it."""
        self._view.release()
        self._memory.close()
