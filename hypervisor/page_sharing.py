"""Which pages processes of other domains may reach: each one that is granted to them and mapped, no other.

A domain is isolated if a process of its own maps its memory; all others run in the hypervisor's process.
Mappings by those are not asked about here, whoever owns the page: they need no descriptor.

- A page of a domain in this process moves out when the first isolated domain maps it, and back when the
  last one has unmapped it.
- A page of an isolated domain moves while its owner stands still in a call: `share_pages` before it writes
  the grant entry, `reclaim_pages` when it has ended the grant. What it has not shared cannot be mapped.
- A page of a native domain moves while its process stands still, which it is made to when somebody wants to map
  it (page_moves.py).
- A page is read-only for all others or writable. An isolated domain that may write to a page may map it
  read-only as well, unless a native one owns it, which does not take it back itself.

A page goes to a memfd that nobody has seen when somebody else is to have it, unless it is mapped: then
whoever had it before keeps it in sight until it moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
from typing import TYPE_CHECKING, Final

from hypervisor.errors import BadFrame, BadGpfn, Busy, InvalidArgument, OutOfMemory

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.extent import Extent
    from hypervisor.shared_page import SharedPage

MAX_SHARED_PAGES: Final = 16384
"""two mappings each: half of what a process may have (vm.max_map_count, 65530 as Linux boots)"""
MAX_COUNT: Final = 1 << 16
"""pages of one call"""


class Importer:
    """GuestMemory.importer of an isolated domain: what it maps of others, and that those pages are shared."""

    def __init__(self, domain: Domain) -> None:
        self._machine = domain.machine
        self._frames = domain.machine.frames
        self._domid = domain.domid

    def __call__(self, mfn: int, writable: bool) -> None:
        """See to it that the page of `mfn` is shared in a mode that permits this, and count the mapping.
        BadFrame if it cannot be, OutOfMemory; then nothing has changed.
        """
        extent = self._frames.extent_at(mfn)
        offset = mfn - extent.mfn
        page = extent.shared.get(offset)
        owner = self._machine.domains[self._frames.owner(mfn)]
        if owner.domid == self._domid:
            if page is not None:
                raise BadFrame(mfn, "shared with other domains: its owner has it in one place only")
            return
        if owner.isolated:
            page = self._shared_by_owner(owner, mfn, page, writable)
            if not page.seal():
                raise BadFrame(mfn, "its owner has sealed it in another way")
        elif page is None:
            check_room(owner, 1)
            page = extent.share(offset, readonly=not writable)
            page.seal()
        elif page.readonly == writable and (writable or self._domid not in page.mappings):
            raise BadFrame(mfn, f"mapped by others, {'read-only' if page.readonly else 'writable'}")
        page.seen.add(self._domid)
        page.mappings[self._domid] = page.mappings.get(self._domid, 0) + 1

    def _shared_by_owner(
        self, owner: Domain, mfn: int, page: SharedPage | None, writable: bool
    ) -> SharedPage:
        if page is None or self._domid not in page.peers:
            raise BadFrame(mfn, f"domain {owner.domid} has not shared it with domain {self._domid}")
        if writable and page.readonly:
            raise BadFrame(mfn, f"domain {owner.domid} has shared it read-only")
        if owner.moves is not None and not writable and not page.readonly:
            raise BadFrame(mfn, "writable by others, who could go on when that is over: not read-only, too")
        return page

    def unmapped(self, mfn: int) -> None:
        """One mapping of `mfn` goes. The last one of a page whose owner is in this process: it moves back."""
        owner = self._machine.domains[self._frames.owner(mfn)]
        if owner.domid == self._domid:
            return
        extent = self._frames.extent_at(mfn)
        page = extent.shared.get(mfn - extent.mfn)
        if page is None or self._domid not in page.mappings:  # mapped before there was a process
            return
        if page.mappers == 1 and not owner.isolated:
            extent.unshare(mfn - extent.mfn)
        left = page.mappings.pop(self._domid) - 1
        if left:
            page.mappings[self._domid] = left


def share_pages(
    domain: Domain, domid: int, pfns: Sequence[int], *, readonly: bool
) -> dict[int, SharedPage] | None:
    """`domain`, whose process stands still, is about to grant these pages to domain `domid`. Returns those
    that have moved: its process has to map them, writable, before it goes on. None: `domid` is not isolated
    and needs no sharing.

    BadGpfn if one is not its ordinary RAM; BadFrame if one is mapped in the other mode, or by `domain`
    itself as a grant; OutOfMemory: nothing has changed.
    """
    peer = domain.machine.domains.get(domid)
    if not domain.isolated or peer is None or not peer.isolated or peer is domain:
        return None
    if len(pfns) > MAX_COUNT:
        raise InvalidArgument("pages to share", len(pfns), f"at most {MAX_COUNT}")
    places = {pfn: _own_page(domain, pfn) for pfn in pfns}
    for extent, offset in places.values():
        page = extent.shared.get(offset)
        if page is None:
            _check_mapped_once(domain, extent.mfn + offset)
        elif page.mappers and page.readonly != readonly:
            raise BadFrame(extent.mfn + offset, "mapped by others in the other mode")
    check_room(domain, sum(offset not in extent.shared for extent, offset in places.values()))
    moved = _move(domain, domid, places, readonly=readonly)
    for extent, offset in places.values():
        extent.shared[offset].peers.add(domid)
    return moved


def _own_page(domain: Domain, pfn: int) -> tuple[Extent, int]:
    """The extent and offset of a page of ordinary RAM. BadGpfn if `pfn` is anything else."""
    mfn = domain.memory.mfn(pfn)
    if mfn is None or domain.memory.mapped(pfn) is not None:
        raise BadGpfn(domain.domid, pfn, "no ordinary RAM of its own there")
    extent = domain.machine.frames.extent_at(mfn)
    return extent, mfn - extent.mfn


def _check_mapped_once(domain: Domain, mfn: int) -> None:
    """BadFrame if the owner has mapped a grant of this page itself: its process would have to follow in two
    places.
    """
    if domain.machine.frames.refs[mfn] > 1 and any(page.mfn == mfn for _, page in domain.memory.mappings()):
        raise BadFrame(mfn, "mapped by its owner as a grant")


def _move(
    domain: Domain, domid: int, places: dict[int, tuple[Extent, int]], *, readonly: bool
) -> dict[int, SharedPage]:
    """Move the pages that are not yet shared, or are not to be seen any more by those who know them."""
    moved: dict[int, SharedPage] = {}
    fresh: list[tuple[Extent, int]] = []
    # Those that move for the first time go first: they can go back.
    for pfn, (extent, offset) in sorted(places.items(), key=lambda place: place[1][1] in place[1][0].shared):
        before = extent.shared.get(offset)
        try:
            if before is not None and not before.mappers and before.seen - {domid}:
                page = extent.renew(offset, readonly=readonly)
            else:
                page = extent.share(offset, readonly=readonly)
        except OutOfMemory:
            for extent_of, offset_of in fresh:
                extent_of.unshare(offset_of)
            if len(moved) > len(fresh):
                domain.crash()  # its process has pages mapped that are no longer its
            raise
        if page is not before:
            moved[pfn] = page
            if before is None:
                fresh.append((extent, offset))
    return moved


def reclaim_pages(domain: Domain, pfn: int, count: int) -> list[int]:
    """`domain`, whose process stands still, takes `count` guest frames from `pfn` on back into general use.
    Returns those that have moved: its process has to map its own extent there again. Busy, and nothing has
    changed, if an isolated domain still maps one.
    """
    if not 0 <= count <= MAX_COUNT:
        raise InvalidArgument("pages to reclaim", count, f"at most {MAX_COUNT}")
    if not _shared_by(domain):
        return []
    found = list(_shared_among(domain, range(pfn, pfn + count)))
    for gpfn, extent, offset in found:
        if extent.shared[offset].mappers:
            raise Busy(f"domain {domain.domid} gpfn {gpfn:#x} is mapped by other domains")
    for _, extent, offset in found:
        extent.unshare(offset)
    return [gpfn for gpfn, _, _ in found]


def _shared_among(domain: Domain, gpfns: range) -> Iterator[tuple[int, Extent, int]]:
    """Of these guest frames, those that are RAM of the domain's own and shared: with extent and offset."""
    for gpfn in gpfns:
        mfn = domain.memory.mfn(gpfn)
        if mfn is not None and domain.memory.mapped(gpfn) is None:
            extent = domain.machine.frames.extent_at(mfn)
            if mfn - extent.mfn in extent.shared:
                yield gpfn, extent, mfn - extent.mfn


def check_room(owner: Domain, wanted: int) -> None:
    """OutOfMemory unless so many more pages of `owner` may be shared. Each costs this process a descriptor,
    of which half are left for all else; no owner gets more than half of what the others leave.
    """
    limit, _ = getrlimit(RLIMIT_NOFILE)
    limit = MAX_SHARED_PAGES if limit == RLIM_INFINITY else min(limit // 2, MAX_SHARED_PAGES)
    shared = {domain: _shared_by(domain) for domain in owner.machine.domains.values()}
    own = shared.get(owner, 0)
    left = (limit - sum(shared.values()) + own) // 2 - own
    if wanted > left:
        raise OutOfMemory(f"shared pages of domain {owner.domid}", wanted, max(0, left))


def _shared_by(domain: Domain) -> int:
    """How many of its pages are shared."""
    return sum(len(extent.shared) for extent in domain.reservation.extents)
