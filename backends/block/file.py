"""A block store in a raw image: a regular file, sparse where nothing was written, or a host's block device.

The image is raw because its owner says so; its content, which the guest writes, is never looked at (XSA-258).
A reader shares the image with readers, a writer with nobody: an advisory lock (flock) on the open file holds
that against other processes and against other devices of this one.
"""

import fcntl
import os
import stat
from collections.abc import Iterable, Sequence
from os import preadv, pwritev
from pathlib import Path
from typing import Any, ClassVar

from anyio import to_thread
from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationInfo, field_validator

from backends.block.geometry import SectorSize, sectors_of
from backends.block.holes import can_punch, punch_hole
from backends.contract import PAGE_BYTES, SECTOR_BYTES, BlockStore, Capabilities
from backends.errors import BadStoreSize, ShortTransfer, StoreError, StoreInUse, StoreUnavailable


class FileStoreConfig(BaseModel):
    """Settings of a raw image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path = Field(description="the image; a relative path starts at the scenario's output folder")
    size: ByteSize | None = Field(
        None, description="if the image is not there: make a sparse one of this size, such as 64MiB"
    )
    sector_size: SectorSize = SECTOR_BYTES

    @field_validator("path")
    @classmethod
    def _from_folder(cls, path: Path, info: ValidationInfo) -> Path:
        context: dict[str, Any] = info.context or {}
        folder = context.get("folder")
        return path if folder is None else Path(folder) / path

    def make_missing(self) -> None:
        """Makes the image if it is not there and `size` says how large.

        Raises:
            StoreUnavailable: it cannot be made.
            BadStoreSize: no disk is so large.
        """
        if self.size is None or os.path.lexists(self.path):
            return
        size_bytes = int(self.size)
        if size_bytes % self.sector_size or not size_bytes:
            raise BadStoreSize(self.path, size_bytes, self.sector_size)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.ftruncate(fd, size_bytes)
            finally:
                os.close(fd)
        except OSError as error:
            raise StoreUnavailable(self.path, _reason(error)) from error


class FileStore(BlockStore):
    """Positional reads and writes on one open file."""

    Config: ClassVar[type[BaseModel]] = FileStoreConfig

    def __init__(self, config: FileStoreConfig, *, read_only: bool = False) -> None:
        super().__init__(config, read_only=read_only)
        self.path = config.path
        self.sector_size = self.physical_sector_size = config.sector_size
        self._make_missing = config.make_missing
        self._flush_error: OSError | None = None

    def open(self) -> None:
        """Opens and locks the image, which is made first if it is not there and the settings say how large.

        Raises:
            StoreUnavailable: the file cannot be opened, or is neither a regular file nor a block device.
            StoreInUse: somebody else has it open in a way that excludes us.
            BadStoreSize: the file's size is no disk's.
        """
        self._fd = self._open_image()
        try:
            self._lock()
            self.sectors = sectors_of(self.path, self._size_bytes(), self.sector_size)
        except BaseException:
            os.close(self._fd)
            raise
        punches = (
            not self.read_only and self._is_regular() and can_punch(self._fd, self.sectors * SECTOR_BYTES)
        )
        self.capabilities = Capabilities(
            flush=not self.read_only, discard=punches, discard_granularity=max(4096, self.sector_size)
        )

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """preadv(2) from the image. Raises ShortTransfer if it ends early, OSError."""
        found = preadv(self._fd, buffers, offset)
        if found != len(buffers[0]) or len(buffers) > 1:
            self._complete(preadv, offset, buffers, found)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """pwritev(2) to the image. Raises ShortTransfer if no more goes in, OSError."""
        found = pwritev(self._fd, buffers, offset)
        if found != len(buffers[0]) or len(buffers) > 1:
            self._complete(pwritev, offset, buffers, found)

    def transfer_pages(
        self, transfers: Iterable[tuple[int, int, Sequence[memoryview]]]
    ) -> dict[int, Exception]:
        """The same as a loop over `read` and `write`, without their calls."""
        fd = self._fd
        failed: dict[int, Exception] = {}
        for index, (writes, offset, buffers) in enumerate(transfers):
            try:
                if writes:
                    if (done := pwritev(fd, buffers, offset)) != PAGE_BYTES:
                        self._complete(pwritev, offset, buffers, done)
                elif (done := preadv(fd, buffers, offset)) != PAGE_BYTES:
                    self._complete(preadv, offset, buffers, done)
            except (OSError, StoreError) as error:
                failed[index] = error
        return failed

    async def flush(self) -> None:
        """fdatasync(2) in a thread: when it returns, everything written is on the medium.

        Once it has failed, what the kernel could not write is forgotten, and a later call would succeed
        although the data is lost. So a store that has failed to flush fails for ever. Raises OSError.
        """
        if self._flush_error is not None:
            raise self._flush_error
        try:
            await to_thread.run_sync(os.fdatasync, self._fd)
        except OSError as error:
            self._flush_error = OSError(error.errno, error.strerror, str(self.path))
            raise

    async def discard(self, offset: int, length: int) -> None:
        """Punches a hole, in a thread. Raises OSError."""
        await to_thread.run_sync(punch_hole, self._fd, offset, length)

    def refresh(self) -> None:
        """Looks at the file's size again. Raises BadStoreSize, and keeps the old size, if it is no disk's."""
        self.sectors = sectors_of(self.path, self._size_bytes(), self.sector_size)

    def close(self) -> None:
        """Closes the file, and with it gives up the lock."""
        os.close(self._fd)

    def _open_image(self) -> int:
        self._make_missing()
        flags = os.O_CLOEXEC | (os.O_RDONLY if self.read_only else os.O_RDWR)
        try:
            fd = os.open(self.path, flags)
        except OSError as error:
            raise StoreUnavailable(self.path, _reason(error)) from error
        kind = os.fstat(fd).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            os.close(fd)
            raise StoreUnavailable(self.path, "neither a regular file nor a block device")
        return fd

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreInUse(self.path, writing=not self.read_only) from error
        except OSError as error:
            raise StoreUnavailable(self.path, f"it cannot be locked: {_reason(error)}") from error

    def _is_regular(self) -> bool:
        return stat.S_ISREG(os.fstat(self._fd).st_mode)

    def _size_bytes(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    def _complete(self, transfer: Any, offset: int, buffers: Sequence[memoryview], done: int) -> None:
        """Sees to it that everything is transferred, of which `done` bytes were."""
        expected = sum(map(len, buffers))
        if done == expected:
            return
        start = 0
        for buffer in buffers:
            end = start + len(buffer)
            while done < end:
                found = transfer(self._fd, (buffer[max(done - start, 0) :],), offset + done)
                if not found:
                    raise ShortTransfer(self.path, offset, expected, done)
                done += found
            start = end


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
