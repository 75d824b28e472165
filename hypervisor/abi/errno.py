"""errno.h: the error numbers of hypercalls, which return them negated.

EINTR and ERESTART never reach a guest: they are the hypervisor's own.
"""

import sys
from typing import Final

from hypervisor.abi.names import names

XEN_EPERM: Final = 1
XEN_ENOENT: Final = 2
XEN_ESRCH: Final = 3
XEN_EINTR: Final = 4
XEN_EIO: Final = 5
XEN_ENXIO: Final = 6
XEN_E2BIG: Final = 7
XEN_ENOEXEC: Final = 8
XEN_EBADF: Final = 9
XEN_ECHILD: Final = 10
XEN_EAGAIN: Final = 11
XEN_EWOULDBLOCK: Final = 11
XEN_ENOMEM: Final = 12
XEN_EACCES: Final = 13
XEN_EFAULT: Final = 14
XEN_EBUSY: Final = 16
XEN_EEXIST: Final = 17
XEN_EXDEV: Final = 18
XEN_ENODEV: Final = 19
XEN_ENOTDIR: Final = 20
XEN_EISDIR: Final = 21
XEN_EINVAL: Final = 22
XEN_ENFILE: Final = 23
XEN_EMFILE: Final = 24
XEN_ENOSPC: Final = 28
XEN_EROFS: Final = 30
XEN_EMLINK: Final = 31
XEN_EDOM: Final = 33
XEN_ERANGE: Final = 34
XEN_EDEADLK: Final = 35
XEN_EDEADLOCK: Final = 35
XEN_ENAMETOOLONG: Final = 36
XEN_ENOLCK: Final = 37
XEN_ENOSYS: Final = 38
XEN_ENOTEMPTY: Final = 39
XEN_ENODATA: Final = 61
XEN_ETIME: Final = 62
XEN_EBADMSG: Final = 74
XEN_EOVERFLOW: Final = 75
XEN_EILSEQ: Final = 84
XEN_ERESTART: Final = 85
XEN_ENOTSOCK: Final = 88
XEN_EMSGSIZE: Final = 90
XEN_EOPNOTSUPP: Final = 95
XEN_EADDRINUSE: Final = 98
XEN_EADDRNOTAVAIL: Final = 99
XEN_ENOBUFS: Final = 105
XEN_EISCONN: Final = 106
XEN_ENOTCONN: Final = 107
XEN_ETIMEDOUT: Final = 110
XEN_ECONNREFUSED: Final = 111

ERRNO_NAMES: Final[dict[int, str]] = names(sys.modules[__name__], "XEN_")
"""The name of each number, such as EINVAL; of two names for one number, the first in the header."""
