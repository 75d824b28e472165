"""A granter that edits its shared entry between any two steps of whoever uses it.

Every access of the hypervisor to the shared words is a step, an atomic one a single step; before each of
them the granter may write. Whatever it does, statuses are defined ones, work is bounded, nothing is read
or written but the granter's own pages with the access that it had granted when the use began, and no count
is off afterwards.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.abi.grant_table import (
    GTF_PAT,
    GNTST_general_error,
    GNTST_okay,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
)
from hypervisor.audit import audit
from hypervisor.grant_batch import STATUS
from hypervisor.grant_entries import CLAIM_ATTEMPTS
from hypervisor.guest_memory import PageKind
from ringbuffers.atomics import AtomicWords
from tests.hypervisor.fakes import new_machine
from tests.hypervisor.grant_guests import PAGE, WINDOW, GrantGuest

REF = 9
WORD = 2 * REF
MAX_ACCESSES = 2 * CLAIM_ATTEMPTS + 3
"""of one operation: a load and an exchange for each attempt, the frame, and a bit to drop for each of two
uses
"""

Edit = Callable[["Granter"], None]


@dataclass
class Granter:
    """The shared words as the hypervisor sees them while their owner writes. `edits`: what it writes before
    which step. Takes the place of the AtomicWords of a shared frame, and of its plain words.
    """

    shared: AtomicWords
    user: int
    stranger: int
    edits: dict[int, Edit] = field(default_factory=dict)
    every_step: Edit | None = None
    step: int = 0
    loads: list[int] = field(default_factory=list)
    taken: list[tuple[int, int, bool]] = field(default_factory=list)
    """each exchange that succeeded: the word before and after, and whether the grant was in use already"""
    in_use: Callable[[], bool] = bool

    @property
    def words(self) -> "Granter":
        return self

    def before(self) -> None:
        """The granter's turn."""
        edit = self.edits.get(self.step, self.every_step)
        self.step += 1
        if edit is not None:
            edit(self)

    def __getitem__(self, index: int) -> int:
        self.before()
        self.loads.append(index)
        return self.shared.words[index]

    def __setitem__(self, index: int, value: int) -> None:
        raise AssertionError("a plain store to a word that the granter writes too")

    def compare_exchange(self, index: int, expected: int, new: int) -> bool:
        self.before()
        done = self.shared.compare_exchange(index, expected, new)
        if done:
            self.taken.append((expected, new, self.in_use()))
        return done

    def clear_bits(self, index: int, bits: int) -> None:
        self.before()
        self.shared.clear_bits(index, bits)

    def set_entry(self, flags: int, domid: int) -> None:
        self.shared.words[WORD] = domid << 16 | flags


EDITS: dict[str, Edit] = {
    "revoke": lambda granter: granter.set_entry(0, 0),
    "make read-only": lambda granter: granter.set_entry(GTF_permit_access | GTF_readonly, granter.user),
    "grant to another": lambda granter: granter.set_entry(GTF_permit_access, granter.stranger),
    "await a transfer": lambda granter: granter.set_entry(GTF_accept_transfer, granter.user),
    "make transitive": lambda granter: granter.set_entry(GTF_transitive, granter.user),
    "grant a part": lambda granter: granter.set_entry(GTF_permit_access | GTF_sub_page, granter.user),
    "forge use": lambda granter: granter.set_entry(
        GTF_permit_access | GTF_reading | GTF_writing, granter.user
    ),
    "hide use": lambda granter: granter.set_entry(GTF_permit_access, granter.user),
    "set everything": lambda granter: granter.set_entry(0xFFFF, 0xFFFF),
    "another frame": lambda granter: granter.shared.words.__setitem__(WORD + 1, 4),
    "no frame": lambda granter: granter.shared.words.__setitem__(WORD + 1, 0xFFFF_FFFF),
    "a frame mapped from others": lambda granter: granter.shared.words.__setitem__(WORD + 1, WINDOW),
}


class Scene:
    """dom0 uses a grant of a hostile guest, which has mapped a page of a bystander."""

    def __init__(self) -> None:
        self.machine, _host = new_machine(memory_bytes=1 << 20)
        self.dom0, guest, self.bystander = (GrantGuest(self.machine) for _ in range(3))
        self.guest = guest
        for number, content in ((3, b"frame 3"), (4, b"frame 4")):
            guest.domain.memory.write(number * PAGE, content)
        self.bystander.domain.memory.write(3 * PAGE, b"bystander")
        self.bystander.grant(REF, guest.domid, 3)
        assert guest.map(self.bystander.domid, REF).status == GNTST_okay
        guest.grant(REF, self.dom0.domid, 3)
        frames = guest.domain.grants.entries.frames
        self.granter = Granter(frames[0], self.dom0.domid, self.bystander.domid)
        self.granter.in_use = lambda: REF in dict(guest.domain.grants.pins())
        frames[0] = cast(AtomicWords, self.granter)

    def play(self) -> None:
        """Use the grant in every way, and check after each step what must hold whatever the granter does."""
        dom0, guest = self.dom0.domain.memory, self.guest.domid
        for number in range(4):
            readonly, place = number < 2, WINDOW + number
            if self.bounded(partial(self.map, place, readonly)) == GNTST_okay:
                assert dom0.read(place * PAGE, 7) in (b"frame 3", b"frame 4")
        if self.bounded(lambda: self.dom0.copy_from(guest, REF, 5)) == GNTST_okay:
            assert dom0.read(5 * PAGE, 7) in (b"frame 3", b"frame 4")
        dom0.write(6 * PAGE, b"written")
        self.bounded(lambda: self.dom0.copy_to(guest, REF, 6, 7))
        for place, handle in sorted(self.handles().items()):
            assert self.bounded(partial(self.dom0.unmap, handle, place)) == GNTST_okay
        self.bounded(lambda: self.dom0.copy_to(guest, REF, 6, 7))
        self.bounded(lambda: self.dom0.copy_from(guest, REF, 5))

    def map(self, place: int, readonly: bool) -> int:
        return self.dom0.map(self.guest.domid, REF, place, readonly=readonly).status

    def handles(self) -> dict[int, int]:
        """dom0's handles by guest frame."""
        track = self.dom0.domain.grants.maptrack
        return {found.gpfn: handle for handle in range(8) if (found := track.get(handle)) is not None}

    def bounded(self, operation: Callable[[], int]) -> int:
        """Its status, a defined one, found in a bounded number of accesses."""
        before = self.granter.step
        status = operation()
        assert status in STATUS
        assert self.granter.step - before <= MAX_ACCESSES
        assert audit(self.machine) == []
        return status

    def check_end(self) -> None:
        """Nothing is left over, and nobody else was touched."""
        assert list(self.guest.domain.grants.pins()) == []
        assert not self.machine.faults
        assert self.bystander.domain.memory.read(3 * PAGE, 9) == b"bystander"
        for before, after, in_use in self.granter.taken:
            if not in_use:
                assert before & (GTF_type_mask | GTF_sub_page) == GTF_permit_access
                assert before >> 16 == self.dom0.domid
            if after & ~before & GTF_writing:
                assert not before & GTF_readonly
            assert after == before | GTF_reading | (after & GTF_writing)
        self.guest.domain.grants.entries.frames[0] = self.granter.shared
        for guest in (self.dom0, self.guest, self.bystander):
            guest.destroy()
        self.machine.bury()
        assert self.machine.frames.used == 0


def test_each_word_is_fetched_once_for_each_decision() -> None:
    """The single-fetch oracle: a first use looks at flags and frame once each, a further one at nothing."""
    scene = Scene()
    loads = scene.granter.loads
    assert scene.dom0.map(scene.guest.domid, REF, readonly=True).status == GNTST_okay
    assert loads == [WORD, WORD + 1]
    assert scene.dom0.map(scene.guest.domid, REF, WINDOW + 1, readonly=True).status == GNTST_okay
    assert scene.dom0.copy_from(scene.guest.domid, REF, 5) == GNTST_okay
    assert loads == [WORD, WORD + 1]
    assert scene.dom0.copy_to(scene.guest.domid, REF, 5) == GNTST_okay
    assert loads == [WORD, WORD + 1, WORD]


@pytest.mark.parametrize("edit", EDITS)
def test_one_edit_before_any_step(edit: str) -> None:
    """Every step in turn, until the script is over before the edit's turn comes."""
    step = 0
    while True:
        scene = Scene()
        scene.granter.edits[step] = EDITS[edit]
        scene.play()
        scene.check_end()
        if scene.granter.step <= step:
            break
        step += 1
    assert step > 12


@given(st.dictionaries(st.integers(0, 45), st.sampled_from(sorted(EDITS)), max_size=12))
@settings(max_examples=150, deadline=None)
def test_many_edits(edits: dict[int, str]) -> None:
    scene = Scene()
    scene.granter.edits = {step: EDITS[name] for step, name in edits.items()}
    scene.play()
    scene.check_end()


def toggle(granter: Granter) -> None:
    granter.shared.words[WORD] ^= GTF_PAT


def test_a_granter_that_never_stops_wins_nothing() -> None:
    """XSA-226: the entry changes before every step; attempts are a bounded loop."""
    scene = Scene()
    scene.granter.every_step = toggle
    dom0, guest = scene.dom0, scene.guest.domid
    for operation in (
        lambda: dom0.map(guest, REF).status,
        lambda: dom0.copy_from(guest, REF, 5),
        lambda: dom0.copy_to(guest, REF, 5),
    ):
        assert scene.bounded(operation) == GNTST_general_error
    assert scene.granter.shared.words[WORD] & (GTF_reading | GTF_writing) == 0
    scene.granter.every_step = None
    assert dom0.map(guest, REF).status == GNTST_okay


def test_a_user_that_writes_the_entries_that_it_uses() -> None:
    """A guest grants the page that its own entries lie in, and whoever maps it spoils them all."""
    machine, _host = new_machine()
    dom0, guest = GrantGuest(machine), GrantGuest(machine)
    guest.domain.memory.map_foreign(0x40, guest.domain.grants.shared_mfns[0], True, PageKind.SPECIAL)
    guest.grant(REF, dom0.domid, 3)
    guest.grant(REF + 1, dom0.domid, 0x40)
    page = dom0.map(guest.domid, REF, WINDOW)
    entries = dom0.map(guest.domid, REF + 1, WINDOW + 1)
    assert (page.status, entries.status) == (GNTST_okay, GNTST_okay)
    dom0.domain.memory.write((WINDOW + 1) * PAGE, b"\xff" * PAGE)
    assert dom0.unmap(page.handle, WINDOW) == GNTST_okay
    assert dom0.unmap(entries.handle, WINDOW + 1) == GNTST_okay
    assert audit(machine) == []
    dom0.destroy()
    guest.destroy()
    machine.bury()
    assert machine.frames.used == 0


def test_the_entries_of_the_dead_that_granted_them() -> None:
    """The page of the entries is all that keeps the dead domain; its last unmap writes to it."""
    machine, _host = new_machine()
    dom0, guest = GrantGuest(machine), GrantGuest(machine)
    guest.domain.memory.map_foreign(0x40, guest.domain.grants.shared_mfns[0], True, PageKind.SPECIAL)
    guest.grant(REF, dom0.domid, 0x40)
    handle = dom0.map(guest.domid, REF).handle
    guest.destroy()
    machine.bury()
    assert audit(machine) == []
    assert guest.domid in machine.domains
    assert dom0.unmap(handle) == GNTST_okay
    assert audit(machine) == []
    assert guest.domid not in machine.domains
