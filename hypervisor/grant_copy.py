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
from hypervisor.errors import BadGpfn, BadGrantReference
from hypervisor.extent import PAGE_SIZE
from hypervisor.grant_batch import STATUS

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.grant_pin import Pin
    from hypervisor.grant_table import GrantTable

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
    domains = caller.machine.domains
    source = caller if source_domid == DOMID_SELF else domains.get(source_domid)
    dest = caller if dest_domid == DOMID_SELF else domains.get(dest_domid)
    if source is None or dest is None:
        return STATUS[GNTST_bad_domain]
    try:
        with (
            _Side(source.grants, source_frame, caller.domid, from_grant, readonly=True) as from_mfn,
            _Side(dest.grants, dest_frame, caller.domid, to_grant, readonly=False) as to_mfn,
        ):
            if max(source_offset, dest_offset) + length > PAGE_SIZE:
                return STATUS[GNTST_bad_copy_arg]
            view = caller.machine.frames.view
            data = view(from_mfn)[source_offset : source_offset + length]
            view(to_mfn)[dest_offset : dest_offset + length] = data
    except BadGrantReference as refusal:
        return STATUS[refusal.status]
    except BadGpfn:
        return STATUS[GNTST_bad_page]
    caller.counters.grant_copies += 1
    caller.counters.bytes_copied += length
    return STATUS[GNTST_okay]


class _Side:
    """One side of a running copy: a pinned grant, or a frame of the caller's own. Enters as machine frame."""

    __slots__ = ("frame", "granted", "pin", "readonly", "table", "user")

    def __init__(self, table: GrantTable, frame: int, user: int, granted: int, *, readonly: bool) -> None:
        self.table = table
        self.frame = frame & _REFERENCE_MASK if granted else frame
        self.user = user
        self.granted = granted
        self.readonly = readonly
        self.pin: Pin | None = None

    def __enter__(self) -> int:
        if not self.granted:
            return self.table.own_frame(self.frame)
        self.pin = self.table.pin(self.frame, self.user, readonly=self.readonly)
        return self.pin.mfn

    def __exit__(self, *_: object) -> None:
        if self.pin is not None:
            self.table.unpin(self.frame, self.pin, readonly=self.readonly)
