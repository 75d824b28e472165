"""Grants of three domains against a simple model, through hypercalls: statuses, in-use bits, contents, death.

The model knows pages by who made them, and what is in their first eight bytes; it has no machine frames
and no counts. After each step everything that the core counts is recounted.
"""

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_domain,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
)
from hypervisor.audit import audit
from hypervisor.grant_audit import audit_entries
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import PAGE, WINDOW, GrantGuest, granted, own

SEATS = 3
REFERENCES = (8, 9, 600)  # 600 lies in the second frame
PAGES = (3, 4)
PLACES = 3

seats = st.integers(0, SEATS - 1)
references = st.sampled_from(REFERENCES)
pages = st.sampled_from(PAGES)
places = st.integers(0, PLACES - 1).map(lambda number: WINDOW + number)


@dataclass(eq=False)
class Page:
    """A page of RAM: what its first eight bytes say."""

    content: bytes


@dataclass(eq=False)
class Pinned:
    """A grant in use: by whom, and which page, whatever the entry says now."""

    user: int
    page: Page
    readers: int = 0
    writers: int = 0


@dataclass
class Entry:
    """What a granter wrote: for which domain, the page if it is its own RAM, read-only?"""

    user: int
    page: Page | None
    readonly: bool


@dataclass(eq=False)
class Mapped:
    """A mapping: of which grant, at which guest frame."""

    granter: "Party"
    reference: int
    place: int
    readonly: bool
    page: Page


@dataclass(eq=False)
class Party:
    """A guest and what the model knows of it."""

    guest: GrantGuest
    pages: dict[int, Page] = field(default_factory=dict)
    entries: dict[int, Entry] = field(default_factory=dict)
    pins: dict[int, Pinned] = field(default_factory=dict)
    mappings: dict[int, Mapped] = field(default_factory=dict)  # by handle
    alive: bool = True

    def at(self, gpfn: int) -> Page | None:
        """What a guest frame shows."""
        for mapping in self.mappings.values():
            if mapping.place == gpfn:
                return mapping.page
        return self.pages.get(gpfn)


def use(party: Party | None, reference: int, user: int, *, readonly: bool) -> tuple[int, Page | None]:
    """Whether a grant can be used, and the page then."""
    if party is None or not party.alive:
        return GNTST_bad_domain, None
    pin, entry = party.pins.get(reference), party.entries.get(reference)
    if pin is not None:
        if pin.user != user:
            return GNTST_general_error, None
        if not readonly and not pin.writers and entry is not None and entry.readonly:
            return GNTST_general_error, None
        return GNTST_okay, pin.page
    if entry is None or entry.user != user or (entry.readonly and not readonly):
        return GNTST_general_error, None
    return (GNTST_bad_page, None) if entry.page is None else (GNTST_okay, entry.page)


class Grants(RuleBasedStateMachine):
    """Three seats; when the domain in one of them is destroyed, another takes it. The dead stay while they
    are needed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.machine, _host = new_machine()
        self.parties: list[Party] = []
        self.dead: list[Party] = []
        self.made = 0

    @initialize()
    def begin(self) -> None:
        self.parties = [self.make() for _ in range(SEATS)]

    def make(self) -> Party:
        guest = GrantGuest(self.machine)
        guest.domain.grants.grow(2)
        party = Party(guest)
        for gpfn in PAGES:
            self.made += 1
            party.pages[gpfn] = Page(self.made.to_bytes(8, "little"))
            guest.domain.memory.write(gpfn * PAGE, party.pages[gpfn].content)
        return party

    # What a granter does

    @rule(
        granter=seats, reference=references, user=seats, gpfn=st.one_of(pages, places), readonly=st.booleans()
    )
    def grant(self, granter: int, reference: int, user: int, gpfn: int, readonly: bool) -> None:
        """A new entry, also over one in use, whose bits a granter that keeps to the protocol leaves alone."""
        party, domid = self.parties[granter], self.parties[user].guest.domid
        if reference in party.pins:
            return
        party.guest.grant(reference, domid, gpfn, readonly=readonly)
        party.entries[reference] = Entry(domid, party.pages.get(gpfn), readonly)

    @rule(granter=seats, reference=references)
    def end(self, granter: int, reference: int) -> None:
        party = self.parties[granter]
        ended = party.guest.end(reference)
        assert ended == (reference not in party.pins)
        if ended:
            party.entries.pop(reference, None)

    @rule(granter=seats, gpfn=pages)
    def balloon_out(self, granter: int, gpfn: int) -> None:
        """The page goes; who has it mapped keeps it."""
        party = self.parties[granter]
        page = party.pages.pop(gpfn, None)
        if page is None:
            return
        mfn, _count = party.guest.domain.memory.remove_ram(gpfn, 1)
        party.guest.domain.reservation.give_up(mfn)
        for entry in party.entries.values():
            if entry.page is page:
                entry.page = None

    # What a mapper does

    @rule(
        mapper=seats,
        granter=seats,
        reference=references,
        place=st.one_of(places, pages),
        readonly=st.booleans(),
    )
    def map(self, mapper: int, granter: int, reference: int, place: int, readonly: bool) -> None:
        user, party = self.parties[mapper], self.parties[granter]
        status, page = use(party, reference, user.guest.domid, readonly=readonly)
        if status == GNTST_okay and user.at(place) is not None:
            status = GNTST_general_error
        result = user.guest.map(party.guest.domid, reference, place, readonly=readonly)
        assert result.status == status
        if status != GNTST_okay or page is None:
            return
        assert result.handle not in user.mappings
        user.mappings[result.handle] = Mapped(party, reference, place, readonly, page)
        pin = party.pins.setdefault(reference, Pinned(user.guest.domid, page))
        if readonly:
            pin.readers += 1
        else:
            pin.writers += 1

    @precondition(lambda self: self.permitted())
    @rule(which=st.integers(0, 20), place=places, readonly=st.booleans())
    def map_what_is_granted(self, which: int, place: int, readonly: bool) -> None:
        """The same, of an entry that is there, by the domain that it is for."""
        permitted = self.permitted()
        mapper, granter, reference = permitted[which % len(permitted)]
        self.map(mapper, granter, reference, place, readonly)

    def permitted(self) -> list[tuple[int, int, int]]:
        """Each entry: the seats of its user and of its granter, and its reference."""
        seated = {party.guest.domid: seat for seat, party in enumerate(self.parties)}
        return [
            (seated[entry.user], seat, reference)
            for seat, party in enumerate(self.parties)
            for reference, entry in sorted(party.entries.items())
            if entry.user in seated
        ]

    @precondition(lambda self: self.dead)
    @rule(mapper=seats, reference=references, which=st.integers(0, 7))
    def map_of_the_dead(self, mapper: int, reference: int, which: int) -> None:
        party = self.dead[which % len(self.dead)]
        assert self.parties[mapper].guest.map(party.guest.domid, reference).status == GNTST_bad_domain

    @rule(mapper=seats, handle=st.integers(0, 3), wrong=st.sampled_from(["", "", "place", "zero"]))
    def unmap(self, mapper: int, handle: int, wrong: str) -> None:
        user = self.parties[mapper]
        mapping = user.mappings.get(handle)
        if mapping is None:
            assert user.guest.unmap(handle) == GNTST_bad_handle
        elif wrong == "zero":
            assert user.guest.unmap(handle, 0) == GNTST_okay
        elif wrong == "place":
            assert user.guest.unmap(handle, mapping.place + 1) == GNTST_general_error
        else:
            assert user.guest.unmap(handle, mapping.place) == GNTST_okay
            self.forget(user, handle)

    def forget(self, user: Party, handle: int) -> None:
        mapping = user.mappings.pop(handle)
        pin = mapping.granter.pins[mapping.reference]
        if mapping.readonly:
            pin.readers -= 1
        else:
            pin.writers -= 1
        if not pin.readers and not pin.writers:
            del mapping.granter.pins[mapping.reference]

    @rule(seat=seats, gpfn=st.one_of(pages, places))
    def write(self, seat: int, gpfn: int) -> None:
        """Through RAM or through a mapping: everybody else sees it."""
        party = self.parties[seat]
        page = party.at(gpfn)
        readonly = any(found.place == gpfn and found.readonly for found in party.mappings.values())
        if page is None or readonly:
            return
        self.made += 1
        page.content = self.made.to_bytes(8, "little")
        party.guest.domain.memory.write(gpfn * PAGE, page.content)

    @rule(
        chosen=st.one_of(st.tuples(seats, seats, references), st.integers(0, 20)),
        gpfn=st.one_of(pages, places),
        to_grant=st.booleans(),
    )
    def copy(self, chosen: tuple[int, int, int] | int, gpfn: int, to_grant: bool) -> None:
        """By any reference, or by one whose entry is there."""
        if isinstance(chosen, int):
            permitted = self.permitted()
            if not permitted:
                return
            chosen = permitted[chosen % len(permitted)]
        caller, granter, reference = chosen
        user, party = self.parties[caller], self.parties[granter]
        status, shared = use(party, reference, user.guest.domid, readonly=not to_grant)
        mine = user.pages.get(gpfn)
        if mine is None and (to_grant or status == GNTST_okay):
            status = GNTST_bad_page  # the source is looked at first
        there = granted(party.guest.domid, reference)
        if to_grant:
            assert user.guest.copy(own(gpfn), there, 8, GNTCOPY_dest_gref) == status
        else:
            assert user.guest.copy(there, own(gpfn), 8, GNTCOPY_source_gref) == status
        if status == GNTST_okay and shared is not None and mine is not None:
            source, dest = (mine, shared) if to_grant else (shared, mine)
            dest.content = source.content

    # Death

    @rule(seat=seats, budget=st.integers(1, 4), mercy=st.integers(0, 2))
    def destroy(self, seat: int, budget: int, mercy: int) -> None:
        """Not too often, or nobody would have anything mapped."""
        if mercy:
            return
        party = self.parties[seat]
        party.guest.destroy(budget)
        party.alive = False
        for handle in list(party.mappings):
            self.forget(party, handle)
        party.pages.clear()
        self.dead.append(party)
        self.parties[seat] = self.make()

    # What must always be so

    @invariant()
    def counts_agree(self) -> None:
        assert audit(self.machine) == []

    @invariant()
    def entries_show_their_use(self) -> None:
        for party in self.parties:
            assert audit_entries(party.guest.domain.grants) == []
            for reference in REFERENCES:
                pin = party.pins.get(reference)
                shown = "" if pin is None else "rw" if pin.writers else "r"
                assert party.guest.in_use(reference) == shown

    @invariant()
    def everybody_sees_the_pages_that_they_should(self) -> None:
        for party in self.parties:
            for gpfn in (*PAGES, *(WINDOW + number for number in range(PLACES))):
                page = party.at(gpfn)
                if page is None:
                    assert party.guest.domain.memory.mfn(gpfn) is None
                else:
                    assert party.guest.domain.memory.read(gpfn * PAGE, 8) == page.content

    @invariant()
    def the_dead_stay_as_long_as_they_are_mapped(self) -> None:
        self.machine.bury()
        for party in self.dead:
            assert (self.machine.domains.get(party.guest.domid) is party.guest.domain) == bool(party.pins)
        self.dead = [party for party in self.dead if party.pins]

    def teardown(self) -> None:
        for party in self.parties:
            party.guest.destroy()
        self.machine.bury()
        assert self.machine.domains == {}
        assert self.machine.frames.used == 0


TestGrants = Grants.TestCase
TestGrants.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
