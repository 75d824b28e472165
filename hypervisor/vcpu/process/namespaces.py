"""Namespaces of its own for a confined process, where the system gives them to everybody (namespaces(7)).

Its user namespace takes away what capabilities it has elsewhere, and its network namespace has no interface.
Not a PID namespace: a process that asked for one can start no thread.
"""

from __future__ import annotations

import os
from typing import Final

from hypervisor.vcpu.process.libc import PR_GET_DUMPABLE, PR_SET_DUMPABLE, prctl, syscall

NR_UNSHARE: Final = 272
CLONE_NEWUTS: Final = 0x0400_0000
CLONE_NEWIPC: Final = 0x0800_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000


def enter_own_user_namespace() -> list[str]:
    """With the same user and group in it as outside. What could not be done, in words."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        syscall(NR_UNSHARE, CLONE_NEWUSER)
    except OSError as error:
        return [f"no user namespace of its own: {error.strerror}"]
    dumpable = prctl(PR_GET_DUMPABLE)
    prctl(PR_SET_DUMPABLE, 1)  # the files below belong to root otherwise
    try:
        _write("setgroups", "deny")
        _write("uid_map", f"{uid} {uid} 1")
        _write("gid_map", f"{gid} {gid} 1")
    except OSError as error:
        return [f"no user in its user namespace: {error.strerror}"]
    finally:
        prctl(PR_SET_DUMPABLE, dumpable & 1)
    return []


def enter_own_namespaces(*, network: bool) -> list[str]:
    """Of System V IPC, the host's name and, unless it may use the `network`, interfaces. What could not be
    done, in words.
    """
    undone = []
    wanted = {"IPC": CLONE_NEWIPC, "UTS": CLONE_NEWUTS} | ({} if network else {"network": CLONE_NEWNET})
    for name, flag in wanted.items():
        try:
            syscall(NR_UNSHARE, flag)
        except OSError as error:
            undone.append(f"no {name} namespace of its own: {error.strerror}")
    return undone


def _write(file: str, text: str) -> None:
    fd = os.open(f"/proc/self/{file}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
