"""Grants among domains in this process and isolated ones, in any order, against a simple model.

An isolated domain holds on to each descriptor that it was given while it had a page mapped. It must see what
the page holds while it maps it, and the recount must agree after each step. What moves when is not modelled,
except for what must never happen: a page that goes to somebody else while the one before can see it.
"""

import os

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.abi.grant_table import GNTST_okay
from hypervisor.errors import XenError
from hypervisor.page_sharing import Importer, reclaim_pages, share_pages
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import WINDOW, GrantGuest

SEATS = 4  # dom0 and a guest in this process, two isolated ones
PAGES = (3, 4)
seats = st.integers(0, SEATS - 1)
pages = st.sampled_from((3, 3, 3, 4))
owners = st.integers(1, SEATS - 1)
modes = st.sampled_from(
    [(False,) * 3, (True,) * 3, (False, False, True), (False, True, True), (True, False, True)]
)
places = st.integers(0, 2).map(lambda number: WINDOW + number)


class PageSharing(RuleBasedStateMachine):
    """Entry 16 * to + pfn of a domain grants page `pfn` to the domain in seat `to`."""

    @initialize()
    def start(self) -> None:
        self.machine, _ = new_machine()
        self.guests: list[GrantGuest] = []
        self.written = 0
        self.contents: dict[tuple[GrantGuest, int], bytes] = {}
        self.mapped: dict[tuple[GrantGuest, int], tuple[int, GrantGuest, int, int | None]] = {}
        self.kept: dict[int, bytes] = {}
        for seat in range(SEATS):
            self.guests.append(self.new_guest(seat))

    def new_guest(self, seat: int) -> GrantGuest:
        guest = GrantGuest(self.machine)
        if seat >= 2:
            guest.domain.isolated = True
            guest.domain.memory.importer = Importer(guest.domain)
        for pfn in PAGES:
            self.contents[guest, pfn] = bytes(8)
        return guest

    @rule(owner=owners, to=seats, pfn=pages, readonly=st.booleans())
    def grant(self, owner: int, to: int, pfn: int, readonly: bool) -> None:
        reference = 16 * to + pfn
        if self.guests[owner].end(reference):
            self.guests[owner].grant(reference, self.guests[to].domid, pfn, readonly=readonly)

    @rule(owner=owners, to=seats, pfns=st.lists(pages), readonly=st.booleans())
    def share(self, owner: int, to: int, pfns: list[int], readonly: bool) -> None:
        domain = self.guests[owner].domain
        before = self.sharing()
        try:
            moved = share_pages(domain, self.guests[to].domid, pfns, readonly=readonly)
        except XenError:
            assert self.sharing() == before
            return
        assert (moved is None) == (owner < 2 or to < 2 or owner == to)
        for page in (moved or {}).values():
            assert not page.seen
            assert page.untouched

    def sharing(self) -> list[tuple[int, int, bool]]:
        return [
            (extent.mfn + offset, page.fd, page.readonly)
            for extent in self.machine.frames.extents()
            for offset, page in sorted(extent.shared.items())
        ]

    @rule(owner=owners, pfn=pages, count=st.integers(0, 2))
    def reclaim(self, owner: int, pfn: int, count: int) -> None:
        before = self.sharing()
        try:
            moved = reclaim_pages(self.guests[owner].domain, pfn, count)
        except XenError:
            assert self.sharing() == before
        else:
            assert len(self.sharing()) == len(before) - len(moved)

    @rule(seat=seats, owner=owners, pfn=pages, place=places, readonly=st.booleans())
    def map(self, seat: int, owner: int, pfn: int, place: int, readonly: bool) -> None:
        mapper, granter = self.guests[seat], self.guests[owner]
        result = mapper.map(granter.domid, 16 * seat + pfn, place, readonly=readonly)
        if result.status != GNTST_okay:
            return
        fd = None
        if seat >= 2 and granter is not mapper:
            mfn = mapper.domain.memory.mfn(place)
            assert mfn is not None
            extent = self.machine.frames.extent_at(mfn)
            page = extent.shared[mfn - extent.mfn]
            fd = os.dup(page.fd)
            try:
                os.pwrite(fd, os.pread(fd, 1, 100), 100)
                writes = True
            except PermissionError:
                writes = False
            assert writes is not page.readonly
            assert writes or readonly
        self.mapped[mapper, place] = result.handle, granter, pfn, fd

    @rule(owner=owners, to=st.integers(2, SEATS - 1), pfn=pages, place=places, modes=modes)
    def connect(self, owner: int, to: int, pfn: int, place: int, modes: tuple[bool, bool, bool]) -> None:
        """All that a mapping takes, mostly in modes that fit."""
        self.share(owner, to, [pfn], modes[0])
        self.grant(owner, to, pfn, modes[1])
        self.map(to, owner, pfn, place, modes[2])

    @precondition(lambda self: self.mapped)
    @rule(which=st.integers(0, 10))
    def unmap(self, which: int) -> None:
        mapper, place = list(self.mapped)[which % len(self.mapped)]
        handle, granter, pfn, fd = self.mapped.pop((mapper, place))
        assert mapper.unmap(handle, place) == GNTST_okay
        if fd is not None:
            self.let_go(granter, pfn, fd)

    def let_go(self, granter: GrantGuest, pfn: int, fd: int) -> None:
        """A descriptor that is kept. Once the owner has taken the page back, it shows the past for ever."""
        if not granter.domain.isolated and not self.other_mappings(granter, pfn):
            self.kept[fd] = os.pread(fd, 8, 0)
        else:
            os.close(fd)

    def other_mappings(self, granter: GrantGuest, pfn: int) -> bool:
        return any(
            (entry[1], entry[2]) == (granter, pfn) and entry[3] is not None for entry in self.mapped.values()
        )

    @rule(owner=owners, pfn=pages)
    def write(self, owner: int, pfn: int) -> None:
        self.written += 1
        data = self.written.to_bytes(8, "little")
        self.guests[owner].domain.memory.write(pfn << 12, data)
        self.contents[self.guests[owner], pfn] = data

    @rule(seat=st.integers(1, SEATS - 1))
    def destroy(self, seat: int) -> None:
        guest = self.guests[seat]
        guest.destroy(5)
        for mapper, place in [key for key in self.mapped if key[0] is guest]:
            _, granter, pfn, fd = self.mapped.pop((mapper, place))
            if fd is not None:
                self.let_go(granter, pfn, fd)
        self.guests[seat] = self.new_guest(seat)

    @invariant()
    def everybody_sees_what_he_may(self) -> None:
        for guest in self.guests:
            for pfn in PAGES:
                assert guest.domain.memory.read(pfn << 12, 8) == self.contents[guest, pfn]
        for (mapper, place), (_, granter, pfn, fd) in self.mapped.items():
            assert mapper.domain.memory.read(place << 12, 8) == self.contents[granter, pfn]
            if fd is not None:
                assert os.pread(fd, 8, 0) == self.contents[granter, pfn]
        for fd, data in self.kept.items():
            assert os.pread(fd, 8, 0) == data

    @invariant()
    def everything_agrees(self) -> None:
        assert self.machine.audit() == []
        assert not self.machine.faults

    def teardown(self) -> None:
        for fd in (*self.kept, *(entry[3] for entry in self.mapped.values() if entry[3] is not None)):
            os.close(fd)
        for guest in reversed(self.guests):
            guest.destroy()
        assert not list(self.machine.frames.extents())


TestPageSharing = PageSharing.TestCase
TestPageSharing.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
