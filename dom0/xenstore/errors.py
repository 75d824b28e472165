"""Why a request is refused. Each class is one errno name of xs_wire.h (xsd_errors) and says what was refused.

A refusal is an answer to the client that asked; it never leaves the daemon in another way.
"""

from typing import ClassVar


class XenStoreError(Exception):
    """Base of all errors of this package."""


class Refused(XenStoreError):
    """A request is answered with ERROR. what: the path, domain or value that it failed on."""

    errno: ClassVar[str] = "EINVAL"

    def __init__(self, what: object) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.errno}: {self.what!r}"


class Invalid(Refused):
    """The payload, or a path, permission or number in it, is not well formed."""


class Missing(Refused):
    """There is no such node, domain, watch or transaction."""

    errno = "ENOENT"


class Denied(Refused):
    """The caller may not do this, or may not know whether the node exists."""

    errno = "EACCES"


class OwnerKept(Refused):
    """Only the control domain gives a node to another owner."""

    errno = "EPERM"


class AlreadyThere(Refused):
    """This connection has this watch already."""

    errno = "EEXIST"


class TooBig(Refused):
    """The answer exceeds the protocol's payload, or the watches their quota."""

    errno = "E2BIG"


class Nested(Refused):
    """A transaction was to be started inside a transaction."""

    errno = "EBUSY"


class Unknown(Refused):
    """No such request type."""

    errno = "ENOSYS"


class Conflict(Refused):
    """Somebody changed what the transaction had looked at. It is gone; the client tries again."""

    errno = "EAGAIN"


class SpoiledByQuota(Refused):
    """A request in this transaction had failed on a quota, so that the rest of it is not to be kept."""

    errno = "ENOMEM"


class OverQuota(Refused):
    """A quota would be exceeded. Nothing was changed.

    quota: its name, as CONTROL prints it. limit: its value. domid: whose quota.
    """

    errno = "ENOSPC"

    def __init__(self, quota: str, limit: int, domid: int) -> None:
        super().__init__(f"{quota} {limit} of domain {domid}")
        self.quota = quota
        self.limit = limit
        self.domid = domid


class ConnectionLost(XenStoreError):
    """The event channel to a domain does not work any more."""

    def __init__(self, domid: int, reason: str) -> None:
        super().__init__(f"domain {domid}: {reason}")
        self.domid = domid
        self.reason = reason


class CannotConnect(XenStoreError):
    """What is handed in to reach a domain's ring could not: no such domain, no grant, no event channel."""

    def __init__(self, domid: int, reason: str) -> None:
        super().__init__(f"domain {domid}: {reason}")
        self.domid = domid
        self.reason = reason
