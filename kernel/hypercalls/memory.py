"""Memory operations (public/memory.h), laid out as calls. Frame numbers are guest-physical (GFN)."""

from collections.abc import Sequence
from typing import Final

from hypervisor.abi import memory as abi
from hypervisor.abi.xen import DOMID_SELF, HYPERVISOR_memory_op
from kernel.hypercalls.arguments import ArgumentArea
from kernel.hypercalls.call import Pending, itself, nothing

E820_ENTRY_BYTES: Final = 20

_OP: Final = HYPERVISOR_memory_op


def add_to_physmap(
    area: ArgumentArea, space: int, index: int, gpfn: int, domid: int = DOMID_SELF
) -> Pending[None]:
    """Put page `index` of an XENMAPSPACE_* at `gpfn`."""
    value = abi.xen_add_to_physmap(domid=domid, space=space, idx=index, gpfn=gpfn)
    args = (abi.XENMEM_add_to_physmap, area.place(value))
    return Pending("XENMEM_add_to_physmap", _OP, args, nothing, value)


def remove_from_physmap(area: ArgumentArea, gpfn: int, domid: int = DOMID_SELF) -> Pending[None]:
    """Empty `gpfn`."""
    value = abi.xen_remove_from_physmap(domid=domid, gpfn=gpfn)
    args = (abi.XENMEM_remove_from_physmap, area.place(value))
    return Pending("XENMEM_remove_from_physmap", _OP, args, nothing, value)


def map_foreign(
    area: ArgumentArea, foreign_domid: int, frames: Sequence[int], gpfns: Sequence[int]
) -> Pending[list[int]]:
    """Put frames of a domain that we control at our `gpfns`; returns 0 or a negative errno for each."""
    count = len(frames)
    idxs, targets = area.put_frames(frames), area.put_frames(gpfns)
    errors = area.put_bytes(bytes(4 * count))
    value = abi.xen_add_to_physmap_batch(
        domid=DOMID_SELF,
        space=abi.XENMAPSPACE_gmfn_foreign,
        size=count,
        u=abi.xen_add_to_physmap_batch_extra(foreign_domid=foreign_domid),
        idxs=area.address + idxs,
        gpfns=area.address + targets,
        errs=area.address + errors,
    )
    args = (abi.XENMEM_add_to_physmap_batch, area.place(value))

    def decode(_result: int) -> list[int]:
        return list(area.view[errors : errors + 4 * count].cast("i"))

    return Pending("XENMEM_add_to_physmap_batch", _OP, args, decode, value)


def map_grant_frames(area: ArgumentArea, domid: int, first: int, gpfns: Sequence[int]) -> Pending[None]:
    """Put shared frames of the grant table of a domain that we control at our `gpfns`."""
    value = abi.xen_mem_acquire_resource(
        domid=domid,
        type=abi.XENMEM_resource_grant_table,
        id=abi.XENMEM_resource_grant_table_id_shared,
        nr_frames=len(gpfns),
        frame=first,
        frame_list=area.address + area.put_frames(gpfns),
    )
    args = (abi.XENMEM_acquire_resource, area.place(value))
    return Pending("XENMEM_acquire_resource", _OP, args, nothing, value)


def populate_physmap(
    area: ArgumentArea, gpfns: Sequence[int], *, order: int = 0, domid: int = DOMID_SELF
) -> Pending[int]:
    """Put fresh memory at extents of 2**order pages that begin at `gpfns`; returns how many were made."""
    return _reservation(
        area, "XENMEM_populate_physmap", abi.XENMEM_populate_physmap, gpfns, order=order, domid=domid
    )


def decrease_reservation(
    area: ArgumentArea, gpfns: Sequence[int], *, order: int = 0, domid: int = DOMID_SELF
) -> Pending[int]:
    """Give memory back; returns how many extents were freed."""
    return _reservation(
        area, "XENMEM_decrease_reservation", abi.XENMEM_decrease_reservation, gpfns, order=order, domid=domid
    )


def _reservation(
    area: ArgumentArea, name: str, command: int, gpfns: Sequence[int], *, order: int, domid: int
) -> Pending[int]:
    value = abi.xen_memory_reservation(
        extent_start=area.address + area.put_frames(gpfns),
        nr_extents=len(gpfns),
        extent_order=order,
        domid=domid,
    )
    return Pending(name, _OP, (command, area.place(value)), itself, value)


def set_memory_map(area: ArgumentArea, domid: int, entries: bytes) -> Pending[None]:
    """Say what a native domain will be told of its memory: packed E820 entries of 20 bytes each."""
    place = area.address + area.put_bytes(entries)
    shown = abi.xen_memory_map(nr_entries=len(entries) // E820_ENTRY_BYTES, buffer=place)
    value = abi.xen_foreign_memory_map(domid=domid, map=shown)
    args = (abi.XENMEM_set_memory_map, area.place(value))
    return Pending("XENMEM_set_memory_map", _OP, args, nothing, value)


def maximum_ram_page(_area: ArgumentArea) -> Pending[int]:
    """The machine's highest frame number."""
    return Pending("XENMEM_maximum_ram_page", _OP, (abi.XENMEM_maximum_ram_page, 0), itself, None)


def current_reservation(area: ArgumentArea, domid: int = DOMID_SELF) -> Pending[int]:
    """Pages that a domain has."""
    value = abi.xen_memory_domain(domid=domid)
    args = (abi.XENMEM_current_reservation, area.place(value))
    return Pending("XENMEM_current_reservation", _OP, args, itself, value)


def maximum_reservation(area: ArgumentArea, domid: int = DOMID_SELF) -> Pending[int]:
    """Pages that a domain may have."""
    value = abi.xen_memory_domain(domid=domid)
    args = (abi.XENMEM_maximum_reservation, area.place(value))
    return Pending("XENMEM_maximum_reservation", _OP, args, itself, value)
