"""Functions of the engine's library that this process replaces by its own."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from hypervisor.vcpu.native.library import EngineUnavailable

_JUMP: Final = bytes.fromhex("ff 25 00 00 00 00")  # jmp [rip]


def is_known(start: int, code: bytes) -> bool:
    """Whether the function at `start` is that of the build that we know."""
    return ctypes.string_at(start, len(code)) == code


def jump_to(start: int, ours: int) -> None:
    """Let the function at `start`, of which nobody is to return to the first 14 bytes, be that at `ours`."""
    overwrite(start, _JUMP + ours.to_bytes(8, "little"))


def overwrite(start: int, octets: bytes) -> None:
    """Into the library's code, this process's copy of it. EngineUnavailable."""
    libc = ctypes.PyDLL(None)
    libc.mprotect.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    first = start & -mmap.PAGESIZE
    length = (start + len(octets) - first + mmap.PAGESIZE - 1) & -mmap.PAGESIZE
    if libc.mprotect(first, length, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
        raise EngineUnavailable("this system does not let a process change the code of its libraries")
    ctypes.memmove(start, octets, len(octets))
    libc.mprotect(first, length, mmap.PROT_READ | mmap.PROT_EXEC)
