"""The sizes that make a disk: which ones are allowed, and what a driver holds of one."""

from typing import Annotated, Any

from pydantic import AfterValidator

from backends.contract import SECTOR_BYTES
from backends.errors import BadStoreSize


def is_sector_size(size_bytes: int) -> bool:
    """Whether a device may have sectors of this size: a power of two, at least 512, at most a page."""
    return SECTOR_BYTES <= size_bytes <= 4096 and not size_bytes & (size_bytes - 1)


def _checked(size_bytes: int) -> int:
    if not is_sector_size(size_bytes):
        raise ValueError("a sector has 512, 1024, 2048 or 4096 bytes")
    return size_bytes


SectorSize = Annotated[int, AfterValidator(_checked)]


def sectors_of(what: Any, size_bytes: int, multiple_bytes: int) -> int:
    """The size of a disk in 512-byte sectors.

    Raises:
        BadStoreSize: `what` is empty, or not a whole number of pieces of `multiple_bytes`.
    """
    if size_bytes <= 0 or size_bytes % multiple_bytes:
        raise BadStoreSize(what, size_bytes, multiple_bytes)
    return size_bytes // SECTOR_BYTES
