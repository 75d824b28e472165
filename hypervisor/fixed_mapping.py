"""Memory mapped at a given address: what Python's mmap module has no call for.

The hypervisor moves single pages from one memfd to another under views that exist, and the process of a
guest lays out guest-physical memory. What is mapped replaces what was in its range in one step; the range
must be the caller's own, part of an mmap that it made or has reserved. This runs in guest processes too and
knows nothing of the core.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Final

_MAP_FIXED: Final = 0x10  # linux/mman.h
_MAP_NORESERVE: Final = 0x4000
_NOTHING: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
# PyDLL keeps the GIL: no other thread of Python looks while a page changes its place.
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_mmap: Final = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
]

_munmap: Final = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class MappingFailed(OSError):
    """The kernel refuses a mapping; `errno` says why (ENOMEM: the process has too many), and what was
    mapped before is still there.
    """

    def __init__(self, errno: int, address: int, length: int) -> None:
        super().__init__(errno, f"{length} bytes at {address:#x} cannot be mapped: {os.strerror(errno)}")
        self.address = address
        self.length = length


def address_of(memory: mmap.mmap) -> int:
    """Where a writable mmap begins. It stays there while `memory` lives."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))  # the export ends with the expression


def reserve(length: int) -> int:
    """The address of `length` bytes where there is nothing, for good. MappingFailed."""
    return _map(0, length, 0, _NOTHING)


def unmap(address: int, length: int) -> None:
    """Give back `length` bytes at `address`, for whatever is mapped next."""
    _munmap(address, length)


def map_shared(fd: int, offset: int, address: int, length: int, *, writable: bool = True) -> None:
    """Show `length` bytes of `fd` from `offset` at `address`. MappingFailed (EPERM: `fd` is sealed against
    writing).
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE if writable else mmap.PROT_READ
    _map(address, length, protection, mmap.MAP_SHARED | _MAP_FIXED, fd=fd, offset=offset)


def map_nothing(address: int, length: int) -> None:
    """Let there be nothing at `address`: an access ends the process. MappingFailed."""
    _map(address, length, 0, _NOTHING | _MAP_FIXED)


def _map(address: int, length: int, protection: int, flags: int, *, fd: int = -1, offset: int = 0) -> int:
    found: int = _mmap(address, length, protection, flags, fd, offset)
    if found == _MAP_FAILED:
        raise MappingFailed(ctypes.get_errno(), address, length)
    return found
