"""Pages of a native domain on their way to the processes of other domains, and back.

A process can be let to a page that lies on a memfd of its own (page_sharing.py). The kernel of a Python domain moves
its pages there before it grants them, in a call; a native kernel knows nothing of processes. So its pages move when
the process of another domain is about to map a grant, and back when that has ended. Meanwhile the engine must not
touch them: they move while the domain's process stands still in a request, which it is asked to make, and it maps them
where they lie now before it goes on. Who wants to map waits for that (`prepare`, Domain.awaits). A grant is in use
until its page is back: what the process of a peer has kept mapped is a dead copy then (XSA-218).

A page that others may only read can be given to them when its owner has mapped it, which is known with the next
request: a memfd that is sealed against writing cannot be mapped writable any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from hypervisor.abi.grant_table import GTF_permit_access, GTF_sub_page, GTF_type_mask
from hypervisor.errors import BadFrame, Busy, XenError
from hypervisor.page_sharing import share_pages

if TYPE_CHECKING:
    from hypervisor.domain import Domain
    from hypervisor.grant_pin import Pin
    from hypervisor.grant_table import GrantTable
    from hypervisor.shared_page import SharedPage

KEPT_NS: Final = 1_000_000_000
"""how long a page waits for whoever wanted it"""


class Mover(Protocol):
    """The process of the domain."""

    @property
    def stands_still(self) -> bool:
        """Whether it waits for an answer that has not begun yet."""

    def ask(self) -> None:
        """Let it make a request soon."""

    def moved(self, pfns: Iterable[int]) -> None:
        """Pages of its own lie elsewhere: it is told with the answer."""


class Use(NamedTuple):
    """A use of a grant that ends when its page is back: nobody but a process that does not stop can still reach
    it. page: as it lies for others.
    """

    table: GrantTable
    reference: int
    pin: Pin
    readonly: bool
    page: SharedPage


class PageMoves:
    """Those of `domain`. `watchers` are called, once, when something has moved or cannot."""

    def __init__(self, domain: Domain) -> None:
        self.watchers: list[Callable[[], None]] = []
        self._domain = domain
        self._process: Mover | None = None
        self._wanted: dict[tuple[int, int], bool] = {}
        """(gpfn, domid of who wants to map it): whether read-only"""
        self._refused: dict[int, set[int]] = {}
        """by domid: gpfns that it wanted and cannot have"""
        self._unconfirmed: set[int] = set()
        """gpfns of pages that are read-only for others, of which the owner has only been told"""
        self._offered: dict[int, int] = {}
        """gpfns that have moved, and when: for whoever wanted them"""
        self._ending: list[Use] = []
        self._succeeded = False

    # ---- the process

    def attach(self, process: Mover) -> None:
        """There is one from now on, which has not been told anything."""
        self._process = process
        self._succeeded = False
        if self._wanted:
            process.ask()

    def succeed(self) -> None:
        """The process is about to be followed by another: nothing more is handed out until that is there. Busy
        while others have mapped what they may only read: the next one could not map it writable any more.
        """
        for extent in self._domain.reservation.extents:
            for offset, page in extent.shared.items():
                if page.readonly and page.mappers:
                    raise Busy(f"mfn {extent.mfn + offset:#x} is mapped read-only by other domains")
        self._succeeded = True

    def detach(self) -> None:
        """There is none: the domain stands still, and whoever executes it next is told where its pages are."""
        self._process = None
        self._unconfirmed.clear()
        self._move()

    def stood_still(self) -> None:
        """The process has made a request: what it was told before, it has done; what is to be done now, is."""
        if self._unconfirmed:
            self._unconfirmed.clear()
            self._notify()
        if self._wanted or self._ending or self._offered:
            self._move()

    def end(self) -> None:
        """The domain dies: its process is not asked any more, and nothing is kept for it."""
        self._move()

    # ---- those who want to map

    def prepare(self, reference: int, domid: int, *, readonly: bool) -> bool:
        """Whether a mapping of this grant by the process of `domid` can be tried now. Otherwise the page is
        wanted, and the domain is about to stand still.
        """
        gpfn = self._granted(reference, domid)
        if gpfn is None or gpfn in self._refused.get(domid, ()) or self._is_ready(gpfn, domid, readonly):
            return True
        self._wanted[gpfn, domid] = readonly and self._wanted.get((gpfn, domid), True)
        self._stand_still()
        return (gpfn, domid) not in self._wanted and gpfn not in self._unconfirmed

    def tried(self, domid: int) -> None:
        """`domid` has tried to map what it wanted."""
        self._refused.pop(domid, None)

    def _granted(self, reference: int, domid: int) -> int | None:
        """The guest frame that an entry grants to `domid`, as it stands there now; None if that will be refused
        anyway.
        """
        table = self._domain.grants
        pin = table.pinned(reference)
        if pin is not None:
            return pin.gpfn if pin.domid == domid else None
        entries = table.entries
        if reference >= entries.count:
            return None
        if entries.flags(reference) & (GTF_type_mask | GTF_sub_page) != GTF_permit_access:
            return None
        gpfn = entries.frame(reference)
        if entries.domid_of(reference) != domid or self._domain.memory.ram_page(gpfn) is None:
            return None
        return gpfn

    def _is_ready(self, gpfn: int, domid: int, readonly: bool) -> bool:
        page = self._shared(gpfn)
        if page is None or domid not in page.peers or gpfn in self._unconfirmed:
            return False
        return page.readonly == readonly

    def _shared(self, gpfn: int) -> SharedPage | None:
        mfn = self._domain.memory.mfn(gpfn)
        return None if mfn is None else self.shared_frame(mfn)

    def shared_frame(self, mfn: int) -> SharedPage | None:
        """The page of a machine frame, if it lies where processes of others can be let to it."""
        try:
            extent = self._domain.machine.frames.extent_at(mfn)
        except BadFrame:
            return None
        return extent.shared.get(mfn - extent.mfn)

    # ---- those who have mapped

    def end_use(self, table: GrantTable, reference: int, pin: Pin, *, readonly: bool) -> bool:
        """A process has unmapped the grant. True if that is all; otherwise the use ends when the page is back."""
        page = self.shared_frame(pin.mfn)
        if page is None or page.mappers:
            table.unpin(reference, pin, readonly=readonly)
            return True
        use = Use(table, reference, pin, readonly, page)
        self._ending.append(use)
        self._stand_still()
        return use not in self._ending

    def ending(self) -> Iterator[Use]:
        """The uses that last until a page is back: for audits."""
        return iter(self._ending)

    def pending(self, domid: int) -> bool:
        """Whether something that `domid` waits for has not moved yet."""
        return (
            any(who == domid for _, who in self._wanted)
            or any(use.pin.domid == domid for use in self._ending)
            or any(
                (page := self._shared(gpfn)) is not None and domid in page.peers for gpfn in self._unconfirmed
            )
        )

    def give_up(self, domid: int) -> None:
        """`domid` waits no longer: what it cannot have by now it does not get."""
        missing = {gpfn for gpfn, who in self._wanted if who == domid} | self._unconfirmed
        self._refused.setdefault(domid, set()).update(missing)
        for gpfn in missing:
            self._wanted.pop((gpfn, domid), None)

    # ---- moving

    def _stand_still(self) -> None:
        if self._process is None or self._domain.is_dying or self._process.stands_still:
            self._move()
        else:
            self._process.ask()

    def _move(self) -> None:
        moved = [*self._take_back(), *self._hand_out(), *self._forget()]
        if self._process is not None and not self._domain.is_dying:
            self._process.moved(moved)
            if self._unconfirmed:
                self._process.ask()
        self._notify()

    def _take_back(self) -> Iterator[int]:
        """The pages of uses that have ended, which with that are over."""
        uses, self._ending = self._ending, []
        for use in uses:
            try:
                moved = self._unshare(use.pin.mfn, use.page)
            except OSError:  # this process has too many mappings just now
                if not self._domain.is_dying:
                    self._ending.append(use)
                    continue
                moved = False
            if moved:
                yield use.pin.gpfn
            use.table.unpin(use.reference, use.pin, readonly=use.readonly)

    def _unshare(self, mfn: int, page: SharedPage) -> bool:
        """Whether this page was there and has moved back. OSError."""
        if self.shared_frame(mfn) is not page or page.mappers:
            return False
        extent = self._domain.machine.frames.extent_at(mfn)
        extent.unshare(mfn - extent.mfn)
        return True

    def _hand_out(self) -> Iterator[int]:
        """The pages that are wanted."""
        if self._succeeded and not self._domain.is_dying:
            return
        groups: dict[tuple[int, bool], list[int]] = {}
        for (gpfn, domid), readonly in self._wanted.items():
            groups.setdefault((domid, readonly), []).append(gpfn)
        self._wanted.clear()
        now_ns = self._domain.machine.host.now_ns()
        for (domid, readonly), gpfns in groups.items():
            for gpfn in self._share(domid, gpfns, readonly):
                self._offered[gpfn] = now_ns
                if readonly and self._process is not None:
                    self._unconfirmed.add(gpfn)
                yield gpfn

    def _share(self, domid: int, gpfns: list[int], readonly: bool) -> list[int]:
        """As many as can be; those that have moved."""
        try:
            moved = share_pages(self._domain, domid, gpfns, readonly=readonly)
        except XenError:
            if len(gpfns) > 1:
                return [moved for gpfn in gpfns for moved in self._share(domid, [gpfn], readonly)]
            moved = None
        if moved is None:
            self._refused.setdefault(domid, set()).update(gpfns)
            return []
        return list(moved)

    def _forget(self) -> Iterator[int]:
        """Pages that nobody has mapped who wanted them."""
        before_ns = self._domain.machine.host.now_ns() - KEPT_NS
        for gpfn in [gpfn for gpfn, since_ns in self._offered.items() if since_ns < before_ns]:
            del self._offered[gpfn]
            page, mfn = self._shared(gpfn), self._domain.memory.mfn(gpfn)
            if page is None or mfn is None or any(use.page is page for use in self._ending):
                continue
            try:
                if self._unshare(mfn, page):
                    yield gpfn
            except OSError:
                self._offered[gpfn] = before_ns

    def _notify(self) -> None:
        watchers, self.watchers = self.watchers, []
        for watcher in watchers:
            watcher()
