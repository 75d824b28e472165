"""Giving up, for ever, what makes a process more than its files and pages: capabilities, groups, new privileges
by exec (capabilities(7)).
"""

from __future__ import annotations

import errno
import os
from ctypes import addressof, create_string_buffer
from struct import Struct as Codec
from typing import Final

from hypervisor.vcpu.process.libc import (
    PR_CAPBSET_DROP,
    PR_CAPBSET_READ,
    PR_SET_NO_NEW_PRIVS,
    prctl,
    syscall,
)

NR_CAPGET: Final = 125
NR_CAPSET: Final = 126
CAPABILITY_VERSION_3: Final = 0x2008_0522
MAX_CAPABILITIES: Final = 64

_HEADER: Final = Codec("<Ii")
_SETS: Final = Codec("<6I")  # effective, permitted, inheritable: the low words, then the high ones


def forbid_new_privileges() -> None:
    """No exec gives more than there is (no_new_privs)."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_groups() -> list[str]:
    """Leave all supplementary groups. What could not be done, in words."""
    try:
        os.setgroups([])
    except PermissionError:
        kept = sorted(set(os.getgroups()) - {os.getgid(), os.getegid()})
        return [f"not permitted to leave the groups {kept}"] if kept else []
    return []


def drop_capabilities() -> list[str]:
    """Empty all five sets: the ambient one empties with the permitted one. What could not be done, in words."""
    undone = []
    if any(held()) and not _empty_bounding_set():
        undone.append("not permitted to empty the capability bounding set")
    header = create_string_buffer(_HEADER.pack(CAPABILITY_VERSION_3, 0))
    nothing = create_string_buffer(_SETS.pack(0, 0, 0, 0, 0, 0))
    syscall(NR_CAPSET, addressof(header), addressof(nothing))
    return undone


def held() -> tuple[int, int, int]:
    """The effective, permitted and inheritable capabilities, a bit each."""
    header = create_string_buffer(_HEADER.pack(CAPABILITY_VERSION_3, 0))
    sets = create_string_buffer(_SETS.size)
    syscall(NR_CAPGET, addressof(header), addressof(sets))
    low, high = _SETS.unpack(sets.raw)[:3], _SETS.unpack(sets.raw)[3:]
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high))
    return effective, permitted, inheritable


def _empty_bounding_set() -> bool:
    for capability in range(MAX_CAPABILITIES):
        try:
            if prctl(PR_CAPBSET_READ, capability):
                prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:  # there are no more
                break
            return False
    return True
