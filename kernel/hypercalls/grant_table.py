"""Grant table operations (public/grant_table.h), laid out as calls.

Mapping, unmapping and copying take arrays and give a GNTST_* status for each element: the hypercall succeeds
although elements fail.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from hypervisor.abi import grant_table as abi
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_grant_table_op
from kernel.hypercalls.arguments import ArgumentArea
from kernel.hypercalls.call import Pending, nothing

_OP: Final = HYPERVISOR_grant_table_op

MAP: Final = abi.gnttab_map_grant_ref.codec
UNMAP: Final = abi.gnttab_unmap_grant_ref.codec
COPY: Final = abi.gnttab_copy.codec


class TableSize(NamedTuple):
    """Pages that a grant table has now, and may have."""

    frames: int
    max_frames: int


class MapResult(NamedTuple):
    """status: GNTST_*. handle: names the mapping when it is to be undone."""

    status: int
    handle: int


class CopyEnd(NamedTuple):
    """One end of a copy: `frame` is a grant reference of `domid` if `by_reference`, else a frame of that
    domain.
    """

    domid: int
    frame: int
    offset: int
    by_reference: bool


class CopyOp(NamedTuple):
    """Copy `length` bytes within a page."""

    source: CopyEnd
    dest: CopyEnd
    length: int


def query_size(area: ArgumentArea, domid: int = DOMID_SELF) -> Pending[tuple[int, TableSize]]:
    """Status, and how large a domain's grant table is."""
    slot = area.put(abi.gnttab_query_size(dom=domid))
    args = (abi.GNTTABOP_query_size, slot.address, 1)

    def decode(_result: int) -> tuple[int, TableSize]:
        found = slot.get()
        return found.status, TableSize(found.nr_frames, found.max_nr_frames)

    return Pending("GNTTABOP_query_size", _OP, args, decode, slot.value)


def setup_table(area: ArgumentArea, count: int, domid: int = DOMID_SELF) -> Pending[tuple[int, list[int]]]:
    """Make a domain's grant table at least `count` pages large; status, and where in the domain they are."""
    frames = area.put_frames([0] * count)
    value = abi.gnttab_setup_table(dom=domid, nr_frames=count, frame_list=area.address + frames)
    slot = area.put(value)
    args = (abi.GNTTABOP_setup_table, slot.address, 1)

    def decode(_result: int) -> tuple[int, list[int]]:
        return slot.get().status, area.view[frames : frames + 8 * count].cast("Q").tolist()

    return Pending("GNTTABOP_setup_table", _OP, args, decode, value)


def map_refs(
    area: ArgumentArea, domid: int, references: Sequence[int], addresses: Sequence[int], flags: int
) -> Pending[list[MapResult]]:
    """Map pages that `domid` granted to us at guest-physical `addresses`."""
    count = len(references)
    rows = [MAP.pack(host, flags, ref, domid, 0, 0, 0) for host, ref in zip(addresses, references)]
    offset = area.put_bytes(b"".join(rows))
    args = (abi.GNTTABOP_map_grant_ref, area.address + offset, count)

    def decode(_result: int) -> list[MapResult]:
        return [MapResult(row[4], row[5]) for row in area.rows(MAP, offset, count)]

    return Pending("GNTTABOP_map_grant_ref", _OP, args, decode, (domid, references))


def unmap_refs(area: ArgumentArea, handles: Sequence[int], addresses: Sequence[int]) -> Pending[list[int]]:
    """Undo mappings; returns a status for each."""
    count = len(handles)
    offset = area.put_bytes(
        b"".join(UNMAP.pack(host, 0, handle, 0) for host, handle in zip(addresses, handles))
    )
    args = (abi.GNTTABOP_unmap_grant_ref, area.address + offset, count)

    def decode(_result: int) -> list[int]:
        return [row[3] for row in area.rows(UNMAP, offset, count)]

    return Pending("GNTTABOP_unmap_grant_ref", _OP, args, decode, handles)


def copy(area: ArgumentArea, operations: Sequence[CopyOp]) -> Pending[list[int]]:
    """Let the hypervisor copy bytes from and to granted pages; returns a status for each."""
    count = len(operations)
    offset = area.put_bytes(b"".join(map(_pack_copy, operations)))
    args = (abi.GNTTABOP_copy, area.address + offset, count)

    def decode(_result: int) -> list[int]:
        return [row[-1] for row in area.rows(COPY, offset, count)]

    return Pending("GNTTABOP_copy", _OP, args, decode, operations)


def _pack_copy(operation: CopyOp) -> bytes:
    source, dest, length = operation
    flags = (abi.GNTCOPY_source_gref if source.by_reference else 0) | (
        abi.GNTCOPY_dest_gref if dest.by_reference else 0
    )
    return COPY.pack(
        source.frame.to_bytes(8, "little"),
        source.domid,
        source.offset,
        dest.frame.to_bytes(8, "little"),
        dest.domid,
        dest.offset,
        length,
        flags,
        0,
    )


def get_version(area: ArgumentArea, domid: int = DOMID_SELF) -> Pending[int]:
    """The version of a domain's grant table layout."""
    slot = area.put(abi.gnttab_get_version(dom=domid))
    args = (abi.GNTTABOP_get_version, slot.address, 1)
    return Pending("GNTTABOP_get_version", _OP, args, lambda _: slot.get().version, slot.value)


def set_version(area: ArgumentArea, version: int) -> Pending[None]:
    """Choose the layout of our grant table."""
    slot = area.put(abi.gnttab_set_version(version=version))
    return Pending(
        "GNTTABOP_set_version", _OP, (abi.GNTTABOP_set_version, slot.address, 1), nothing, slot.value
    )
