"""What can go wrong with XenStore: the daemon refused, others kept being faster, or the connection is beyond
use.
"""

from kernel.errors import KernelError
from ringbuffers.protocols.xs_wire import XSD_ERRORS


class StoreError(KernelError):
    """The daemon refused a request. name: the error as it travels (ENOENT). op: READ, WRITE, … path: what it
    was about.
    """

    def __init__(self, name: str, op: str, path: str) -> None:
        super().__init__(f"{op} {path}: {name}")
        self.name = name
        self.op = op
        self.path = path

    @property
    def errno(self) -> int:
        """The error's number; EIO for a name that the protocol does not have."""
        return XSD_ERRORS.get(self.name, XSD_ERRORS["EIO"])


class TransactionConflict(StoreError):
    """A transaction met changes by others each time it was tried."""

    def __init__(self, attempts: int) -> None:
        super().__init__("EAGAIN", "TRANSACTION_END", f"after {attempts} attempts")
        self.attempts = attempts


class StoreConnectionBroken(KernelError):
    """The daemon broke the protocol, or gave this domain up. No request will be answered any more."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the connection to XenStore is broken: {why}")
        self.why = why
