"""Guests that grant, map and copy by hand: entries written by themselves, hypercalls with arrays in their
memory.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

from hypervisor.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_grant_ref,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    gnttab_copy,
    gnttab_copy_ptr,
    gnttab_copy_ptr_u,
    gnttab_map_grant_ref,
    gnttab_unmap_grant_ref,
)
from hypervisor.abi.layout import Struct
from hypervisor.abi.xen import DOMID_SELF, __HYPERVISOR_grant_table_op
from tests.hypervisor.fakes import Guest

Op = TypeVar("Op", bound=Struct)

GRANT_TABLE_OP: Final = __HYPERVISOR_grant_table_op  # two underscores would be mangled inside a class
PAGE: Final = 4096
ARRAY: Final = 0x800
"""where arrays of operations go"""
WINDOW: Final = 0x1000
"""the first guest frame that is free for mappings"""
UNTOUCHED: Final = 0x5A5A
"""what a status field holds before an operation: no status"""


class GrantGuest(Guest):
    """RAM is at frames 0 to 7, arguments are in frame 0; entries 0 to 511 are used as they come."""

    def grant(self, reference: int, to: int, gpfn: int, *, readonly: bool = False) -> None:
        """Fill an entry as the granter does: flags last."""
        self.domain.grants.entries.write(
            reference, to, gpfn, GTF_permit_access | (GTF_readonly if readonly else 0)
        )

    def end(self, reference: int) -> bool:
        """End a grant as the granter does: an atomic exchange, unless it is in use."""
        entries = self.domain.grants.entries
        if entries.flags(reference) & (GTF_reading | GTF_writing):
            return False
        entries.write(reference, 0, 0, 0)
        return True

    def flags(self, reference: int) -> int:
        """The flags of an entry."""
        return self.domain.grants.entries.flags(reference)

    def in_use(self, reference: int) -> str:
        """The in-use bits as letters."""
        flags = self.flags(reference)
        return ("r" if flags & GTF_reading else "") + ("w" if flags & GTF_writing else "")

    def array(self, command: int, operations: Sequence[Op], address: int = ARRAY) -> list[Op]:
        """Execute an array of operations, which must succeed as a whole; the structs afterwards."""
        memory = self.domain.memory
        memory.write(address, b"".join(operation.pack() for operation in operations))
        result = self.hypercall(GRANT_TABLE_OP, command, address, len(operations))
        assert result == 0
        if not operations:
            return []
        kind = type(operations[0])
        return [memory.read_struct(kind, address + index * kind.size) for index in range(len(operations))]

    def map(
        self,
        granter: int,
        reference: int,
        gpfn: int = WINDOW,
        *,
        readonly: bool = False,
        flags: int = GNTMAP_host_map,
    ) -> gnttab_map_grant_ref:
        """Map one grant."""
        operation = gnttab_map_grant_ref(
            host_addr=gpfn * PAGE,
            flags=flags | (GNTMAP_readonly if readonly else 0),
            ref=reference,
            dom=granter,
            status=UNTOUCHED,
        )
        return self.array(GNTTABOP_map_grant_ref, [operation])[0]

    def unmap(self, handle: int, gpfn: int = WINDOW) -> int:
        """Unmap one handle; its status."""
        return self.unmap_addresses(handle, gpfn * PAGE, 0)

    def unmap_addresses(self, handle: int, host_addr: int, dev_bus_addr: int) -> int:
        """The same with any addresses."""
        operation = gnttab_unmap_grant_ref(host_addr, dev_bus_addr, handle, UNTOUCHED)
        return self.array(GNTTABOP_unmap_grant_ref, [operation])[0].status

    def copy(self, source: gnttab_copy_ptr, dest: gnttab_copy_ptr, length: int, flags: int) -> int:
        """Copy once; the status."""
        operation = gnttab_copy(source=source, dest=dest, len=length, flags=flags, status=UNTOUCHED)
        return self.array(GNTTABOP_copy, [operation])[0].status

    def copy_from(self, granter: int, reference: int, gpfn: int, length: int = PAGE) -> int:
        """Copy the start of a granted page to the start of a page of one's own."""
        return self.copy(granted(granter, reference), own(gpfn), length, GNTCOPY_source_gref)

    def copy_to(self, granter: int, reference: int, gpfn: int, length: int = PAGE) -> int:
        """Copy the start of a page of one's own to the start of a granted page."""
        return self.copy(own(gpfn), granted(granter, reference), length, GNTCOPY_dest_gref)


def granted(granter: int, reference: int, offset: int = 0) -> gnttab_copy_ptr:
    """A side of a copy that is a grant."""
    return gnttab_copy_ptr(u=gnttab_copy_ptr_u(ref=reference), domid=granter, offset=offset)


def own(gpfn: int, offset: int = 0, domid: int = DOMID_SELF) -> gnttab_copy_ptr:
    """A side of a copy that is a frame of the caller's own."""
    return gnttab_copy_ptr(u=gnttab_copy_ptr_u(gmfn=gpfn), domid=domid, offset=offset)
