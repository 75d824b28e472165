"""What a handler raises: one type per culprit, with fields.

The hypercall boundary (hypercalls.py) maps `.errno` to the negative result of Xen's ABI (public/errno.h);
nothing of this leaves the core as an exception. Whoever catches one learns from the fields which domain,
address, port or reference it was.
"""

from __future__ import annotations

from typing import ClassVar

from hypervisor.abi.errno import (
    XEN_EACCES,
    XEN_EAGAIN,
    XEN_EBUSY,
    XEN_EEXIST,
    XEN_EFAULT,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOMEM,
    XEN_ENOSPC,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)


class XenError(Exception):
    """A hypercall that is refused. `errno` is positive, as in public/errno.h."""

    default_errno: ClassVar[int] = XEN_EINVAL

    def __init__(self, message: str, *, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = self.default_errno if errno is None else errno


class NoSuchDomain(XenError):
    """No live domain has this id (ESRCH)."""

    default_errno = XEN_ESRCH

    def __init__(self, domid: int) -> None:
        super().__init__(f"no domain {domid}")
        self.domid = domid


class NotPermitted(XenError):
    """The caller is not privileged for this (EPERM)."""

    default_errno = XEN_EPERM

    def __init__(self, domid: int, what: str) -> None:
        super().__init__(f"domain {domid} may not {what}")
        self.domid = domid
        self.what = what


class GuestFault(XenError):
    """A guest handle that names memory which is not there, or not writable (EFAULT)."""

    default_errno = XEN_EFAULT

    def __init__(self, domid: int, address: int, size: int) -> None:
        super().__init__(f"domain {domid}: {size} bytes at {address:#x} are not accessible")
        self.domid = domid
        self.address = address
        self.size = size


class InvalidArgument(XenError):
    """A value out of its range (EINVAL, unless `errno` says otherwise)."""

    def __init__(self, what: str, found: object, expected: str = "", *, errno: int | None = None) -> None:
        super().__init__(
            f"{what}: found {found!r}" + (f", expected {expected}" if expected else ""), errno=errno
        )
        self.what = what
        self.found = found
        self.expected = expected


class BadPort(XenError):
    """An event channel port that does not exist, or is in the wrong state (EINVAL unless said otherwise)."""

    def __init__(self, domid: int, port: int, why: str = "no such port", *, errno: int | None = None) -> None:
        super().__init__(f"domain {domid} port {port}: {why}", errno=errno)
        self.domid = domid
        self.port = port
        self.why = why


class BadGrantReference(XenError):
    """A grant reference that does not exist or does not permit this; `status` is the GNTST_* code for its
    entry.
    """

    def __init__(self, domid: int, reference: int, why: str, *, status: int) -> None:
        super().__init__(f"domain {domid} grant {reference}: {why}")
        self.domid = domid
        self.reference = reference
        self.why = why
        self.status = status


class BadFrame(XenError):
    """A machine frame that does not exist, or has another owner or type (EINVAL)."""

    def __init__(self, mfn: int, why: str, *, errno: int | None = None) -> None:
        super().__init__(f"mfn {mfn:#x}: {why}", errno=errno)
        self.mfn = mfn
        self.why = why


class BadGpfn(XenError):
    """A guest frame number that is outside the address space, empty, or already in use (EINVAL)."""

    def __init__(self, domid: int, gpfn: int, why: str, *, errno: int | None = None) -> None:
        super().__init__(f"domain {domid} gpfn {gpfn:#x}: {why}", errno=errno)
        self.domid = domid
        self.gpfn = gpfn
        self.why = why


class NotFound(XenError):
    """What was asked for is not there (ENOENT)."""

    default_errno = XEN_ENOENT

    def __init__(self, what: str) -> None:
        super().__init__(f"not found: {what}")
        self.what = what


class AlreadyExists(XenError):
    """What was to be made is already there (EEXIST)."""

    default_errno = XEN_EEXIST

    def __init__(self, what: str) -> None:
        super().__init__(f"already exists: {what}")
        self.what = what


class Busy(XenError):
    """It is in use; the caller may try again when that has ended (EBUSY)."""

    default_errno = XEN_EBUSY

    def __init__(self, what: str) -> None:
        super().__init__(f"busy: {what}")
        self.what = what


class TryAgain(XenError):
    """The state does not allow it just now (EAGAIN)."""

    default_errno = XEN_EAGAIN

    def __init__(self, what: str) -> None:
        super().__init__(f"try again: {what}")
        self.what = what


class NoSpace(XenError):
    """A table is full (ENOSPC)."""

    default_errno = XEN_ENOSPC

    def __init__(self, what: str) -> None:
        super().__init__(f"full: {what}")
        self.what = what


class OutOfMemory(XenError):
    """The machine, or the domain's allowance, has no more frames (ENOMEM)."""

    default_errno = XEN_ENOMEM

    def __init__(self, what: str, wanted: int, left: int) -> None:
        super().__init__(f"{what}: {wanted} frames wanted, {left} left")
        self.what = what
        self.wanted = wanted
        self.left = left


class Unsupported(XenError):
    """An operation that this hypervisor does not have (ENOSYS; EOPNOTSUPP for a known one without the
    facility).
    """

    default_errno = XEN_ENOSYS

    def __init__(self, what: str, *, known: bool = False) -> None:
        super().__init__(f"unsupported: {what}", errno=XEN_EOPNOTSUPP if known else None)
        self.what = what


class WrongInterface(XenError):
    """The caller speaks another version of a control interface (EACCES)."""

    default_errno = XEN_EACCES

    def __init__(self, what: str, found: int, expected: int) -> None:
        super().__init__(f"{what} interface version {found:#x}, this is {expected:#x}")
        self.what = what
        self.found = found
        self.expected = expected
