"""What can go wrong with a disk, by culprit. A lost connection is the kernel's `DeviceClosed`."""

from typing import Final

from ringbuffers.protocols import blkif

_NAMES: Final = {
    blkif.BLKIF_OP_READ: "read",
    blkif.BLKIF_OP_WRITE: "write",
    blkif.BLKIF_OP_WRITE_BARRIER: "barrier",
    blkif.BLKIF_OP_FLUSH_DISKCACHE: "flush",
    blkif.BLKIF_OP_DISCARD: "discard",
    blkif.BLKIF_OP_INDIRECT: "indirect transfer",
}


def operation_name(operation: int) -> str:
    """How reports and messages call a BLKIF_OP_*."""
    return _NAMES.get(operation, f"operation {operation}")


class DiskError(Exception):
    """Base of all errors of a disk."""


class DiskMisuse(DiskError):
    """The caller asked for what this disk cannot be asked for; nothing was sent."""

    def __init__(self, disk: str, what: str, found: object, expected: str) -> None:
        super().__init__(f"{disk}: {what} is {found!r}, expected {expected}")
        self.disk = disk
        self.what = what
        self.found = found
        self.expected = expected


class RequestFailed(DiskError):
    """The backend answered a request with an error. sector: where it began. status: a BLKIF_RSP_*."""

    def __init__(self, disk: str, operation: int, sector: int, status: int) -> None:
        super().__init__(
            f"{disk}: {operation_name(operation)} at sector {sector} failed with status {status}"
        )
        self.disk = disk
        self.operation = operation
        self.sector = sector
        self.status = status


class NotSupported(RequestFailed):
    """The disk does not offer this operation; `status` is BLKIF_RSP_EOPNOTSUPP, whoever found out."""

    def __init__(self, disk: str, operation: int, sector: int = 0) -> None:
        super().__init__(disk, operation, sector, blkif.BLKIF_RSP_EOPNOTSUPP)
