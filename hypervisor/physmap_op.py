"""memory_op: add_to_physmap, add_to_physmap_batch, remove_from_physmap.

Follows xen/common/memory.c and xen/arch/x86/mm/p2m.c. What can be mapped into a translated guest: its
shared_info, its grant frames and, for a control domain, frames of other domains
(XENMAPSPACE_gmfn_foreign), which is how the toolstack fills a domain that it builds. Ordinary RAM that is
in the place is given up for it, as in Xen; a page that a grant or foreign mapping has put there is not
(-ENXIO). Moving one's own RAM about (gmfn, gmfn_range) is refused: a translated guest has no use for it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from hypervisor.abi import memory as abi
from hypervisor.abi.errno import XEN_EACCES, XEN_EDOM, XEN_EILSEQ, XEN_ENXIO
from hypervisor.continuation import SLICE_STEPS, Continuation
from hypervisor.errors import (
    BadGpfn,
    GuestFault,
    InvalidArgument,
    NotFound,
    NotPermitted,
    Unsupported,
    XenError,
)
from hypervisor.guest_memory import Held, PageKind
from hypervisor.memory_command import go_on
from hypervisor.privileges import may_target

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.vcpu.state import Vcpu

INDEX_SIZE: Final = 8
ERROR_SIZE: Final = 4
MAX_BATCH: Final = 0xFFFF  # xen_add_to_physmap_batch.size is a u16


def add_to_physmap(caller: Vcpu, arg: int) -> int:
    """XENMEM_add_to_physmap: one page."""
    request = caller.access.read_struct(abi.xen_add_to_physmap, arg)
    if request.space == abi.XENMAPSPACE_gmfn_foreign:
        raise Unsupported("foreign mappings in add_to_physmap")  # only the batch says whose
    domain = _target(caller.domain, request.domid)
    _add(domain, request.space, request.idx, request.gpfn)
    return 0


def add_to_physmap_batch(caller: Vcpu, arg: int, done: int) -> int | Continuation:
    """XENMEM_add_to_physmap_batch: up to 65535 pages, each with its own result in `errs`."""
    if done > MAX_BATCH:
        raise InvalidArgument("progress", done, f"at most {MAX_BATCH}", errno=XEN_EDOM)
    memory = caller.access
    request = memory.read_struct(abi.xen_add_to_physmap_batch, arg)
    if request.space == abi.XENMAPSPACE_gmfn_range:
        raise Unsupported("gmfn_range in add_to_physmap_batch", known=True)
    domain = _target(caller.domain, request.domid)
    if done > request.size or (done and done == request.size):
        raise InvalidArgument("progress", done, f"less than {request.size}", errno=XEN_EILSEQ)
    end = min(request.size, done + SLICE_STEPS)
    if request.space == abi.XENMAPSPACE_gmfn_foreign:
        _add_foreign(caller, domain, request, done, end)
        return 0 if end == request.size else go_on(abi.XENMEM_add_to_physmap_batch, end, arg)
    for index in range(done, end):
        idx = memory.read_u64(request.idxs + index * INDEX_SIZE)
        gpfn = memory.read_u64(request.gpfns + index * INDEX_SIZE)
        error_at = request.errs + index * ERROR_SIZE
        memory.check_writable(error_at, ERROR_SIZE)  # before anything is changed that could not be reported
        try:
            _add(domain, request.space, idx, gpfn)
            error = 0
        except XenError as refused:
            error = -refused.errno
        memory.write_u32(error_at, error)
    return 0 if end == request.size else go_on(abi.XENMEM_add_to_physmap_batch, end, arg)


def remove_from_physmap(caller: Vcpu, arg: int) -> int:
    """XENMEM_remove_from_physmap: unmap one page. RAM stays the domain's, without a place (as in Xen); a
    page that is there by a grant goes by unmapping the grant only.
    """
    request = caller.access.read_struct(abi.xen_remove_from_physmap, arg)
    domain = _target(caller.domain, request.domid)
    mapped = domain.memory.mapped(request.gpfn)
    if mapped is None:
        try:
            domain.memory.remove_ram(request.gpfn, 1)
        except BadGpfn as nothing:
            raise NotFound(f"gpfn {request.gpfn:#x} of domain {domain.domid}") from nothing
    elif mapped.kind is PageKind.GRANT:
        raise BadGpfn(domain.domid, request.gpfn, "a grant is mapped there")
    else:
        domain.memory.unmap_foreign(request.gpfn)
    return 0


def _target(caller: Domain, domid: int) -> Domain:
    domain = caller.machine.resolve(caller, domid)
    may_target(caller, domain, "change the physmap of")
    if domain.traits.pv:
        raise InvalidArgument("domain", domid, "one that is auto-translated", errno=XEN_EACCES)
    if domain.is_dying:
        raise InvalidArgument("domain", domid, "one that is not dying")
    return domain


def _add(domain: Domain, space: int, idx: int, gpfn: int) -> None:
    """Map what (`space`, `idx`) names at `gpfn`. Everything is checked before the place is cleared."""
    if space == abi.XENMAPSPACE_shared_info and idx == 0:
        mfn = domain.shared_info_mfn
    elif space == abi.XENMAPSPACE_grant_table:
        mfn = domain.grants.shared_frame(idx)
    else:
        raise InvalidArgument("space", (space, idx), "shared_info, a grant frame or a foreign page")
    if domain.memory.special_gpfn(mfn) == gpfn:
        return
    _clear(domain, gpfn)
    elsewhere = domain.memory.special_gpfn(mfn)
    if elsewhere is not None:
        domain.memory.unmap_foreign(elsewhere)
    domain.memory.map_foreign(gpfn, mfn, True, PageKind.SPECIAL)


def _add_foreign(
    caller: Vcpu, domain: Domain, request: abi.xen_add_to_physmap_batch, done: int, end: int
) -> None:
    """Entries `done` to `end` of a batch of foreign pages. A toolstack maps tens of thousands to build a domain:
    what is the same for all is looked up once, and each array is read or written at once.
    """
    memory, count = caller.access, end - done
    if not count:
        return
    try:
        memory.check_writable(request.errs + done * ERROR_SIZE, count * ERROR_SIZE)
        idxs = memoryview(memory.read(request.idxs + done * INDEX_SIZE, count * INDEX_SIZE)).cast("Q")
        gpfns = memoryview(memory.read(request.gpfns + done * INDEX_SIZE, count * INDEX_SIZE)).cast("Q")
    except GuestFault:
        if count == 1:
            raise
        for index in range(done, end):  # those that can be read and reported are done, as in Xen
            _add_foreign(caller, domain, request, index, index + 1)
        return
    try:
        owner = _foreign_owner(domain, request.u.foreign_domid)
    except XenError as refused:
        errors = [-refused.errno] * count
    else:
        errors = [_foreign_error(domain, owner, idx, gpfn) for idx, gpfn in zip(idxs, gpfns)]
    memory.write(request.errs + done * ERROR_SIZE, array("i", errors).tobytes())


def _foreign_error(domain: Domain, owner: Domain, idx: int, gpfn: int) -> int:
    """Map page `idx` of `owner` at `gpfn`: 0, or a negative errno."""
    try:
        _map_page_of(domain, owner, idx, gpfn)
    except XenError as refused:
        return -refused.errno
    return 0


def _map_page_of(domain: Domain, owner: Domain, idx: int, gpfn: int) -> None:
    mfn = _foreign_frame(owner, idx)
    if domain.memory.mfn(gpfn) is not None:
        _clear(domain, gpfn)
    ledger = owner.ledger
    if ledger is None:
        domain.memory.map_foreign(gpfn, mfn, True, PageKind.FOREIGN)
        return
    ledger.hold(idx)
    try:
        domain.memory.map_foreign(gpfn, mfn, True, PageKind.FOREIGN, Held(ledger, idx))
    except XenError:
        ledger.release(idx)
        raise


def _foreign_owner(domain: Domain, foreign: int) -> Domain:
    """The other domain of which `domain` wants to map a page."""
    if not domain.privileged:
        raise NotPermitted(domain.domid, "map frames of other domains")
    owner = domain.machine.domain(foreign)
    if owner is domain:
        raise InvalidArgument("foreign_domid", foreign, "another domain")
    return owner


def _foreign_frame(owner: Domain, gpfn: int) -> int:
    """The frame at `gpfn` of another domain, one of its own: what it maps of others is not passed on."""
    mapped = owner.memory.mapped(gpfn)
    mfn = owner.memory.mfn(gpfn)
    if mfn is None or (mapped is not None and mapped.kind is not PageKind.SPECIAL):
        raise BadGpfn(owner.domid, gpfn, "no page of its own there")
    return mfn


def _clear(domain: Domain, gpfn: int) -> None:
    """Make room at `gpfn`: RAM is given up, a special page only unhooked."""
    mapped = domain.memory.mapped(gpfn)
    if mapped is None:
        if domain.memory.mfn(gpfn) is not None:
            mfn, _ = domain.memory.remove_ram(gpfn, 1)
            domain.reservation.give_up(mfn)
        else:
            domain.memory.check_vacant(gpfn, 1)
    elif mapped.kind is PageKind.SPECIAL:
        domain.memory.unmap_foreign(gpfn)
    else:
        raise BadGpfn(domain.domid, gpfn, "a grant or a foreign page is mapped there", errno=XEN_ENXIO)
