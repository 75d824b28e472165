"""A block backend in 25 lines, with a fault in it; and a guest that copes.

    domzero launch examples/flaky.yaml

A backend is a class with a pydantic model of its settings and a few methods over byte offsets and memoryviews. This one
keeps its bytes in memory and fails every so many reads, as a worn-out disk does.
"""

import errno
from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ByteSize, ConfigDict, Field

from backends.contract import SECTOR_BYTES, BlockStore, Capabilities
from frontends.block.errors import RequestFailed
from frontends.console.attach import attached_console
from guests.disks import opened_disk
from kernel.kernel import Kernel


class FlakyConfig(BaseModel):
    """How large, and how worn out."""

    model_config = ConfigDict(extra="forbid")

    size: ByteSize
    fail_every: int = Field(10, ge=2, description="this many reads bring one failure")


class FlakyStore(BlockStore):
    """Bytes in memory; the n-th read fails."""

    Config: ClassVar[type[BaseModel]] = FlakyConfig

    def __init__(self, config: FlakyConfig, *, read_only: bool = False) -> None:
        super().__init__(config, read_only=read_only)
        self._data = bytearray(config.size)
        self._fail_every = config.fail_every
        self._reads = 0

    def open(self) -> None:
        """The size is known before anything is connected."""
        self.sectors = len(self._data) // SECTOR_BYTES
        self.capabilities = Capabilities()

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fills the guest's own pages. Raises OSError now and then: the guest gets BLKIF_RSP_ERROR."""
        self._reads += 1
        if self._reads % self._fail_every == 0:
            raise OSError(errno.EIO, f"read {self._reads} failed, as configured")
        for buffer in buffers:
            buffer[:] = self._data[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Takes the bytes out of the guest's pages."""
        for buffer in buffers:
            self._data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)


class ReaderArgs(BaseModel):
    """How much to read."""

    model_config = ConfigDict(extra="forbid")

    sectors: int = Field(100, ge=1)


async def patient_reader(kernel: Kernel, args: ReaderArgs) -> int:
    """Reads sector by sector and tries again when the disk fails."""
    failures = 0
    async with attached_console(kernel) as console, opened_disk(kernel, "xvda") as disk:
        for sector in range(args.sectors):
            while True:
                try:
                    await disk.read(sector, 1)
                except RequestFailed as failure:
                    failures += 1
                    console.write(f"{failure}\n")
                else:
                    break
        console.write(f"read {args.sectors} sectors in spite of {failures} failures\n")
        await console.drain()
    return 0
