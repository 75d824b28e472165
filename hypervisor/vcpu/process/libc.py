"""The few system calls that Python has no function for, through the C library that it runs on.

Errors are OSError, as with os. Numbers and names are Linux's on x86-64.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
PR_GET_PDEATHSIG: Final = 2
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_GET_NAME: Final = 16
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_GET_TIMERSLACK: Final = 30
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_SET_VMA: Final = 0x53564D41

NR_CLOSE_RANGE: Final = 436
MAX_NAME_BYTES: Final = 15  # TASK_COMM_LEN

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_LIBC.prctl.restype = ctypes.c_int


def syscall(number: int, *args: int) -> int:
    """Enter the kernel. Addresses are integers (ctypes.addressof); the caller keeps alive what they name."""
    result: int = _LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, args))
    if result < 0:
        raise _error(f"system call {number}")
    return result


def prctl(option: int, *args: int) -> int:
    """prctl(2). The arguments that are not given are 0, as many options demand."""
    padded = [*args, 0, 0, 0, 0][:4]
    result: int = _LIBC.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, padded))
    if result < 0:
        raise _error(f"prctl {option}")
    return result


def set_process_name(name: str) -> None:
    """What ps and top call the process; cut at 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode()[:MAX_NAME_BYTES])
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def close_range(first: int, last: int) -> None:
    """Close the descriptors from `first` to `last`, both included, whatever is open (Linux 5.9)."""
    if first <= last:
        syscall(NR_CLOSE_RANGE, first, last, 0)


def _error(what: str) -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, os.strerror(errno), what)
