"""Pages of a native domain that the process of another domain maps: they lie apart while it does, and not longer, and
neither side's process ever looks at the wrong memory. Both processes are played in this one, with real descriptors.
"""

import gc
import os
from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.abi.grant_table import (
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_domain,
    GNTST_general_error,
    GNTST_okay,
    GNTTABOP_map_grant_ref,
    GNTTABOP_unmap_grant_ref,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
    gnttab_map_grant_ref,
    gnttab_unmap_grant_ref,
)
from hypervisor.abi.xen import HYPERVISOR_grant_table_op
from hypervisor.errors import Busy, OutOfMemory
from hypervisor.extent import Extent
from hypervisor.machine import Machine
from hypervisor.page_moves import KEPT_NS
from hypervisor.pv.layout import GRANT_TABLE_FIRST, RAM_FIRST
from hypervisor.pv.ledger import PGT_l1_page_table, map_ledger
from hypervisor.vcpu.process.address_space import PageNotPresent
from hypervisor.vcpu.process.bells import Bells
from tests.hypervisor.fakes import FakeHost, Guest
from tests.hypervisor.native_guest import NativeGuest
from tests.hypervisor.vcpu.process.wired import Wired

PAGE = 4096
MFN = RAM_FIRST + 3
REF = 8
WINDOW = 0x1000
ARRAY = 0x800


class Mapper(Wired):
    """A driver domain's process. meanwhile: what happens while one of its hypercalls waits."""

    meanwhile: Callable[[], None]
    waited = 0

    def wait(self) -> None:
        self.waited += 1
        assert self.waited < 100
        self.meanwhile()
        super().wait()

    def array(self, command: int, operations: list[bytes]) -> list[bytes]:
        """A grant operation; the structs afterwards."""
        page = self.platform.memory.page(0)
        data = b"".join(operations)
        page[ARRAY : ARRAY + len(data)] = data
        self.waited = 0
        result = self.platform.hypercall(HYPERVISOR_grant_table_op, command, ARRAY, len(operations))
        assert result == 0
        size = len(operations[0])
        return [bytes(page[at : at + size]) for at in range(ARRAY, ARRAY + len(data), size)]

    def map(self, domid: int, *grants: tuple[int, int], readonly: bool = False) -> list[gnttab_map_grant_ref]:
        """Map grants (reference, gpfn)."""
        flags = GNTMAP_host_map | (GNTMAP_readonly if readonly else 0)
        operations = [
            gnttab_map_grant_ref(
                host_addr=gpfn * PAGE, flags=flags, ref=reference, dom=domid, status=1
            ).pack()
            for reference, gpfn in grants
        ]
        return [gnttab_map_grant_ref.unpack(each) for each in self.array(GNTTABOP_map_grant_ref, operations)]

    def unmap(self, *mapped: tuple[int, int]) -> list[int]:
        """Unmap (handle, gpfn); the statuses."""
        operations = [gnttab_unmap_grant_ref(gpfn * PAGE, 0, handle, 1).pack() for handle, gpfn in mapped]
        done = self.array(GNTTABOP_unmap_grant_ref, operations)
        return [gnttab_unmap_grant_ref.unpack(each).status for each in done]

    def sees(self, gpfn: int) -> bytes | None:
        try:
            return bytes(self.platform.memory.page(gpfn)[:16])
        except PageNotPresent:
            return None


class Rig:
    """A native domain and a driver domain, each with its process."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.machine = Machine(self.host, 4 << 20)
        self.keeper = Guest(self.machine)
        self.native = NativeGuest(self.machine)
        self.guest = Guest(self.machine)
        bells = Bells()
        self.owner = Wired(self.native, bells)
        self.mapper = Mapper(self.guest, bells)
        self.mapper.meanwhile = self.owner.take
        ledger = self.native.domain.ledger
        assert ledger is not None
        self.types, self.granted, self.written = map_ledger(ledger.fd)

    @property
    def domid(self) -> int:
        return self.native.domid

    def grant(self, reference: int, mfn: int, *, readonly: bool = False) -> None:
        flags = GTF_permit_access | (GTF_readonly if readonly else 0)
        self.native.domain.grants.entries.write(reference, self.guest.domid, mfn, flags)

    def in_use(self, reference: int) -> int:
        return self.native.domain.grants.entries.flags(reference) & (GTF_reading | GTF_writing)

    def page(self, mfn: int) -> memoryview:
        """As the native domain's own process has it mapped."""
        return self.owner.platform.memory.page(mfn)

    def shared(self) -> int:
        return sum(len(extent.shared) for extent in self.native.domain.reservation.extents)

    def close(self) -> None:
        self.owner.close()
        self.mapper.close()
        for guest in (self.guest, self.keeper):
            guest.destroy()
        while not self.native.domain.kill(1000):
            pass


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    assert rig.machine.audit() == []
    rig.close()


def test_a_page_is_mapped_and_goes_back(rig: Rig) -> None:
    rig.page(MFN)[:5] = b"first"
    rig.grant(REF, MFN)
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    assert mapping.status == GNTST_okay
    assert rig.mapper.waited == 1  # for one moment in which the owner stood still
    assert rig.mapper.sees(WINDOW) == b"first".ljust(16, b"\0")
    rig.page(MFN)[5:10] = b"owner"
    rig.mapper.platform.memory.page(WINDOW)[10:16] = b"driver"
    assert bytes(rig.page(MFN)[:16]) == b"firstownerdriver" == rig.mapper.sees(WINDOW)
    assert bytes(rig.native.domain.memory.page(MFN)[:16]) == b"firstownerdriver"
    assert rig.machine.audit() == []
    assert rig.in_use(REF) == GTF_reading | GTF_writing
    view = rig.mapper.platform.memory.page(WINDOW)
    kept = os.dup(next(iter(rig.native.domain.reservation.extents[0].shared.values())).fd)
    assert rig.mapper.unmap((mapping.handle, WINDOW)) == [GNTST_okay]
    assert rig.mapper.waited == 1
    assert (rig.in_use(REF), rig.granted[MFN], rig.shared()) == (0, 0, 0)
    assert rig.mapper.sees(WINDOW) is None
    del view
    os.pwrite(kept, b"too late", 0)  # a process that has kept the descriptor
    os.close(kept)
    assert bytes(rig.page(MFN)[:16]) == b"firstownerdriver"
    rig.page(MFN)[:5] = b"FIRST"
    assert bytes(rig.native.domain.memory.page(MFN)[:16]) == b"FIRSTownerdriver"


def test_a_batch_waits_once(rig: Rig) -> None:
    grants = [(REF + index, MFN + index) for index in range(6)]
    for reference, mfn in grants:
        rig.grant(reference, mfn)
        rig.page(mfn)[0] = reference
    mapped = rig.mapper.map(rig.domid, *((reference, mfn - MFN + WINDOW) for reference, mfn in grants))
    assert [mapping.status for mapping in mapped] == [GNTST_okay] * 6
    assert rig.mapper.waited == 1
    for index in range(6):
        assert (rig.mapper.sees(WINDOW + index) or b"")[0] == REF + index
    assert rig.shared() == 6
    done = rig.mapper.unmap(*((mapping.handle, WINDOW + at) for at, mapping in enumerate(mapped)))
    assert done == [GNTST_okay] * 6
    assert rig.mapper.waited == 1
    assert rig.shared() == 0


def test_what_is_read_only_is_mapped_when_the_owner_has_it(rig: Rig) -> None:
    """A memfd that nobody may write to can be mapped writable no more: the owner comes first."""
    rig.page(MFN)[:5] = b"first"
    rig.grant(REF, MFN, readonly=True)
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW), readonly=True)
    assert mapping.status == GNTST_okay
    assert rig.mapper.waited == 2
    rig.page(MFN)[:5] = b"again"
    assert rig.mapper.sees(WINDOW) == b"again".ljust(16, b"\0")
    assert rig.mapper.platform.memory.page(WINDOW).readonly
    page = next(iter(rig.native.domain.reservation.extents[0].shared.values()))
    with pytest.raises(PermissionError):
        os.pwrite(page.fd, b"x", 0)
    assert rig.granted[MFN] == 0
    assert rig.mapper.unmap((mapping.handle, WINDOW)) == [GNTST_okay]
    assert (rig.in_use(REF), rig.shared()) == (0, 0)
    rig.page(MFN)[:5] = b"third"
    assert bytes(rig.native.domain.memory.page(MFN)[:5]) == b"third"


def test_the_owner_is_asked_whether_it_has_what_it_was_told(rig: Rig) -> None:
    moves = rig.native.domain.moves
    assert moves is not None
    rig.grant(REF, MFN, readonly=True)
    told: list[int] = []
    assert not moves.prepare(REF, rig.guest.domid, readonly=True)
    moves.watchers.append(lambda: told.append(rig.shared()))
    rig.owner.take()
    assert told == [1]
    assert moves.pending(rig.guest.domid)
    rig.owner.take()
    assert not moves.pending(rig.guest.domid)
    assert moves.prepare(REF, rig.guest.domid, readonly=True)


def test_one_that_is_mapped_already_needs_no_waiting(rig: Rig) -> None:
    rig.grant(REF, MFN)
    rig.grant(REF + 1, MFN)
    (first,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    (second,) = rig.mapper.map(rig.domid, (REF + 1, WINDOW + 1))
    assert (second.status, rig.mapper.waited) == (GNTST_okay, 0)
    assert rig.mapper.unmap((first.handle, WINDOW)) == [GNTST_okay]
    assert (rig.mapper.waited, rig.in_use(REF), rig.shared()) == (0, 0, 1)
    assert rig.mapper.unmap((second.handle, WINDOW + 1)) == [GNTST_okay]
    assert (rig.mapper.waited, rig.shared()) == (1, 0)


def test_an_owner_that_stands_still_is_not_asked(rig: Rig) -> None:
    """It waits for an answer itself, for whatever reason."""
    rig.grant(REF, MFN)
    rig.page(MFN)[:5] = b"first"
    rig.owner.changes.asked = True
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    assert (mapping.status, rig.mapper.waited) == (GNTST_okay, 0)
    rig.owner.changes.asked = False
    rig.owner.changes.ask()
    rig.owner.take()
    rig.page(MFN)[:5] = b"again"
    assert rig.mapper.sees(WINDOW) == b"again".ljust(16, b"\0")


def test_while_it_is_being_answered_it_is_asked(rig: Rig) -> None:
    """What is noted then is told with the next answer: until then it runs on."""
    rig.owner.changes.asked = True
    rig.owner.changes.begin()
    assert not rig.owner.changes.stands_still
    rig.owner.changes.end_part()
    assert rig.owner.changes.stands_still
    rig.owner.changes.begin()
    rig.owner.changes.answered()
    rig.owner.changes.end_part()
    assert not rig.owner.changes.stands_still


def test_without_a_process_a_domain_stands_still(rig: Rig) -> None:
    """Between two processes, too: the next one is told where everything is."""
    moves = rig.native.domain.moves
    assert moves is not None
    rig.grant(REF, MFN)
    rig.grant(REF + 1, MFN + 1, readonly=True)
    moves.detach()
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    assert (mapping.status, rig.mapper.waited) == (GNTST_okay, 0)
    (mapping,) = rig.mapper.map(rig.domid, (REF + 1, WINDOW + 1), readonly=True)
    assert (mapping.status, rig.mapper.waited) == (GNTST_okay, 0)
    assert rig.mapper.unmap((mapping.handle, WINDOW + 1)) == [GNTST_okay]
    assert (rig.mapper.waited, rig.shared()) == (0, 1)


def test_nothing_is_handed_out_while_one_process_follows_another(rig: Rig) -> None:
    moves = rig.native.domain.moves
    assert moves is not None
    rig.grant(REF, MFN, readonly=True)
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW), readonly=True)
    with pytest.raises(Busy, match="mapped read-only"):
        moves.succeed()
    assert rig.mapper.unmap((mapping.handle, WINDOW)) == [GNTST_okay]
    moves.succeed()

    def follow() -> None:
        rig.owner.take()
        assert rig.shared() == (rig.mapper.waited > 2)
        if rig.mapper.waited == 2:
            moves.detach()
            assert rig.shared() == 0
            moves.attach(rig.owner.changes)

    rig.mapper.meanwhile = follow
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW), readonly=True)
    assert mapping.status == GNTST_okay
    assert rig.mapper.waited >= 3


# ---- refusals


@pytest.mark.parametrize("what", ["other domain", "no entry", "nothing there", "grant frame", "no reference"])
def test_what_cannot_be_mapped_is_not_waited_for(rig: Rig, what: str) -> None:
    reference = REF
    entries = rig.native.domain.grants.entries
    if what == "other domain":
        entries.write(REF, rig.keeper.domid, MFN, GTF_permit_access)
    elif what == "nothing there":
        rig.grant(REF, RAM_FIRST + 500)
    elif what == "grant frame":
        rig.grant(REF, GRANT_TABLE_FIRST)
    elif what == "no reference":
        reference = 1 << 20
    (mapping,) = rig.mapper.map(rig.domid, (reference, WINDOW))
    assert mapping.status < 0
    assert (rig.mapper.waited, rig.shared()) == (0, 0)


def test_a_page_table_is_not_mapped(rig: Rig) -> None:
    rig.types[MFN] = PGT_l1_page_table
    rig.grant(REF, MFN)
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    assert mapping.status == GNTST_general_error
    assert (rig.in_use(REF), rig.granted[MFN]) == (0, 0)


def test_a_page_in_another_mode_is_refused(rig: Rig) -> None:
    rig.grant(REF, MFN, readonly=True)
    rig.grant(REF + 1, MFN)
    (reader,) = rig.mapper.map(rig.domid, (REF, WINDOW), readonly=True)
    first, second = rig.mapper.map(rig.domid, (REF + 1, WINDOW + 1), (REF + 1, WINDOW + 2))
    assert (first.status, second.status) == (GNTST_general_error, GNTST_general_error)
    assert rig.mapper.unmap((reader.handle, WINDOW)) == [GNTST_okay]
    (writer,) = rig.mapper.map(rig.domid, (REF + 1, WINDOW + 1))
    assert writer.status == GNTST_okay
    (reader,) = rig.mapper.map(rig.domid, (REF, WINDOW), readonly=True)
    assert reader.status == GNTST_general_error  # it could still write when the other grant has ended


def test_a_host_without_descriptors(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(self: Extent, offset: int, *, readonly: bool) -> None:
        raise OutOfMemory("descriptors", 1, 0)

    for index in range(3):
        rig.grant(REF + index, MFN + index)
    with monkeypatch.context() as patch:
        patch.setattr(Extent, "renew", none_left)
        mapped = rig.mapper.map(rig.domid, (REF, WINDOW), (REF + 1, WINDOW + 1))
    assert [mapping.status for mapping in mapped] == [GNTST_general_error] * 2
    assert rig.in_use(REF) == 0
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    assert mapping.status == GNTST_okay


def test_an_owner_that_never_stands_still(rig: Rig) -> None:
    moves = rig.native.domain.moves
    assert moves is not None
    rig.grant(REF, MFN)

    def impatient() -> None:
        assert rig.guest.domain.awaits == {rig.native.domain}
        assert moves.pending(rig.guest.domid)
        moves.give_up(rig.guest.domid)
        assert not moves.pending(rig.guest.domid)

    rig.mapper.meanwhile = impatient
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    assert (mapping.status, rig.mapper.waited) == (GNTST_general_error, 1)
    assert (rig.in_use(REF), rig.shared()) == (0, 0)
    rig.mapper.meanwhile = rig.owner.take
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    assert mapping.status == GNTST_okay
    rig.mapper.meanwhile = lambda: None
    assert rig.mapper.unmap((mapping.handle, WINDOW)) == [GNTST_okay]
    assert rig.in_use(REF)  # it is not back yet
    assert rig.granted[MFN] == 1
    assert rig.machine.audit() == []
    rig.owner.take()
    assert (rig.in_use(REF), rig.granted[MFN], rig.shared()) == (0, 0, 0)


def test_what_was_wanted_and_is_not_mapped_goes_back(rig: Rig) -> None:
    moves = rig.native.domain.moves
    assert moves is not None
    rig.grant(REF, MFN)
    assert not moves.prepare(REF, rig.guest.domid, readonly=False)
    rig.owner.take()
    assert moves.prepare(REF, rig.guest.domid, readonly=False)
    rig.page(MFN)[:5] = b"apart"
    rig.host.time_ns += KEPT_NS
    rig.owner.changes.ask()
    rig.owner.take()
    assert rig.shared() == 1
    rig.host.time_ns += 1
    rig.owner.changes.ask()
    rig.owner.take()
    assert rig.shared() == 0
    assert bytes(rig.page(MFN)[:5]) == b"apart"


# ---- ends


def test_a_mapper_that_dies(rig: Rig) -> None:
    rig.grant(REF, MFN)
    rig.grant(REF + 1, MFN + 1, readonly=True)
    rig.mapper.map(rig.domid, (REF, WINDOW))
    rig.mapper.map(rig.domid, (REF + 1, WINDOW + 1), readonly=True)
    while not rig.guest.domain.kill(1):
        pass
    assert rig.machine.audit() == []
    assert rig.in_use(REF)
    assert rig.granted[MFN] == 1  # its process may still be there
    rig.owner.take()
    assert (rig.in_use(REF), rig.in_use(REF + 1), rig.granted[MFN], rig.shared()) == (0, 0, 0, 0)


def test_an_owner_that_dies(rig: Rig) -> None:
    rig.grant(REF, MFN)
    rig.page(MFN)[:5] = b"first"
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    rig.mapper.meanwhile = lambda: None
    domid = rig.domid
    moves = rig.native.domain.moves
    assert moves is not None
    while not rig.native.domain.kill(1000):
        pass
    moves.detach()
    assert rig.mapper.sees(WINDOW) == b"first".ljust(16, b"\0")
    assert rig.mapper.unmap((mapping.handle, WINDOW)) == [GNTST_okay]
    assert domid not in rig.machine.domains
    moves.attach(rig.owner.changes)


def test_an_owner_that_dies_while_its_page_is_on_its_way_back(rig: Rig) -> None:
    rig.grant(REF, MFN)
    rig.grant(REF + 1, MFN + 1)
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    rig.mapper.meanwhile = lambda: None
    assert rig.mapper.unmap((mapping.handle, WINDOW)) == [GNTST_okay]
    moves, domid = rig.native.domain.moves, rig.domid
    assert moves is not None
    assert not moves.prepare(REF + 1, rig.guest.domid, readonly=False)
    while not rig.native.domain.kill(1000):
        pass
    assert domid not in rig.machine.domains
    assert not moves.pending(rig.guest.domid)
    moves.stood_still()  # its process is not gone yet
    rig.owner.changes.ask()
    rig.mapper.waited = 0
    (mapping,) = rig.mapper.map(domid, (REF, WINDOW))
    assert (mapping.status, rig.mapper.waited) == (GNTST_bad_domain, 0)


def test_a_page_that_its_owner_gives_up(rig: Rig) -> None:
    """While it is mapped, and while it is on its way back."""
    rig.grant(REF, MFN)
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    domain = rig.native.domain
    mfn, _ = domain.memory.remove_ram(MFN, 1)
    domain.reservation.give_up(mfn)
    assert rig.machine.audit() == []
    assert rig.mapper.unmap((mapping.handle, WINDOW)) == [GNTST_okay]
    assert (rig.in_use(REF), rig.granted[MFN], rig.shared()) == (0, 0, 0)
    rig.grant(REF, MFN + 1)
    (mapping,) = rig.mapper.map(rig.domid, (REF, WINDOW))
    rig.mapper.meanwhile = lambda: None
    assert rig.mapper.unmap((mapping.handle, WINDOW)) == [GNTST_okay]
    mfn, _ = domain.memory.remove_ram(MFN + 1, 1)
    domain.reservation.give_up(mfn)
    assert rig.machine.audit() == []
    rig.owner.take()
    assert (rig.in_use(REF), rig.granted[MFN + 1], rig.shared()) == (0, 0, 0)


# ---- a model


class Sharing(RuleBasedStateMachine):
    """The owner runs and stands still as it likes; a driver domain maps and unmaps; both write. What each sees is
    what was written last, by whom ever, and nothing of it after the grant has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        gc.collect()
        self.rig = Rig()
        self.mapped: dict[int, tuple[int, int, bool]] = {}
        """handle -> (index of the page, gpfn, read-only)"""
        self.content = [0] * 4
        self.next_gpfn = WINDOW
        self.is_patient = True
        for index in range(4):
            self.rig.grant(REF + index, MFN + index)
            self.rig.grant(REF + 4 + index, MFN + index, readonly=True)

    def teardown(self) -> None:
        self.rig.close()

    @rule(index=st.integers(0, 3), readonly=st.booleans())
    def map_one(self, index: int, readonly: bool) -> None:
        self.next_gpfn += 1
        reference = REF + index + (4 if readonly else 0)
        (mapping,) = self.rig.mapper.map(self.rig.domid, (reference, self.next_gpfn), readonly=readonly)
        modes = {ro for page, _, ro in self.mapped.values() if page == index}
        if mapping.status == GNTST_okay:
            self.mapped[mapping.handle] = (index, self.next_gpfn, readonly)
            assert (not readonly) not in modes
        else:
            assert (not readonly) in modes or not self.is_patient

    @precondition(lambda self: self.mapped)
    @rule(data=st.data())
    def unmap_one(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(sorted(self.mapped)))
        _, gpfn, _ = self.mapped.pop(handle)
        assert self.rig.mapper.unmap((handle, gpfn)) == [GNTST_okay]

    @rule(patient=st.booleans())
    def patience(self, patient: bool) -> None:
        self.is_patient = patient
        self.rig.mapper.meanwhile = self.rig.owner.take if patient else self.give_up

    def give_up(self) -> None:
        moves = self.rig.native.domain.moves
        assert moves is not None
        moves.give_up(self.rig.guest.domid)

    @rule()
    def owner_stands_still(self) -> None:
        self.rig.owner.changes.ask()
        self.rig.owner.take()

    @rule(nanoseconds=st.sampled_from([1, KEPT_NS]))
    def time_passes(self, nanoseconds: int) -> None:
        self.rig.host.time_ns += nanoseconds

    @rule(index=st.integers(0, 3), value=st.integers(0, 255))
    def owner_writes(self, index: int, value: int) -> None:
        self.rig.page(MFN + index)[7] = value
        self.content[index] = value

    @precondition(lambda self: self.mapped)
    @rule(data=st.data(), value=st.integers(0, 255))
    def mapper_writes(self, data: st.DataObject, value: int) -> None:
        index, gpfn, readonly = self.mapped[data.draw(st.sampled_from(sorted(self.mapped)))]
        if not readonly:
            self.rig.mapper.platform.memory.page(gpfn)[7] = value
            self.content[index] = value

    @invariant()
    def all_see_the_same(self) -> None:
        for index, value in enumerate(self.content):
            assert self.rig.page(MFN + index)[7] == value
            assert self.rig.native.domain.memory.page(MFN + index)[7] == value
        for index, gpfn, _ in self.mapped.values():
            assert self.rig.mapper.platform.memory.page(gpfn)[7] == self.content[index]

    @invariant()
    def what_is_in_use_is_marked(self) -> None:
        for index, _, readonly in self.mapped.values():
            assert self.rig.in_use(REF + index + (4 if readonly else 0))
            assert readonly or self.rig.granted[MFN + index]
        assert self.rig.machine.audit() == []


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
