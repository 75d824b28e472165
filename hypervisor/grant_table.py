"""A domain's grant table: what it grants to others, and what it has mapped of others.

Follows xen/common/grant_table.c of Xen 4.17 with version 1 tables (public/grant_table.h). A domain is
granter through its shared entries (grant_entries.py) and the pins on them (grant_pin.py), and mapper
through its maptrack (maptrack.py). An entry carries GTF_reading while any use of it lasts, GTF_writing
while any writing use lasts; a pin exists exactly as long.

The core is serial: a handler's changes are seen by no other handler until it returns. Only the shared
entries change under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from hypervisor.abi.grant_table import (
    GNTST_bad_domain,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GTF_reading,
    GTF_writing,
)
from hypervisor.errors import BadGpfn, BadGrantReference, Busy, InvalidArgument
from hypervisor.grant_audit import audit
from hypervisor.grant_entries import GrantEntries
from hypervisor.grant_pin import PIN_LIMIT, Pin
from hypervisor.guest_memory import PageKind
from hypervisor.maptrack import Mapping, MapTrack
from hypervisor.pv.layout import GRANT_TABLE_FIRST

if TYPE_CHECKING:
    from hypervisor.domain import Domain

INITIAL_FRAMES: Final = 1
MAX_FRAMES: Final = 64
MAX_MAPTRACK_FRAMES: Final = 1024
"""gnttab_max_frames and gnttab_max_maptrack_frames, as Xen boots without options"""


class GrantTable:
    """The grant table of `domain`. `shared_mfns` are its shared frames in order; they belong to the domain
    until it is buried. A native guest, which maps them by itself, finds them from GRANT_TABLE_FIRST on.
    """

    def __init__(self, domain: Domain) -> None:
        traits = domain.traits
        if not INITIAL_FRAMES <= traits.max_grant_frames <= MAX_FRAMES:
            raise InvalidArgument(
                "max_grant_frames", traits.max_grant_frames, f"{INITIAL_FRAMES} to {MAX_FRAMES}"
            )
        if not 0 <= traits.max_maptrack_frames <= MAX_MAPTRACK_FRAMES:
            raise InvalidArgument(
                "max_maptrack_frames", traits.max_maptrack_frames, f"0 to {MAX_MAPTRACK_FRAMES}"
            )
        self.domain = domain
        self.domid = domain.domid
        self.max_frames = traits.max_grant_frames
        self.entries = GrantEntries(domain.domid)
        self.maptrack = MapTrack(traits.max_maptrack_frames)
        self.shared_mfns: list[int] = []
        self._pins: dict[int, Pin] = {}
        self.grow(INITIAL_FRAMES)

    # The shared frames

    def grow(self, count: int) -> None:
        """Have at least `count` shared frames. InvalidArgument past `max_frames`; OutOfMemory, and the table
        as it was.
        """
        if count > self.max_frames:
            raise InvalidArgument("grant frames", count, f"at most {self.max_frames}")
        missing = count - len(self.shared_mfns)
        if missing <= 0:
            return
        for run in self.domain.reservation.allocate(missing, special=True):
            for mfn in range(run.mfn, run.mfn + run.count):
                if self.domain.traits.pv:
                    place = GRANT_TABLE_FIRST + len(self.shared_mfns)
                    self.domain.memory.map_foreign(place, mfn, True, PageKind.SPECIAL)
                self.shared_mfns.append(mfn)
                self.entries.add_frame(self.domain.machine.frames.view(mfn))

    def shared_frame(self, index: int) -> int:
        """The machine frame of shared frame `index`, grown on demand (XENMAPSPACE_grant_table)."""
        self.grow(index + 1)
        return self.shared_mfns[index]

    def swap(self, a: int, b: int) -> None:
        """Exchange two entries that nobody uses (GNTTABOP_swap_grant_ref). BadGrantReference."""
        self.entries.check(a)
        self.entries.check(b)
        if a == b:
            return
        for reference in (a, b):
            if reference in self._pins:
                raise BadGrantReference(self.domid, reference, "in use", status=GNTST_eagain)
        self.entries.swap(a, b)

    # Pins

    def pin(self, reference: int, domid: int, *, readonly: bool) -> Pin:
        """Begin a use of grant `reference` by `domid`. BadGrantReference, and nothing changed, where it is
        not permitted.
        """
        pin = self._pins.get(reference)
        if pin is None:
            pin = self._first_pin(reference, domid, readonly=readonly)
        elif self.domain.is_dying:
            raise self._dying(reference)
        elif pin.domid != domid:
            why = f"in use by domain {pin.domid}, not {domid}"
            raise BadGrantReference(self.domid, reference, why, status=GNTST_general_error)
        elif (pin.readers if readonly else pin.writers) >= PIN_LIMIT:
            raise BadGrantReference(self.domid, reference, "too many uses", status=GNTST_general_error)
        elif not readonly and not pin.writers:
            self.entries.claim(reference, domid, readonly=False, pinned=True)
            self._hold(reference, pin.gpfn, GTF_writing)
        if readonly:
            pin.readers += 1
        else:
            pin.writers += 1
        return pin

    def _first_pin(self, reference: int, domid: int, *, readonly: bool) -> Pin:
        entries = self.entries
        entries.check(reference)
        if self.domain.is_dying:
            raise self._dying(reference)
        entries.claim(reference, domid, readonly=readonly, pinned=False)
        gpfn = entries.frame(reference)
        in_use = GTF_reading if readonly else GTF_reading | GTF_writing
        try:
            mfn = self.own_frame(gpfn)
        except BadGpfn as error:
            entries.drop(reference, in_use)
            raise BadGrantReference(self.domid, reference, str(error), status=GNTST_bad_page) from error
        if not readonly:
            self._hold(reference, gpfn, in_use)
        pin = self._pins[reference] = Pin(domid, mfn, gpfn)
        return pin

    def _hold(self, reference: int, gpfn: int, claimed: int) -> None:
        """The first writing use begins: of a native domain's frame, its process must know. Refused for a page
        table; then the bits that were claimed for this use are dropped.
        """
        ledger = self.domain.ledger
        if ledger is not None:
            try:
                ledger.hold(gpfn)
            except Busy as busy:
                self.entries.drop(reference, claimed)
                why = str(busy)
                raise BadGrantReference(self.domid, reference, why, status=GNTST_general_error) from busy

    def unpin(self, reference: int, pin: Pin, *, readonly: bool) -> None:
        """End a use that `pin` began, with the same `readonly`. The in-use bits go with the last use that
        needs them.
        """
        if readonly:
            pin.readers -= 1
        else:
            pin.writers -= 1
            if not pin.writers and self.domain.ledger is not None:
                self.domain.ledger.release(pin.gpfn)
        if pin.readers or pin.writers:
            if not readonly and not pin.writers:
                self.entries.drop(reference, GTF_writing)
            return
        del self._pins[reference]
        self.entries.drop(reference, GTF_reading if readonly else GTF_reading | GTF_writing)

    def end_use(self, mapping: Mapping) -> bool:
        """A mapping of a grant of this table is gone, with it a use of the grant; False if that lasts a little
        longer, until the process that had it mapped cannot reach the page any more.
        """
        moves = self.domain.moves
        if moves is None:
            self.unpin(mapping.reference, mapping.pin, readonly=mapping.readonly)
            return True
        return moves.end_use(self, mapping.reference, mapping.pin, readonly=mapping.readonly)

    def pinned(self, reference: int) -> Pin | None:
        """The pin of a grant that is in use."""
        return self._pins.get(reference)

    def pins(self) -> Iterator[tuple[int, Pin]]:
        """The grants in use, by reference."""
        return iter(self._pins.items())

    def own_frame(self, gpfn: int) -> int:
        """The machine frame at `gpfn` if the domain may pass it on: its own. BadGpfn for an empty place, and
        for a page that it has mapped from somebody, itself included.
        """
        memory = self.domain.memory
        page = memory.mapped(gpfn)
        mfn = memory.mfn(gpfn)
        if mfn is None or (page is not None and page.kind is not PageKind.SPECIAL):
            raise BadGpfn(self.domid, gpfn, "no page of its own there")
        return mfn

    def _dying(self, reference: int) -> BadGrantReference:
        return BadGrantReference(self.domid, reference, "the domain is dying", status=GNTST_bad_domain)

    # Teardown and audit

    def relinquish(self, budget: int) -> bool:
        """Undo what this dying domain has mapped of others, looking at no more than `budget` handles; True
        when all is undone.
        """
        for _ in range(budget):
            if self.maptrack.emptied:
                return True
            mapping = self.maptrack.pop()
            if mapping is not None:
                self.domain.memory.unmap_foreign(mapping.gpfn)
                mapping.granter.end_use(mapping)
        return self.maptrack.emptied

    def let_go(self) -> None:
        """The domain is gone: drop the views of its shared frames, so that their memory goes with it."""
        self.entries.frames.clear()

    def audit(self) -> list[str]:
        """Recount pins and mappings from first principles: what does not agree."""
        return audit(self)
