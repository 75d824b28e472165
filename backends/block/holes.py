"""Punching holes into files: fallocate(2), which Python's `os` does not offer with a mode."""

import ctypes
import errno
import os
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Gives the storage of `length` bytes from `offset` back; they read as zeroes, the file keeps its size.

    Raises:
        OSError: as fallocate(2); EOPNOTSUPP if the file system cannot.
    """
    while _libc.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def can_punch(fd: int, size_bytes: int) -> bool:
    """Whether the file system below `fd` can; tried beyond the end, where there is nothing to lose."""
    try:
        punch_hole(fd, -(-size_bytes // 4096) * 4096, 4096)
    except OSError:
        return False
    return True
