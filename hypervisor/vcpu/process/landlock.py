"""Which files a confined process can open, and which sockets and signals it can reach: Landlock (landlock(7)).

Rules name what stays allowed; what the kernel's version of Landlock handles and no rule allows is refused. It
does not restrict stat, readlink, chdir, or what changes metadata; seccomp refuses the last.
"""

from __future__ import annotations

import errno
import os
import stat
from ctypes import addressof, create_string_buffer
from struct import Struct as Codec
from typing import Final

from hypervisor.vcpu.process.libc import syscall

NR_CREATE_RULESET: Final = 444
NR_ADD_RULE: Final = 445
NR_RESTRICT_SELF: Final = 446
CREATE_RULESET_VERSION: Final = 1
RULE_PATH_BENEATH: Final = 1

EXECUTE: Final = 1 << 0  # LANDLOCK_ACCESS_FS_*
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_DIR: Final = 1 << 4
REMOVE_FILE: Final = 1 << 5
MAKE_CHAR: Final = 1 << 6
MAKE_DIR: Final = 1 << 7
MAKE_REG: Final = 1 << 8
MAKE_SOCK: Final = 1 << 9
MAKE_FIFO: Final = 1 << 10
MAKE_BLOCK: Final = 1 << 11
MAKE_SYM: Final = 1 << 12
REFER: Final = 1 << 13  # ABI 2
TRUNCATE: Final = 1 << 14  # ABI 3
IOCTL_DEV: Final = 1 << 15  # ABI 5
NET_BIND_CONNECT_TCP: Final = 1 << 0 | 1 << 1  # ABI 4
SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1 << 0  # ABI 6
SCOPE_SIGNAL: Final = 1 << 1

READ: Final = READ_FILE | READ_DIR
CHANGE: Final = (
    WRITE_FILE
    | TRUNCATE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | REFER
)
OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""what a rule for something that is no folder may say"""

HANDLED: Final = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
"""by the ABI that they came with"""
MISSING: Final = {
    3: "files can be emptied that cannot be written",
    5: "the control of devices (ioctl) is not restricted",
    6: "signals and abstract Unix sockets are not restricted",
}
"""what a kernel before this ABI lacks; seccomp refuses much of it as well"""

_RULESET: Final = Codec("<QQQ")
_RULESET_BYTES: Final = {1: 8, 4: 16, 6: 24}
_PATH_BENEATH: Final = Codec("<Qi")


def abi() -> int:
    """The kernel's version of Landlock; 0 without."""
    try:
        return syscall(NR_CREATE_RULESET, 0, 0, CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}:
            return 0
        raise


def missing(version: int) -> list[str]:
    """What a kernel with this version of Landlock cannot restrict, in words."""
    if not version:
        return ["no Landlock: files are only protected by their modes"]
    return [f"Landlock {version}: {what}" for since, what in MISSING.items() if since > version]


class Ruleset:
    """What shall stay allowed; nothing at first. `restrict` makes it so for the calling thread and all that
    it starts, for ever.
    """

    def __init__(self, version: int, *, network: bool) -> None:
        self.handled = 0
        for since, rights in HANDLED.items():
            if since <= version:
                self.handled |= rights
        net = NET_BIND_CONNECT_TCP if version >= 4 and not network else 0
        scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if version >= 6 else 0
        size = max(size for since, size in _RULESET_BYTES.items() if since <= version)
        attr = create_string_buffer(_RULESET.pack(self.handled, net, scoped))
        self._fd = syscall(NR_CREATE_RULESET, addressof(attr), size, 0)

    def allow(self, path: str, rights: int) -> None:
        """Allow `rights` on `path` and all beneath it. Raises OSError if it is not there."""
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= OF_FILES
            attr = create_string_buffer(_PATH_BENEATH.pack(rights & self.handled, fd))
            syscall(NR_ADD_RULE, self._fd, RULE_PATH_BENEATH, addressof(attr), 0)
        finally:
            os.close(fd)

    def restrict(self) -> None:
        """no_new_privs must be set."""
        syscall(NR_RESTRICT_SELF, self._fd, 0)

    def close(self) -> None:
        """Give up the descriptor; what is restricted stays so."""
        os.close(self._fd)
