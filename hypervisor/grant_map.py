"""Mapping and unmapping grants: one operation each of GNTTABOP_map_grant_ref and GNTTABOP_unmap_grant_ref.

Follows map_grant_ref and unmap_common of Xen 4.17 for auto-translated domains
(xen/arch/x86/hvm/grant_table.c): the grant appears at a vacant guest frame of the mapper, host_addr's,
whose low bits mean nothing (for a native guest, whose process asks for it, one of the window for foreign
frames); there are no device mappings, so dev_bus_addr is told and never asked for. An
unmap must name the guest frame that its handle was given for: Xen is content with any mapping of the same
frame, which lets a writable one outlive GTF_writing.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct as Codec
from typing import TYPE_CHECKING, Final

from hypervisor.abi.grant_table import (
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_general_error,
    GNTST_no_space,
    GNTST_okay,
)
from hypervisor.errors import BadFrame, BadGpfn, BadGrantReference, OutOfMemory
from hypervisor.extent import PAGE_SHIFT
from hypervisor.grant_batch import STATUS
from hypervisor.maptrack import Mapping
from hypervisor.pv.layout import FOREIGN_END, FOREIGN_FIRST

if TYPE_CHECKING:
    from hypervisor.domain import Domain

MAPPED: Final = Codec("<hIQ")
"""status, handle, dev_bus_addr of gnttab_map_grant_ref; a refused operation leaves the latter two as they
were
"""


def map_grant_ref(mapper: Domain, host_addr: int, flags: int, reference: int, domid: int) -> bytes:
    """Map a grant of domain `domid` for `mapper`; returns the result fields."""
    if not flags & (GNTMAP_host_map | GNTMAP_device_map):
        return STATUS[GNTST_bad_gntref]
    if flags & ~GNTMAP_readonly != GNTMAP_host_map:
        return STATUS[GNTST_general_error]
    domain = mapper.machine.domains.get(domid)
    if domain is None:
        return STATUS[GNTST_bad_domain]
    maptrack = mapper.grants.maptrack
    if maptrack.full:
        return STATUS[GNTST_no_space]
    granter = domain.grants
    readonly = bool(flags & GNTMAP_readonly)
    gpfn = host_addr >> PAGE_SHIFT
    if mapper.traits.pv and not FOREIGN_FIRST <= gpfn < FOREIGN_END:
        return STATUS[GNTST_general_error]
    try:
        pin = granter.pin(reference, mapper.domid, readonly=readonly)
    except BadGrantReference as refusal:
        return STATUS[refusal.status]
    try:
        mapper.memory.map_foreign(gpfn, pin.mfn, not readonly)
    except (BadGpfn, BadFrame, OutOfMemory):
        granter.unpin(reference, pin, readonly=readonly)
        return STATUS[GNTST_general_error]
    handle = maptrack.add(Mapping(granter, reference, pin, gpfn, readonly=readonly))
    mapper.counters.grant_maps += 1
    return MAPPED.pack(GNTST_okay, handle, pin.mfn << PAGE_SHIFT)


def prepare(mapper: Domain, operations: Iterable[tuple[int, int, int, int]]) -> bool:
    """Whether the process of `mapper` can be given the pages of these operations, as far as they are to be had;
    otherwise mapper.awaits says whose process has to stand still first.
    """
    domains = mapper.machine.domains
    granters = set()
    for _host_addr, flags, reference, domid in operations:
        granter = domains.get(domid)
        if granter is None or granter.moves is None:
            continue
        granters.add(granter.moves)
        if not granter.moves.prepare(reference, mapper.domid, readonly=bool(flags & GNTMAP_readonly)):
            mapper.awaits.add(granter)
    if mapper.awaits:
        return False
    for moves in granters:
        moves.tried(mapper.domid)
    return True


def unmap_grant_ref(mapper: Domain, host_addr: int, _dev_bus_addr: int, handle: int) -> bytes:
    """Undo what `handle` stands for; returns the status. A zero `host_addr` asks for nothing and gets it."""
    maptrack = mapper.grants.maptrack
    mapping = maptrack.get(handle)
    if mapping is None:
        return STATUS[GNTST_bad_handle]
    if not host_addr:
        return STATUS[GNTST_okay]
    if host_addr >> PAGE_SHIFT != mapping.gpfn:
        return STATUS[GNTST_general_error]
    # The page goes first: while it can be reached, the granter must see it in use.
    mapper.memory.unmap_foreign(mapping.gpfn)
    maptrack.remove(handle)
    if not mapping.granter.end_use(mapping):
        mapper.awaits.add(mapping.granter.domain)
    mapper.counters.grant_unmaps += 1
    return STATUS[GNTST_okay]
