"""What a process may do with the descriptors and mappings that it has: for the steps of hostile guests, which are
sent by value and cannot carry a library with them.
"""

import ctypes
import mmap
import os
from collections.abc import Callable

from tests.hypervisor.stranger import WRITES

PAGE = 4096
MREMAP_MAYMOVE = 1
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
_libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]


def held() -> dict[int, bytes]:
    """All that lies behind any of its descriptors, read in every way that there is."""
    contents = {}
    for fd in range(1024):
        content = b""
        try:
            size = os.fstat(fd).st_size
            content += os.pread(fd, max(size, 1 << 20), 0)
            content += mmap.mmap(fd, size, prot=mmap.PROT_READ)[:]
        except (OSError, ValueError):
            if not content:
                continue
        contents[fd] = content
    return contents


def readable(address: int) -> bytes:
    """What a page shows; nothing if there is no memory, which a read of its own would die of."""
    copy = os.memfd_create("copy")
    try:
        count = _libc.write(copy, address, PAGE)
        return os.pread(copy, PAGE, 0) if count == PAGE else b""
    finally:
        os.close(copy)


def duplicate(address: int) -> int:
    """A second mapping of the page at `address`: mremap of a shared mapping from length 0."""
    found = _libc.mremap(address, 0, PAGE, MREMAP_MAYMOVE)
    assert found not in (None, _FAILED), os.strerror(ctypes.get_errno())
    return int(found)


def beyond(address: int) -> list[bytes]:
    """What lies behind the page at `address`, where its mapping can be made longer."""
    longer = _libc.mremap(duplicate(address), PAGE, 4 * PAGE, MREMAP_MAYMOVE)
    if longer in (None, _FAILED):
        return []
    return [readable(longer + index * PAGE) for index in range(1, 4)]


def overwrite(address: int) -> None:
    ctypes.memset(address, 0xEE, PAGE)


def writes(fd: int) -> list[str]:
    """The ways in which a page can be written to that `fd` is the descriptor of."""
    return [way for way, write in WRITES.items() if _does(write, fd)]


def _does(write: Callable[[int], object], fd: int) -> bool:
    try:
        write(fd)
    except (OSError, TypeError, ValueError):
        return False
    return True


def resized(fd: int, size: int) -> bool:
    try:
        os.ftruncate(fd, size)
    except OSError:
        return False
    return True
