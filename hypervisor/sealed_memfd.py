"""Memfds whose size nobody can change: a peer that could truncate one would end everybody who has it mapped
with SIGBUS.

Seals are the file's, so they bind whoever has a descriptor, however it was opened again (fcntl(2), memfd_create(2)).
"""

from __future__ import annotations

import os
from fcntl import F_ADD_SEALS, F_GET_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl
from typing import Final

F_SEAL_FUTURE_WRITE: Final = 0x10  # linux/fcntl.h; Python has no name for it before 3.13
SEALED_SIZE: Final = F_SEAL_SHRINK | F_SEAL_GROW
SEALED: Final = SEALED_SIZE | F_SEAL_SEAL
"""its size is fixed, and nobody can take more away from others who have it"""
SEALED_READONLY: Final = SEALED | F_SEAL_FUTURE_WRITE
"""moreover nobody can write any more but by mappings that there are already"""
_KNOWN: Final = SEALED_READONLY | F_SEAL_WRITE  # the host may add one against execution


def sealed_memfd(size: int, seals: int = SEALED) -> int:
    """A new memfd of `size` zero bytes; the caller closes it. OSError, ValueError when the host has no more."""
    fd = os.memfd_create("domzero", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl(fd, F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def seals_of(fd: int) -> int:
    """The seals that `fd` has, of those that concern size and writing."""
    return fcntl(fd, F_GET_SEALS) & _KNOWN


def seal(fd: int, seals: int) -> bool:
    """Add `seals` unless they are there; whether `fd` now has these and no others."""
    found = seals_of(fd)
    if found == seals:
        return True
    if found & F_SEAL_SEAL:
        return False
    fcntl(fd, F_ADD_SEALS, seals)
    return seals_of(fd) == seals
