"""Pages of other domains that this kernel has mapped, and what can go wrong with them."""

from collections.abc import Sequence
from typing import Final

from hypervisor.abi import grant_table
from hypervisor.abi.names import names
from kernel.errors import KernelError

STATUS_NAMES: Final = names(grant_table, "GNTST_")
"""The name of each grant status: -3 is bad_gntref."""


class GrantError(KernelError):
    """A reference of domain `domid` could not be mapped; `status` is its GNTST_*."""

    def __init__(self, domid: int, reference: int, status: int) -> None:
        super().__init__(f"grant {reference} of domain {domid}: {STATUS_NAMES.get(status, status)}")
        self.domid = domid
        self.reference = reference
        self.status = status


class MappingInUse(KernelError):
    """A mapping was to be undone while its view is being read or written."""

    def __init__(self, mapping: "Mapping") -> None:
        super().__init__(f"{mapping} is in use")
        self.mapping = mapping


class UnmapFailed(KernelError):
    """The hypervisor did not undo some mappings; each comes with its GNTST_* status."""

    def __init__(self, failed: Sequence[tuple["Mapping", int]]) -> None:
        shown = ", ".join(f"{mapping}: {STATUS_NAMES.get(status, status)}" for mapping, status in failed)
        super().__init__(f"not unmapped: {shown}")
        self.failed = failed


class Mapping:
    """The page that domain `domid` granted as `reference`, at our frame number `pfn`. `handle` undoes it."""

    __slots__ = ("domid", "handle", "page", "pfn", "reference")

    def __init__(self, page: memoryview, handle: int, pfn: int, domid: int, reference: int) -> None:
        self.page = page
        self.handle = handle
        self.pfn = pfn
        self.domid = domid
        self.reference = reference

    def release(self) -> None:
        """Make `page` unusable, before the mapping goes. Raises MappingInUse while somebody works on it."""
        try:
            self.page.release()
        except BufferError:
            raise MappingInUse(self) from None

    def __repr__(self) -> str:
        return f"grant {self.reference} of domain {self.domid} at pfn {self.pfn:#x}"
