"""A hypercall that the hypervisor refused: one type per errno that callers tell apart, all with the same
fields.
"""

from typing import ClassVar, Final

from hypervisor.abi import errno as abi
from hypervisor.abi.errno import ERRNO_NAMES
from kernel.errors import KernelError


class HypercallError(KernelError):
    """op: Xen's name of the operation. errno: positive, as in public/errno.h. arguments: the struct or values
    passed.
    """

    errnos: ClassVar[tuple[int, ...]] = ()

    def __init__(self, op: str, errno: int, arguments: object) -> None:
        super().__init__(f"{op}: {ERRNO_NAMES.get(errno, errno)} for {arguments}")
        self.op = op
        self.errno = errno
        self.arguments = arguments

    @property
    def errno_name(self) -> str:
        """The errno as Xen spells it, such as EINVAL."""
        return ERRNO_NAMES.get(self.errno, str(self.errno))


class HypercallNotPermitted(HypercallError):
    """This domain may not do that."""

    errnos = (abi.XEN_EPERM, abi.XEN_EACCES)


class HypercallNoSuchDomain(HypercallError):
    """No domain has the id that was given."""

    errnos = (abi.XEN_ESRCH,)


class HypercallInvalid(HypercallError):
    """An argument is out of range, or does not fit the state of what it names."""

    errnos = (abi.XEN_EINVAL,)


class HypercallNotFound(HypercallError):
    """What was named does not exist."""

    errnos = (abi.XEN_ENOENT,)


class HypercallExists(HypercallError):
    """What was to be made exists already."""

    errnos = (abi.XEN_EEXIST,)


class HypercallBusy(HypercallError):
    """Not now: it is in use (EBUSY), or the state will change (EAGAIN)."""

    errnos = (abi.XEN_EBUSY, abi.XEN_EAGAIN)


class HypercallOutOfMemory(HypercallError):
    """No memory, or no free entry in a table."""

    errnos = (abi.XEN_ENOMEM, abi.XEN_ENOSPC)


class HypercallFault(HypercallError):
    """A guest handle does not lead to memory of this domain."""

    errnos = (abi.XEN_EFAULT,)


class HypercallUnsupported(HypercallError):
    """The hypervisor does not have this operation."""

    errnos = (abi.XEN_ENOSYS, abi.XEN_EOPNOTSUPP)


_TYPES: Final = {errno: kind for kind in HypercallError.__subclasses__() for errno in kind.errnos}


def refusal(op: str, result: int, arguments: object) -> HypercallError:
    """The error that stands for the negative `result` of `op`."""
    return _TYPES.get(-result, HypercallError)(op, -result, arguments)
