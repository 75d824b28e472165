"""A process that was given the descriptor of one page and nothing else, and does with it what it can.

Started by strangers.py. It answers each line of its input with one of JSON.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import sys
from collections.abc import Callable

PAGE = 4096
MREMAP_MAYMOVE = 1
PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
F_SEAL_FUTURE_WRITE = 0x10

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def called(result: int | None) -> int:
    """What a function of libc returned; OSError if it failed."""
    if result is None or result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def raw(fd: int, length: int = PAGE, protection: int = mmap.PROT_READ) -> int:
    return called(libc.mmap(None, length, protection, mmap.MAP_SHARED, fd, 0))


def by_mprotect(fd: int) -> None:
    address = raw(fd)
    called(libc.mprotect(address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE))
    ctypes.memset(address, 0xEE, 8)


def by_mremap(fd: int) -> None:
    address = called(libc.mremap(raw(fd), 0, PAGE, MREMAP_MAYMOVE))
    called(libc.mprotect(address, PAGE, mmap.PROT_READ | mmap.PROT_WRITE))
    ctypes.memset(address, 0xEE, 8)


def by_opening_again(fd: int) -> None:
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    mmap.mmap(again, PAGE)[:8] = b"\xee" * 8


def by_mode_and_opening_again(fd: int) -> None:
    os.fchmod(fd, 0o777)
    os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"\xee" * 8, 0)


def by_memory_file(fd: int) -> None:
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        os.pwrite(memory.fileno(), b"\xee" * 8, raw(fd))


def by_copying(fd: int) -> None:
    source = os.memfd_create("source")
    os.pwrite(source, b"\xee" * 8, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    os.sendfile(fd, source, 0, 8)


WRITES: dict[str, Callable[[int], object]] = {
    "mmap": lambda fd: mmap.mmap(fd, PAGE).write(b"\xee" * 8),
    "mprotect": by_mprotect,
    "mremap": by_mremap,
    "opening it again": by_opening_again,
    "mode and opening it again": by_mode_and_opening_again,
    "/proc/self/mem": by_memory_file,
    "write": lambda fd: os.pwrite(fd, b"\xee" * 8, 0),
    "sendfile": by_copying,
    "a hole": lambda fd: called(libc.fallocate(fd, PUNCH_HOLE, 0, PAGE)),
}
RESIZES: dict[str, Callable[[int], object]] = {
    "shrink": lambda fd: os.ftruncate(fd, 0),
    "grow": lambda fd: os.ftruncate(fd, 2 * PAGE),
    "write behind the end": lambda fd: os.pwrite(fd, b"x", PAGE),
    "fallocate": lambda fd: os.posix_fallocate(fd, 0, 2 * PAGE),
    "seal against writing": lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    "seal against later writing": lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, F_SEAL_FUTURE_WRITE),
}


def outcomes(attempts: dict[str, Callable[[int], object]], fd: int) -> dict[str, str]:
    """What came of each attempt: the name of the error, or "done"."""
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt(fd)
            found[name] = "done"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    return found


def look_behind(fd: int) -> int:
    """Map two pages and look at the second one, in a child: the signal that ends it."""
    child = os.fork()
    if not child:
        print(ctypes.string_at(raw(fd, 2 * PAGE) + PAGE, 1), file=sys.stderr)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def main() -> None:
    fd = int(sys.argv[1])
    page = mmap.mmap(fd, PAGE, prot=mmap.PROT_READ)
    for line in sys.stdin:
        command, *words = line.split()
        answer: object = None
        if command == "read":
            answer = page[: int(words[0])].hex()
        elif command == "put":
            mmap.mmap(fd, PAGE)[: len(words[0]) // 2] = bytes.fromhex(words[0])
        elif command == "writes":
            answer = outcomes(WRITES, fd)
        elif command == "resizes":
            answer = outcomes(RESIZES, fd)
        elif command == "behind":
            answer = [look_behind(fd), os.pread(fd, 1, PAGE).hex()]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
