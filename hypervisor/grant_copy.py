"""Copying between granted pages and pages of one's own: one operation of GNTTABOP_copy.

Follows gnttab_copy of Xen 4.17. A side is a grant of any domain, or a frame of the caller, which must then
call itself DOMID_SELF. A copy of nothing looks at nothing, as in later versions (the hardening beside
XSA-448).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hypervisor.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_page,
    GNTST_okay,
    GNTST_permission_denied,
)
from hypervisor.abi.xen import DOMID_SELF
from hypervisor.errors import BadGpfn, BadGrantReference, Busy
from hypervisor.extent import PAGE_SIZE
from hypervisor.grant_batch import STATUS

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.grant_pin import Pin

_REFERENCE_MASK: Final = 0xFFFF_FFFF  # a reference is the low half of the union that holds a frame number


def copy(  # noqa: PLR0917  # the fields of gnttab_copy, in their order
    caller: Domain,
    source_frame: int,
    source_domid: int,
    source_offset: int,
    dest_frame: int,
    dest_domid: int,
    dest_offset: int,
    length: int,
    flags: int,
) -> bytes:
    """Copy `length` bytes; a "frame" is a grant reference where `flags` say so. Returns the status."""
    if not length:
        return STATUS[GNTST_okay]
    from_grant = flags & GNTCOPY_source_gref
    to_grant = flags & GNTCOPY_dest_gref
    if not (from_grant or source_domid == DOMID_SELF) or not (to_grant or dest_domid == DOMID_SELF):
        return STATUS[GNTST_permission_denied]
    machine = caller.machine
    source = caller if source_domid == DOMID_SELF else machine.domains.get(source_domid)
    dest = caller if dest_domid == DOMID_SELF else machine.domains.get(dest_domid)
    if source is None or dest is None:
        return STATUS[GNTST_bad_domain]
    # One of the two names of each side means something: the reference of a grant, or a frame number.
    source_grant = source_frame & _REFERENCE_MASK
    dest_grant = dest_frame & _REFERENCE_MASK
    user = caller.domid
    source_pin: Pin | None = None
    dest_pin: Pin | None = None
    try:
        source_pin = source.grants.pin(source_grant, user, readonly=True) if from_grant else None
        source_mfn = source_pin.mfn if source_pin else source.grants.own_frame(source_frame)
        dest_pin = dest.grants.pin(dest_grant, user, readonly=False) if to_grant else None
        dest_mfn = dest_pin.mfn if dest_pin else dest.grants.own_frame(dest_frame)
        if not dest_pin and dest.ledger is not None:
            dest.ledger.check(dest_frame)
        source_end = source_offset + length
        dest_end = dest_offset + length
        if source_end > PAGE_SIZE or dest_end > PAGE_SIZE:
            return STATUS[GNTST_bad_copy_arg]
        view = machine.frames.view
        view(dest_mfn)[dest_offset:dest_end] = view(source_mfn)[source_offset:source_end]
    except BadGrantReference as refusal:
        return STATUS[refusal.status]
    except (BadGpfn, Busy):
        return STATUS[GNTST_bad_page]
    finally:
        if source_pin:
            source.grants.unpin(source_grant, source_pin, readonly=True)
        if dest_pin:
            dest.grants.unpin(dest_grant, dest_pin, readonly=False)
    counters = caller.counters
    counters.grant_copies += 1
    counters.bytes_copied += length
    return STATUS[GNTST_okay]
